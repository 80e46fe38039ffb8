"""What is asked, and that a scripted model with a known answer key gets exactly its score."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from tasks.evaluate import protocols, results, scorer
from tasks.evaluate.benchmarks import Question
from tests.posttrain.tiny import byte_tokenizer, qwen2


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def question(k, language="en", answer=0, **more):
    text = f"Which number follows {k}?" if language == "en" else f"{k}的后面是几？"
    choices = tuple(f"{w}{k + d}" for w, d in zip("wxyz", (1, 20, 300, 4000), strict=True))
    return Question(
        id=f"q{k}",
        benchmark="numbers",
        subject=f"s{k % 2}",
        split="val",
        language=language,
        question=text,
        choices=choices,
        answer=answer,
        **more,
    )


class Scripted(nn.Module):
    """Knows what comes after certain beginnings, and nothing else."""

    def __init__(self, script, vocab_size):
        super().__init__()
        self.script = script
        self.config = SimpleNamespace(ffn="prefix", max_position_embeddings=4096)
        self.head = nn.Linear(vocab_size, vocab_size, bias=False)
        nn.init.eye_(self.head.weight)

    def get_output_embeddings(self):
        return self.head

    def base_model(self, input_ids, use_cache=False):
        hidden = torch.zeros(*input_ids.shape, self.head.in_features)
        for row, ids in enumerate(input_ids.tolist()):
            for end in range(1, len(ids) + 1):
                if (target := self.script.get(tuple(ids[:end]))) is not None:
                    hidden[row, end - 1, target] = 20.0
        return SimpleNamespace(last_hidden_state=hidden)


def test_the_letters_of_a_scripted_key_give_exactly_its_score(tokenizer):
    questions = [question(k, answer=k % 4) for k in range(12)]
    said = [k % 4 if k < 9 else (k + 1) % 4 for k in range(12)]  # nine right, three wrong
    letters = protocols.letter_ids(tokenizer)
    prompts = protocols.lettered(tokenizer, questions)
    model = Scripted({tuple(p): letters[s] for p, s in zip(prompts, said, strict=True)}, 320)

    scores = scorer.ask(model, tokenizer, questions, "paper-first-token", "chat")
    answers = [
        scorer.answer(q, s, "paper-first-token", "chat", False)
        for q, s in zip(questions, scores, strict=True)
    ]
    [row] = results.rows("base", answers)
    assert [a["answer"] for a in answers] == said
    assert row["accuracy"] == 0.75
    assert row["n"] == 12
    assert row["subjects"] == {"s0": {"accuracy": 5 / 6, "n": 6}, "s1": {"accuracy": 4 / 6, "n": 6}}


@pytest.mark.parametrize("form", ["plain", "chat"])
@pytest.mark.parametrize("language", ["zh", "en"])
def test_a_scripted_key_by_cloze(tokenizer, form, language):
    questions = [question(k, language, answer=k % 4) for k in range(8)]
    said = [k % 4 if k != 3 else 0 for k in range(8)]
    prompts, options = protocols.cloze(tokenizer, questions, form)
    script = {}
    for prompt, choices, pick in zip(prompts, options, said, strict=True):
        for end in range(len(choices[pick])):
            script[tuple(prompt + choices[pick][:end])] = choices[pick][end]
    scores = scorer.ask(Scripted(script, 320), tokenizer, questions, "cloze", form)
    assert [s.index(max(s)) for s in scores] == said


def test_cloze_is_normalised_by_the_options_length(tokenizer):
    model = qwen2()
    [q] = [question(5)]
    [prompt], [options] = protocols.cloze(tokenizer, [q], "plain")
    [scores] = scorer.ask(model, tokenizer, [q], "cloze", "plain")
    ids = torch.tensor([prompt + options[3]])
    with torch.inference_mode():
        logp = model(input_ids=ids).logits[0].log_softmax(-1)
    whole = sum(float(logp[len(prompt) + i - 1, t]) for i, t in enumerate(options[3]))
    assert scores[3] == pytest.approx(whole / len(options[3]), abs=1e-5)


def test_prompt_and_option_join_to_the_text_that_training_would_tokenize(tokenizer):
    q = question(7, "zh")
    for form in ("plain", "chat"):
        [prompt], [options] = protocols.cloze(tokenizer, [q], form)
        for ids, choice in zip(options, q.choices, strict=True):
            text = tokenizer.decode(prompt + ids)
            assert text.endswith(choice)
            assert tokenizer.encode(text, add_special_tokens=False) == prompt + ids
        assert len({tuple(prompt + o) for o in options}) == 4


def test_the_plain_form_has_no_chat_tokens_and_the_chat_form_has(tokenizer):
    q = question(7)
    [plain], _ = protocols.cloze(tokenizer, [q], "plain")
    [chat], _ = protocols.cloze(tokenizer, [q], "chat")
    start = tokenizer.convert_tokens_to_ids("<|im_start|>")
    assert start not in plain
    assert chat.count(start) == 2


def test_the_papers_prompt(tokenizer):
    zh, en = protocols.lettered(tokenizer, [question(1, "zh"), question(1, "en")])
    zh, en = tokenizer.decode(zh), tokenizer.decode(en)
    assert "以下是一道单选题:\n1的后面是几？\n\nA. w2\nB. x21\nC. y301\nD. z4001\n请给出答案。\n" in zh
    assert zh.startswith("<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n")
    assert zh.endswith("<|im_start|>assistant\n")
    assert "单选题" not in en
    assert "A. w2\nB. x21" in en


def test_blank_prompts_hide_the_question_and_keep_the_options(tokenizer):
    questions = [question(k) for k in (1, 2)]
    for form in ("plain", "chat"):
        prompts, options = protocols.cloze(tokenizer, questions, form, blank=True)
        assert prompts[0] == prompts[1]
        assert options == protocols.cloze(tokenizer, questions, form)[1]
    blank = tokenizer.decode(protocols.lettered(tokenizer, questions, blank=True)[0])
    assert "follows" not in blank
    assert "D. z4001" in blank


def test_a_tokenizer_without_letters_is_refused():
    class Odd:
        def encode(self, text, add_special_tokens):
            return [1, 2]

    with pytest.raises(ValueError, match="single token"):
        protocols.letter_ids(Odd())


def test_controls_carry_the_protocol_they_control():
    line = scorer.answer(question(1), [0.0, 1.0, 1.0, 0.0], "cloze", "plain", blank=True)
    assert line["protocol"] == "options-only"
    assert line["scoring"] == "cloze"
    assert line["answer"] == 1  # a tie goes to the first
    main = scorer.answer(question(1), [1.0, 0.0, 0.0, 0.0], "cloze", "plain", blank=False)
    assert "scoring" not in main
    assert main["correct"]


def test_a_model_that_gives_no_number_is_an_error():
    from tasks.node import NodeError

    with pytest.raises(NodeError, match="NaN"):
        scorer.answer(question(1), [float("nan"), 0, 0, 0], "cloze", "plain", False)
