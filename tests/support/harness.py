"""Tasks of lm-evaluation-harness on local questions: its own texts, nothing from a hub."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from tasks.evaluate.benchmarks import Question

LETTERS = "ABCD"


@dataclass(frozen=True)
class Subject:
    """One subject of one benchmark, as both sides name it."""

    family: str
    name: str
    stock: str
    """The harness's own description of the task, below its folder `tasks`."""
    split: str
    columns: tuple[str, str]
    """What it calls the question and the answer."""


SUBJECTS = (
    Subject("ceval", "accountant", "ceval/ceval-valid_accountant.yaml", "val", ("question", "answer")),
    Subject("cmmlu", "agronomy", "cmmlu/cmmlu_agronomy.yaml", "test", ("Question", "Answer")),
    Subject(
        "mmlu", "abstract_algebra", "mmlu/default/mmlu_abstract_algebra.yaml", "test", ("question", "answer")
    ),
)


def made_up(subject: Subject, count: int = 7) -> dict[str, list[Question]]:
    """Split -> questions of our own."""
    language = "en" if subject.family == "mmlu" else "zh"

    def ask(split: str, k: int) -> Question:
        text = f"{k}加{k + 2}等于几？ " if language == "zh" else f" What is {k} plus {k + 2}?"
        return Question(
            id=f"{subject.name}-{split}-{k}",
            benchmark=subject.family,
            subject=subject.name,
            split=split,
            language=language,
            question=text,
            choices=tuple(str(2 * k + d) for d in (2, 7, 1, 40)),
            answer=k % 4,
            family=subject.family,
        )

    return {
        "dev": [ask("dev", k) for k in range(5)],
        subject.split: [ask(subject.split, 9 + k) for k in range(count)],
    }


def task(subject: Subject, questions: dict[str, list[Question]], folder: Path) -> dict:
    """The stock task of the installed harness on these questions, from files of JSON lines."""
    import lm_eval
    import yaml

    stock = Path(lm_eval.__file__).parent / "tasks" / subject.stock
    config = yaml.safe_load(stock.read_text("utf-8"))
    config = yaml.safe_load((stock.parent / config.pop("include")).read_text("utf-8")) | config
    files = {}
    for split, asked in questions.items():
        path = folder / f"{subject.name}-{split}.jsonl"
        path.write_text(
            "".join(json.dumps(_row(subject, q), ensure_ascii=False) + "\n" for q in asked), "utf-8"
        )
        files[split] = str(path)
    for name in ("dataset_name", "tag", "task_alias"):
        config.pop(name, None)
    return config | {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": files},
        "task": f"local_{subject.name}",
    }


def _row(subject: Subject, question: Question) -> dict:
    asked, answer = subject.columns
    if subject.family == "mmlu":
        return {asked: question.question, "choices": list(question.choices), answer: question.answer}
    options = dict(zip(LETTERS, question.choices, strict=True))
    return {asked: question.question, **options, answer: LETTERS[question.answer]}


def scores(samples: list[dict]) -> list[list[float]]:
    """[question][option] -> log-probability, of a task's samples."""
    ordered = sorted(samples, key=lambda sample: sample["doc_id"])
    return [[float(answer[0]) for answer in sample["filtered_resps"]] for sample in ordered]
