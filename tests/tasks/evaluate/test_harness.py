"""lm-evaluation-harness beside us: the same log-probabilities by its `hf` model, and its tasks on our scorer."""

import pytest

lm_eval = pytest.importorskip(
    "lm_eval", reason="lm-evaluation-harness is an optional peer: make peers installs it"
)

from model.by_path import open_model  # noqa: E402
from tasks.evaluate import protocols  # noqa: E402
from tasks.evaluate.asking import Asker  # noqa: E402
from tests.support.architectures import random_model  # noqa: E402
from tests.support.harness import SUBJECTS, made_up, scores, task  # noqa: E402
from tests.support.tiny import byte_tokenizer, steel  # noqa: E402

pytestmark = pytest.mark.slow
LENGTH = 4096


@pytest.fixture(autouse=True)
def offline(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))


def folder_of(kind, root):
    made = (
        steel(max_position_embeddings=LENGTH)
        if kind == "steel"
        else random_model(kind, vocab_size=320, max_position_embeddings=LENGTH)
    )
    made.save_pretrained(root / kind)
    byte_tokenizer().save_pretrained(root / kind)
    return root / kind


def theirs(folder):
    from lm_eval.models.huggingface import HFLM

    return HFLM(pretrained=str(folder), device="cpu", dtype="float32", batch_size=2, max_length=LENGTH)


def run(model, tasks, shots=0):
    done = lm_eval.simple_evaluate(
        model=model, tasks=tasks, num_fewshot=shots, log_samples=True, bootstrap_iters=0
    )
    return done["samples"], done["results"]


def hold_equal(folder_or_file, their_model, tmp_path, subjects=SUBJECTS, count=7, shots=(0, 5)):
    """Every option of every question, ours against theirs."""
    opened = open_model(folder_or_file)
    for subject in subjects:
        questions = made_up(subject, count)
        local = task(subject, questions, tmp_path)
        for n in shots:
            samples, _ = run(their_model, [dict(local)], n)
            due = scores(samples[local["task"]])
            protocol = protocols.of("lm-eval-compat-5shot" if n else "lm-eval-compat")
            examples = {(subject.family, subject.name): tuple(questions["dev"])}
            asker = Asker(opened.model, opened.tokenizer, tokenizer=opened.tokenizer, examples=examples)
            got = asker.ask(protocol, questions[subject.split])
            assert len(got) == len(due) == count
            for answer, expected in zip(got, due, strict=True):
                assert answer["scores"] == pytest.approx(expected, abs=1e-5)
                assert answer["answer"] == expected.index(max(expected))


@pytest.mark.parametrize("kind", ["steel", "qwen2"])
def test_lm_eval_compat_equals_lm_eval(kind, tmp_path):
    folder = folder_of(kind, tmp_path)
    hold_equal(folder, theirs(folder), tmp_path)


ROLLING = {
    "task": "local_rolling",
    "output_type": "loglikelihood_rolling",
    "test_split": "test",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": [{"metric": "word_perplexity"}, {"metric": "bits_per_byte"}],
}
WRITTEN = {
    "task": "local_written",
    "output_type": "generate_until",
    "test_split": "test",
    "doc_to_text": "{{text}}",
    "doc_to_target": "{{text}}",
    "generation_kwargs": {"until": ["e", "\n"], "max_gen_toks": 24, "do_sample": False},
    "metric_list": [{"metric": "exact_match"}],
}


def test_three_kinds_of_task_run_on_our_scorer(tmp_path):
    from tasks.evaluate.harness import SteelLM

    folder = folder_of("qwen2", tmp_path)
    texts = tmp_path / "texts.jsonl"
    texts.write_text("".join(f'{{"text": "{"one two three " * n}four {n}"}}\n' for n in (1, 4, 30)), "utf-8")
    data = {"dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(texts)}}}
    chosen = task(SUBJECTS[0], made_up(SUBJECTS[0], 5), tmp_path)
    tasks = [chosen, ROLLING | data, WRITTEN | data]
    hf = theirs(folder)
    hf._max_length = 200  # several windows of the longest text
    ours = SteelLM(str(folder), device="cpu")
    ours.max_length = 200
    (due, due_results), (got, results) = (run(model, [dict(t) for t in tasks]) for model in (hf, ours))
    assert scores(got[chosen["task"]]) == [
        pytest.approx(row, abs=1e-5) for row in scores(due[chosen["task"]])
    ]
    for name in ("local_rolling", "local_written"):
        for a, b in zip(got[name], due[name], strict=True):
            [x], [y] = a["filtered_resps"], b["filtered_resps"]
            assert x == (pytest.approx(y, abs=1e-3) if name == "local_rolling" else y)
    for name, row in due_results.items():
        for metric, value in row.items():
            if isinstance(value, float):
                assert results[name][metric] == pytest.approx(value, rel=1e-5)
