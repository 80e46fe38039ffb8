"""What reinforcement learning has changed: greedy replies before and after, to questions that it never asked.

The questions are held-out prompts of its own data sets, and the reported questions of benchmarks without their options,
with the text of the right option as the answer, or the number where they have no options (reader `arithmetic`). An
answer that no reward can grade is left out and counted. `exact` is the reward. `lenient` wants the answer anywhere in
the reply: it is no reward, because any list of answers would earn it, and shows how much of a gain is form.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.rewards import REWARDS, Reply, normal
from tasks.training.prompts import Line, right, subject

HELD_OUT = "held-out prompts"
_NUMBER = re.compile(r"(?:(?<![\w)])[-−])?(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)(?:\.[0-9]+)?")
"""A number in a text; behind a letter, a digit or a bracket a minus is none of its. A comma that is not before each three
digits divides two numbers."""
UNTRAINED = "held-out-facts"
"""Part of the name of a row of facts that no training text states: a control, outside of the totals."""


@dataclass(frozen=True)
class Asked:
    """A question and where it counts."""

    line: Line
    row: str


def of_benchmark(
    folder: Path, name: str, split: str, tokenizer: Path, asked_by: str
) -> tuple[list[Asked], int]:
    """The labelled questions of the reported split, asked without their options, and how many are left out because no
    reward can grade their answer."""
    import orjson

    from tasks.evaluate import benchmarks
    from tasks.tokenize.chat import render_chat
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(str(tokenizer))
    with (folder / "questions.jsonl").open("rb") as lines:
        meta = {raw["id"]: raw.get("meta") or {} for raw in map(orjson.loads, lines)}
    found, left_out = [], 0
    for q in benchmarks.reported(folder, name, split):
        # `reported` refuses questions without either
        reward, said = ("arithmetic", q.target) if q.answer is None else ("exact", q.choices[q.answer])
        answer = REWARDS[reward].gold(said)
        if answer is None:
            left_out += 1
            continue
        prompt, _ = render_chat(encoder, [{"role": "user", "content": q.question}], generation_prompt=True)
        about = subject(meta[q.id], asked_by)
        line = Line(
            id=q.id, set=name, language=q.language, about=about, prompt=prompt, answer=answer, reward=reward
        )
        found.append(Asked(line, q.row))
    return found, left_out


def graded(asked: Sequence[Asked], found: Sequence[Sequence[Reply]]) -> list[dict[str, Any]]:
    """answers.jsonl: one line a question."""
    lines = []
    for each, (reply,) in zip(asked, found, strict=True):
        line = each.line
        lines.append(
            {
                "id": line["id"], "row": each.row, "about": line["about"], "reply": reply.text,
                "ended": reply.ended, "exact": right(line, reply), "lenient": _lenient(line, reply),
            }
        )  # fmt: skip
    return lines


def _lenient(line: Line, reply: Reply) -> bool:
    """What is exact, or has the answer anywhere, both in their normal form; a number as a whole: 5 is not in 15."""
    if right(line, reply):
        return True
    text, parse = normal(reply.text) or "", REWARDS["arithmetic"].parse
    number = parse(line["answer"])
    if number is None:
        return line["answer"] in text
    return number in map(parse, _NUMBER.findall(text))


def compare(
    before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]], trained_on: set[str]
) -> list[dict[str, Any]]:
    """One row for each group of questions and measure: shares with Wilson's intervals, and McNemar's exact test."""
    from tasks.evaluate.statistics import mcnemar_exact, wilson

    rows = []
    for name, places in _groups(before, trained_on):
        for measure in ("exact", "lenient"):
            was, now = ([bool(part[i][measure]) for i in places] for part in (before, after))
            gained = sum(b and not a for a, b in zip(was, now, strict=True))
            lost = sum(a and not b for a, b in zip(was, now, strict=True))
            n = len(places)
            rows.append(
                {
                    "questions": name, "measure": measure, "n": n,
                    "before": sum(was) / n, "ci95_before": list(wilson(sum(was), n)),
                    "after": sum(now) / n, "ci95_after": list(wilson(sum(now), n)),
                    "gained": gained, "lost": lost, "p_value": mcnemar_exact(gained, lost),
                }
            )  # fmt: skip
    return rows


def _groups(answers: Sequence[Mapping[str, Any]], trained_on: set[str]) -> Iterator[tuple[str, list[int]]]:
    """(name, places) of what is reported together; no group is empty."""
    every = [i for i, a in enumerate(answers) if a["row"] != HELD_OUT and UNTRAINED not in a["row"]]
    groups = {"all open questions": every}
    for row in dict.fromkeys(a["row"] for a in answers):
        groups[row] = [i for i, a in enumerate(answers) if a["row"] == row]
    told = [i for i in every if answers[i]["about"]]
    groups["about what was asked"] = [i for i in told if answers[i]["about"] in trained_on]
    groups["about what was never asked"] = [i for i in told if answers[i]["about"] not in trained_on]
    yield from ((name, places) for name, places in groups.items() if places)
