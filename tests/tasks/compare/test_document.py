"""Scripted models come out of the table with exactly the scores that they were given."""

import hashlib

import pytest

from tasks.compare import document
from tasks.evaluate import protocols, results
from tasks.evaluate.asking import Asker
from tests.support.questions import Scripted, question, says

PROTOCOL = "paper-first-token"
QUESTIONS = [question(k, answer=(k * 7) % 4) for k in range(60)]


def keyed_noise(k, share=0.4):
    """Right for a share of the questions, drawn by a hash; else the next letter."""
    drawn = int.from_bytes(hashlib.sha256(f"{k}".encode()).digest()[:4], "big") / 2**32
    return QUESTIONS[k].answer if drawn < share else (QUESTIONS[k].answer + 1) % 4


MODELS = {
    "always A": lambda k: 0,
    "answer key": lambda k: QUESTIONS[k].answer,
    "noise": keyed_noise,
    "leaked": lambda k: QUESTIONS[k].answer if k < 30 else (QUESTIONS[k].answer + 1 + k % 3) % 4,
}


@pytest.fixture(scope="module")
def answers(encoder_module):
    protocol = protocols.of(PROTOCOL)
    found = {}
    for name, said in MODELS.items():
        script = {}
        asker = Asker(Scripted(script, 320), encoder_module)
        letters = protocols.letter_ids(encoder_module)
        for k, encoded in enumerate(asker._encoded(protocol, QUESTIONS)):
            says(script, encoded.prompt, [letters[said(k)]])
        found[name] = asker.ask(protocol, QUESTIONS)
    return found


@pytest.fixture(scope="module")
def encoder_module(tmp_path_factory):
    from tasks.tokenize.encode import Encoder
    from tests.support.tiny import byte_tokenizer

    folder = tmp_path_factory.mktemp("tokenizer")
    byte_tokenizer().save_pretrained(folder)
    return Encoder(folder)


def told(answers, held=None):
    recipe = {"protocols": {PROTOCOL: protocols.of(PROTOCOL).digest}}
    models = {
        name: {
            "files": {"model.safetensors": name},
            "recipe": recipe,
            "answers": some,
            "rows": results.rows(name, some),
        }
        for name, some in answers.items()
    }
    return document.document(models, {"numbers": "0" * 64}, held, {"profile": "test"})


def test_scripted_models_have_exactly_their_scores(answers):
    rows = {name: model["rows"][0] for name, model in told(answers)["models"].items()}
    right = {name: sum(said(k) == q.answer for k, q in enumerate(QUESTIONS)) for name, said in MODELS.items()}
    assert right["answer key"] == 60
    assert right["noise"] == sum(keyed_noise(k) == q.answer for k, q in enumerate(QUESTIONS)) != 24 + 36
    for name, row in rows.items():
        assert row["accuracy"] == right[name] / 60
        assert row["ci95"][0] <= row["accuracy"] <= row["ci95"][1]
    assert rows["always A"]["favourite"] == "A"
    assert rows["always A"]["favourite_share"] == 1.0
    assert rows["answer key"]["favourite_share"] < 0.3
    low, high = rows["noise"]["ci95"]
    assert low < 0.4 < high


def test_pairs_are_tested_question_by_question(answers):
    [pair] = [p for p in told(answers)["pairs"] if (p["a"], p["b"]) == ("answer key", "noise")]
    wrong = sum(keyed_noise(k) != q.answer for k, q in enumerate(QUESTIONS))
    assert (pair["only_a"], pair["only_b"], pair["n"]) == (wrong, 0, 60)
    assert pair["p_value"] == pytest.approx(2 * 0.5**wrong)


def test_leaked_questions_are_exposed(answers):
    held = {"questions": {"numbers": {q.id: ["page"] for q in QUESTIONS[:30]}}}
    rows = {name: model["rows"][0] for name, model in told(answers, held)["models"].items()}
    leaked = rows["leaked"]
    assert leaked["held"]["accuracy"] == 1.0
    assert leaked["not_held"]["accuracy"] == 0.0
    assert leaked["held_p_value"] < 1e-9
    assert rows["noise"]["held_p_value"] > 0.01
    assert rows["answer key"]["held_p_value"] == 1.0


def test_fishers_test_is_scipys():
    from scipy.stats import fisher_exact

    for right_a, n_a, right_b, n_b in ((3, 10, 9, 10), (0, 5, 5, 5), (40, 100, 55, 120), (7, 7, 1, 9)):
        due = fisher_exact([[right_a, n_a - right_a], [right_b, n_b - right_b]]).pvalue
        assert document.fisher_exact(right_a, n_a, right_b, n_b) == pytest.approx(due)
    assert document.fisher_exact(0, 0, 3, 5) == 1.0


def test_every_answer_and_the_whole_are_hashed(answers):
    made = told(answers)
    line = made["models"]["noise"]["answers"][0]
    digest = protocols.of(PROTOCOL).digest
    assert line["sha256"] == document.answer_hash({"model.safetensors": "noise"}, digest, line)
    assert document.whole_hash(made) == made["sha256"]
    line["scores"][0] += 1e-6
    assert line["sha256"] != document.answer_hash({"model.safetensors": "noise"}, digest, line)
    assert document.whole_hash(made) != made["sha256"]


def test_replies_are_counted_as_read_and_as_refused():
    lines = [
        {"reply": "B", "parsed": True},
        {"reply": "我不知道。", "parsed": False},
        {"reply": "As an AI I have no opinion", "parsed": False},
        {"reply": "苹果", "parsed": False},
    ]
    assert document.replies_told(lines) == {"parse_rate": 0.25, "refusal_rate": 0.5}
