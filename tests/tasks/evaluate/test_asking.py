"""A scripted model with a known answer key gets exactly its score, by every protocol."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from model.tokenizer import TextTokenizer
from tasks.evaluate import asking, protocols, results
from tasks.evaluate.asking import Asker
from tasks.evaluate.requests import encode, ids
from tasks.settings.errors import NodeError
from tests.support.questions import Scripted, question, says
from tests.support.tiny import byte_tokenizer, steel

CLOZE, LETTERS, GEN, OPEN = (
    protocols.of(name) for name in ("cloze", "paper-first-token", "paper-gen", "open-exact")
)


def encoded(encoder, protocol, questions, form="plain", context=4096, examples=()):
    return [encode(encoder, protocol.request(q, form, examples=examples), context) for q in questions]


def test_the_letters_of_a_scripted_key_give_exactly_its_score(encoder):
    questions = [question(k, answer=k % 4) for k in range(12)]
    said = [k % 4 if k < 9 else (k + 1) % 4 for k in range(12)]  # nine right, three wrong
    letters = protocols.letter_ids(encoder)
    prompts = [e.prompt for e in encoded(encoder, LETTERS, questions, "chat")]
    model = Scripted({tuple(p): letters[s] for p, s in zip(prompts, said, strict=True)}, 320)

    answers = Asker(model, encoder, form="chat").ask(LETTERS, questions)
    [row] = results.rows("base", answers)
    assert [a["answer"] for a in answers] == said
    assert row["accuracy"] == 0.75
    assert row["n"] == 12
    assert row["subjects"] == {"s0": {"accuracy": 5 / 6, "n": 6}, "s1": {"accuracy": 4 / 6, "n": 6}}
    assert row["letters"] == {letter: said.count(k) for k, letter in enumerate("ABCD")}
    assert (row["version"], row["protocol_hash"]) == (LETTERS.version, LETTERS.digest)


@pytest.mark.parametrize("count", [2, 3, 5, 10])
def test_two_to_ten_options(encoder, count):
    choices = tuple(f"option {k}" for k in range(count))
    questions = [question(k, answer=count - 1, choices=choices) for k in range(4)] + [question(9, answer=3)]
    last = [protocols.letter_ids(encoder, 10)[len(q.choices) - 1] for q in questions]
    prompts = [e.prompt for e in encoded(encoder, LETTERS, questions, "chat")]
    model = Scripted({tuple(p): token for p, token in zip(prompts, last, strict=True)}, 320)
    answers = Asker(model, encoder).ask(LETTERS, questions)
    assert all(a["correct"] for a in answers)
    assert [len(a["scores"]) for a in answers] == [count] * 4 + [4]


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_scripted_key_by_cloze(encoder, form, language):
    questions = [question(k, language, answer=k % 4) for k in range(8)]
    said = [k % 4 if k != 3 else 0 for k in range(8)]
    script = {}
    for e, pick in zip(encoded(encoder, CLOZE, questions, form), said, strict=True):
        says(script, e.prompt, e.options[pick])
    answers = Asker(Scripted(script, 320), encoder, form=form).ask(CLOZE, questions)
    assert [a["answer"] for a in answers] == said


def test_cloze_is_normalised_by_the_options_length(encoder):
    model = steel()
    [q] = [question(5)]
    [e] = encoded(encoder, CLOZE, [q])
    [answer] = Asker(model, encoder).ask(CLOZE, [q])
    whole = total(model, e.prompt, e.options[3])
    assert answer["scores"][3] == pytest.approx(whole / len(e.options[3]), abs=1e-5)


def total(model, prompt, option):
    with torch.inference_mode():
        logp = model(input_ids=torch.tensor([prompt + option])).logits[0].log_softmax(-1)
    return sum(float(logp[len(prompt) + i - 1, t]) for i, t in enumerate(option))


def test_cloze_by_byte_and_against_the_question_free_prior(encoder):
    model = steel()
    questions = [question(k, "zh", choices=("北京", "a", "上海市", "xyz w")) for k in range(3)]
    answers = Asker(model, encoder).ask(CLOZE, questions, prior=True)
    for q, answer in zip(questions, answers, strict=True):
        [e] = encoded(encoder, CLOZE, [q])
        before = encode(encoder, CLOZE.request(q, "plain", blank=True), 4096)
        sums = [total(model, e.prompt, o) for o in e.options]
        alone = [total(model, before.prompt, o) for o in before.options]
        by_byte = [s / len(c.encode()) for s, c in zip(sums, q.choices, strict=True)]
        pmi = [s - a for s, a in zip(sums, alone, strict=True)]
        assert answer["readings"] == {"per-byte": by_byte.index(max(by_byte)), "pmi": pmi.index(max(pmi))}
    [row] = results.rows("base", answers)
    assert set(row["readings"]) == {"per-token", "per-byte", "pmi"}
    assert row["readings"]["per-token"] == row["accuracy"]


def test_an_option_that_is_likely_anyway_gains_nothing_by_pmi():
    q = question(1)
    found = asking.readings(q, total=[-1.0, -2.0, -9.0, -9.0], alone=[-0.5, -6.0, -9.0, -9.0])
    assert found == {"per-byte": 0, "pmi": 1}


def test_generated_replies_are_read_strictly_and_compared_with_the_first_token(encoder, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    replies = ["B。因为", "我不知道。", "不选A，应该选D", "A或B", "C"]
    questions = [question(k, "zh", answer=a) for k, a in enumerate((1, 0, 3, 0, 0))]
    letters = protocols.letter_ids(encoder)
    script = {}
    for e, reply in zip(encoded(encoder, GEN, questions), replies, strict=True):
        says(script, e.prompt, [*ids(encoder, reply), encoder.special_id("<|im_end|>")])
    asker = Asker(Scripted(script, 320), encoder, tokenizer=TextTokenizer.open(tmp_path))
    answers = asker.ask(GEN, questions)
    assert [a["reply"] for a in answers] == replies
    assert [a["answer"] for a in answers] == [1, None, 3, None, 2]
    assert [a["correct"] for a in answers] == [True, False, True, False, False]
    [row] = results.rows("base", answers)
    assert row["accuracy"] == 0.4
    assert row["unparsed"] == 2
    # what begins with a letter agrees with its first token; the scripted model gives no other letter a chance
    assert [a["first_token"] for a in answers][0] == 1
    assert row["agreement"] == 2 / 5
    assert letters


def test_open_questions_have_to_be_answered_exactly(encoder, tokenizer, tmp_path):
    tokenizer.save_pretrained(tmp_path)
    questions = [question(k, answer=1) for k in range(3)]
    questions.append(question(7, choices=(), answer=None, target="42"))
    replies = [questions[0].choices[1], f"It is {questions[1].choices[1]}.", "x21 or so", "That makes 42.0"]
    script = {}
    for e, reply in zip(encoded(encoder, OPEN, questions, "chat"), replies, strict=True):
        says(script, e.prompt, [*ids(encoder, reply), encoder.special_id("<|im_end|>")])
    asker = Asker(Scripted(script, 320), encoder, form="chat", tokenizer=TextTokenizer.open(tmp_path))
    assert [a["correct"] for a in asker.ask(OPEN, questions)] == [True, True, False, True]
    assert not LETTERS.suits(questions[3])
    assert OPEN.suits(questions[3])


def test_another_order_of_the_options(encoder):
    questions = [question(k, answer=k % 4) for k in range(8)]
    always_a = Scripted({}, 320)
    asker = Asker(always_a, encoder, form="chat")
    # a model that takes the first letter whatever it says
    plain = asker.ask(LETTERS, questions)
    assert {a["answer"] for a in plain} == {0}
    turns = [asker.ask_shuffled(LETTERS, questions, turn) for turn in range(3)]
    for at, q in enumerate(questions):
        picked = [plain[at]["answer"], *(turn[at]["answer"] for turn in turns)]
        assert sorted(picked) == [0, 1, 2, 3]  # each option has been the first once
        assert [turn[at]["gold"] for turn in turns] == [q.answer] * 3
    rows = results.rows("base", [*plain, *(line for turn in turns for line in turn)])
    shuffled = rows[1]
    assert shuffled["protocol"] == "options-shuffled"
    assert shuffled["scoring"] == "paper-first-token"
    assert shuffled["same"] == 0.0
    assert shuffled["letters"] == {"A": 24}
    assert (shuffled["n"], shuffled["accuracy"]) == (8, 0.25)


def test_a_model_that_reads_the_options_is_the_same_in_every_order(encoder):
    questions = [question(k, answer=2) for k in range(4)]
    letters = protocols.letter_ids(encoder)
    script = {}
    for q in questions:
        for turn in (None, 0, 1, 2):
            by = [0, 1, 2, 3] if turn is None else asking.order(q, turn)
            moved = replace(q, choices=tuple(q.choices[k] for k in by))
            [e] = encoded(encoder, LETTERS, [moved], "chat")
            script[tuple(e.prompt)] = letters[by.index(2)]
    asker = Asker(Scripted(script, 320), encoder, form="chat")
    answers = asker.ask(LETTERS, questions)
    for turn in range(3):
        answers += asker.ask_shuffled(LETTERS, questions, turn)
    assert [row["accuracy"] for row in results.rows("base", answers)] == [1.0, 1.0]
    assert results.rows("base", answers)[1]["same"] == 1.0


def test_controls_carry_the_protocol_they_control(encoder):
    for protocol in (CLOZE, LETTERS):
        [line] = Asker(steel(), encoder).ask_blank(protocol, [question(1)])
        assert line["protocol"] == "options-only"
        assert line["scoring"] == protocol.name
        [main] = Asker(steel(), encoder).ask(protocol, [question(1)])
        assert "scoring" not in main
    assert asking.choice_of(question(1), [0.0, 1.0, 1.0, 0.0])["answer"] == 1  # a tie goes to the first


def test_a_model_that_gives_no_number_is_an_error():
    with pytest.raises(NodeError, match="NaN"):
        asking.choice_of(question(1), [float("nan"), 0, 0, 0])


def test_prompts_that_the_context_cuts_are_counted(encoder):
    questions = [question(k) for k in range(3)]
    questions[1] = replace(questions[1], question="long " * 300)
    answers = Asker(Scripted({}, 320, context=200), encoder).ask(CLOZE, questions)
    assert [a.get("prompt_tokens_cut", 0) > 1000 for a in answers] == [False, True, False]
    whole = encoded(encoder, CLOZE, questions, context=1 << 30)
    # fewer tokens than an option has, as many, one more: the prompt is cut to its end
    for context in (1, 2, 3, 4):
        lost = Asker(Scripted({}, 320, context=context), encoder).ask(CLOZE, questions)
        room = [max(1, context - max(map(len, e.options))) for e in whole]
        assert [a["prompt_tokens_cut"] for a in lost] == [
            len(e.prompt) - most for e, most in zip(whole, room, strict=True)
        ]
    [row] = results.rows("base", answers)
    assert row["prompts_cut"] == 1
    assert "prompts_cut" not in results.rows("base", [answers[0]])[0]


def test_examples_that_are_not_there_are_one_clear_line(encoder):
    asker = Asker(SimpleNamespace(config=SimpleNamespace()), encoder)
    with pytest.raises(NodeError, match="needs 5 examples a subject: benchmark numbers, subject s1 has 0"):
        asker.ask(protocols.of("official-5shot"), [question(1)])


def test_the_longest_example_goes_first_when_the_context_is_short(encoder):
    official = protocols.of("official-5shot")
    examples = tuple(question(10 + k, choices=tuple("abcd")) for k in range(5))
    examples = (*examples[:2], replace(examples[2], question="so long " * 20), *examples[3:])
    q = question(1)
    [whole] = encoded(encoder, official, [q], context=1 << 20, examples=examples)
    assert whole.shots_dropped == 0
    tokenizer = byte_tokenizer()
    [short] = encoded(encoder, official, [q], context=len(whole.prompt) - 1, examples=examples)
    assert short.shots_dropped == 1
    text = tokenizer.decode(short.prompt)
    assert "so long" not in text
    assert all(f"follows {10 + k}?" in text for k in (0, 1, 3, 4))
    assert short.cut == 0
    [tiny] = encoded(encoder, official, [q], context=40, examples=examples)
    assert (tiny.shots_dropped, tiny.cut > 0) == (5, True)
    assert tokenizer.decode(tiny.prompt).endswith("\nAnswer:")
