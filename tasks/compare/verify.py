"""Whether a truth table is true: its hashes, and a random sample of its answers asked again.

What another machine needs: the models (files with the same sha256), the benchmarks' own files, and this code with the
same protocols. Rounding differs between machines, so log-probabilities may be SCORES apart, and an answer counts as
another only where the two likeliest options are further apart than that.
"""

from __future__ import annotations

import random
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from tasks.compare import answer, document
from tasks.convert.job import Reading, Settings
from tasks.convert.source import convert_source
from tasks.evaluate import protocols, scorer
from tasks.evaluate.asking import CONTROL, SHUFFLED, Answer
from tasks.settings import profiles
from tasks.settings.errors import NodeError
from tasks.stage.store import file_digest

SCORES = 1e-3
"""Nats."""


@dataclass
class Verdict:
    """What came out."""

    lines: list[str]
    agrees: bool


def verify(
    file: str | Path,
    folder: str | Path,
    models: Mapping[str, str],
    sample: int = 50,
    seed: int | None = None,
    profile: str = "compare",
) -> Verdict:
    """Check a truth-table.json. `folder`: the benchmarks; `models`: paths of the models here, by name; `sample`:
    answers of each; `profile`: whose sources say how the benchmarks are read. NodeError where it cannot be checked."""
    told = _read(Path(file))
    lines: list[str] = []
    good = _hashes(told, lines)
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory(prefix="steel-verify-") as work:
        folders = _questions(told, Path(folder), Path(work), profile)
        for name, model in told["models"].items():
            if name not in models:
                lines.append(f"{name}: not asked again (give MODELS='{name}=path')")
                continue
            path = Path(models[name])
            if (files := answer.identity(path)) != model["files"]:
                lines.append(f"{name}: DIFFERS: {path} holds other files: {_other(files, model['files'])}")
                good = False
                continue
            chosen = draw.sample(model["answers"], min(sample, len(model["answers"])))
            apart = _asked_again(model, path, chosen, folders)
            good = good and not apart
            state = f"DIFFERS in {len(apart)}" if apart else "agrees"
            lines.append(f"{name}: {state} of {len(chosen)} answers asked again")
            lines += [f"  {line}" for line in apart[:10]]
    lines.append("agree" if good else "differ")
    return Verdict(lines, good)


def _read(file: Path) -> dict[str, Any]:
    try:
        told = orjson.loads(file.read_bytes())
    except (OSError, ValueError) as error:
        raise NodeError(f"{file} is no truth table: {error}") from error
    if not isinstance(told, dict) or told.get("format") != document.FORMAT:
        raise NodeError(f"{file} is no truth table of format {document.FORMAT}")
    return told


def _hashes(told: Mapping[str, Any], lines: list[str]) -> bool:
    """The hash of the whole, of every answer, and of every protocol."""
    good = document.whole_hash(told) == told["sha256"]
    lines.append(f"sha256 of the whole: {'agrees' if good else 'DIFFERS'}")
    for name, model in told["models"].items():
        asked = model["recipe"]["protocols"]
        wrong = [
            a
            for a in model["answers"]
            if document.answer_hash(model["files"], asked[a.get("scoring") or a["protocol"]], a)
            != a["sha256"]
        ]
        lines.append(f"{name}: hashes of {len(model['answers']):,} answers: {len(wrong) or 'none'} wrong")
        good = good and not wrong
        for protocol, digest in asked.items():
            if protocols.of(protocol).digest != digest:
                raise NodeError(
                    f"{name}: {protocol} asks otherwise here: take the code that the table was made with"
                )
    return good


def _other(here: Mapping[str, str], there: Mapping[str, str]) -> str:
    return ", ".join(name for name in sorted(here.keys() | there.keys()) if here.get(name) != there.get(name))


def _questions(told: Mapping[str, Any], folder: Path, work: Path, profile: str) -> dict[str, Path]:
    """Benchmark -> folder of its questions, converted anew and held against the table's digest."""
    config = profiles.load(profile)
    folders = {}
    for name, digest in told["benchmarks"].items():
        source = config.sources.get(name)
        if source is None:
            raise NodeError(f"profile {profile} has no benchmark {name}")
        raw = folder / source.dataset
        if not raw.is_dir():
            raise NodeError(f"BENCHMARKS={folder}: no {source.dataset!r} in it (benchmark {name})")
        out = work / name
        out.mkdir()
        settings = Settings(source=Reading.of(source), **config.convert.model_dump())
        files = sorted({str(p.relative_to(raw)) for pattern in source.files for p in raw.glob(pattern)})
        convert_source(raw, out, name, settings, files)
        if file_digest(out / "questions.jsonl") != digest:
            raise NodeError(f"benchmark {name} has other questions here than in the table")
        folders[name] = out
    return folders


def _asked_again(
    model: Mapping[str, Any], path: Path, chosen: Sequence[Answer], folders: Mapping[str, Path]
) -> list[str]:
    """A line for each answer that came out otherwise."""
    recipe = answer.Recipe.model_validate(model["recipe"])
    questions = {q.id: q for q in answer.asked(recipe, folders)}
    task = answer.task_of(recipe, path, (), folders, "auto")
    asker = scorer.opened(task)
    apart = []
    groups: dict[tuple[str, str], list[Answer]] = {}
    for line in chosen:
        groups.setdefault((line.get("scoring") or line["protocol"], line["protocol"]), []).append(line)
    for (name, kind), due in groups.items():
        protocol = protocols.of(name)
        asked = [questions[line["id"]] for line in due]
        if kind == CONTROL:
            got = asker.ask_blank(protocol, asked)
        elif kind == SHUFFLED:
            got = [
                _in_order(asker, protocol, q, line, recipe.shuffles)
                for q, line in zip(asked, due, strict=True)
            ]
        else:
            got = asker.ask(protocol, asked, prior=task.prior)
        for here, there in zip(got, due, strict=True):
            if reason := differs(here, there):
                apart.append(f"{there['benchmark']} {there['id']} by {kind} ({name}): {reason}")
    return apart


def _in_order(asker: Any, protocol: Any, question: Any, line: Answer, turns: int) -> Answer:
    for turn in range(turns):
        [found] = asker.ask_shuffled(protocol, [question], turn)
        if found["order"] == line["order"]:
            return found
    raise NodeError(f"question {question.id} is not asked in the order {line['order']}")


def differs(here: Answer, there: Answer) -> str:
    """How an answer differs from the table's; "" where only rounding does."""
    if "scores" in there:
        apart = max(abs(a - b) for a, b in zip(here["scores"], there["scores"], strict=True))
        if apart > SCORES:
            return f"log-probabilities are {apart:.2g} apart"
        best = sorted(there["scores"])[-2:]
        close = len(best) > 1 and best[1] - best[0] <= 2 * SCORES
        return "" if close or here["answer"] == there["answer"] else "another option"
    return "" if here.get("reply") == there.get("reply") else "another reply"
