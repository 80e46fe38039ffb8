"""clean:decontaminate: records that contain a benchmark question leave the training data.

Every record that any stage would train on (pre-training after deduplication, SFT, preferences) is
searched for every question of every benchmark in use; overlap.py says what counts. n-grams found in
more than GENERIC records are ignored as ordinary phrases.

Output: for every source and set `<name>/drops.jsonl` = clean:dedup's drops and these (with the first
`questions` they hold: benchmark and id), each with its `step`, and `<name>/accounting.json`; report.json per benchmark: questions, questions hit, records
dropped by source, examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tasks.clean import accounting, records
from tasks.clean.accounting import Accounting, StepCount
from tasks.node import Artifact, Context, Outcome

if TYPE_CHECKING:
    from tasks.clean.overlap import Index

GENERIC = 50
"""An n-gram in more records than this is a phrase of the language or of the exam, not a leak."""
EXAMPLES = 10
STEP = "decontaminate"


def body(ctx: Context) -> Outcome:
    """Search every source and set in the pool, decide here."""
    from tasks import pool

    benchmarks = {name: str(ctx.inputs[name].path / "questions.jsonl") for name in ctx.config["benchmarks"]}
    names = [*ctx.config["sources"], *ctx.config["sets"]]
    jobs = {
        name: pool.submit(
            search_records,
            ctx.inputs[name].path,
            _drops_of(ctx.inputs["dedup"], name) if name in ctx.config["sources"] else None,
            benchmarks,
            ctx.config["ngram"],
        )
        for name in names
    }
    found = {name: job.result() for name, job in jobs.items()}
    index = _index(tuple(benchmarks.items()), ctx.config["ngram"])
    hits, ignored = decide(index, found)
    accounts, report = [], _Report(index, ignored)
    for name in names:
        dedup = _drops_of(ctx.inputs["dedup"], name) if name in ctx.config["sources"] else None
        accounts.append(_write(ctx.out / name, name, dedup, found[name], hits[name], index))
        report.add(name, hits[name], ctx.inputs[name].path)
    (ctx.out / "report.json").write_bytes(orjson.dumps(report.content, option=orjson.OPT_INDENT_2))
    dropped = sum(len(ids) for ids in hits.values())
    return Outcome(
        headline=f"{dropped:,} records held benchmark questions",
        counts={
            "records_in": sum(a["records_in"] for a in accounts),
            "kept": sum(a["kept"] for a in accounts),
            "dropped": dropped,
        },
        extra={
            "questions_hit": {
                name: part["questions_hit"] for name, part in report.content["benchmarks"].items()
            }
        },
        summary=report.table() + "\n" + accounting.sources_table(accounts),
        files=["report.json"],
    )


def search_records(
    path: Path, dedup_drops: Path | None, benchmarks: Mapping[str, str], ngram: int
) -> dict[str, Any]:
    """Search one source (runs in a worker process): totals, and the records with any gram of a question."""
    index = _index(tuple(benchmarks.items()), ngram)
    gone = {line["id"] for line in records.read(dedup_drops)} if dedup_drops else set()
    result: dict[str, Any] = {"records": 0, "chars": 0, "matches": {}, "chars_of": {}}
    for record in records.read(path):
        if record["id"] in gone:
            continue
        chars = records.chars(record)
        result["records"] += 1
        result["chars"] += chars
        if match := index.search(records.whole_text(record)):
            result["matches"][record["id"]] = {number: sorted(grams) for number, grams in match.items()}
            result["chars_of"][record["id"]] = chars
    return result


def decide(
    index: Index, found: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, dict[str, list[int]]], list[str]]:
    """`{source: {record id: questions it holds}}`, and the n-grams that were too common to count."""
    from tasks.clean.overlap import is_hit

    held_by: Counter[str] = Counter()
    for source in found.values():
        for match in source["matches"].values():
            held_by.update({gram for grams in match.values() for gram in grams})
    generic = frozenset(gram for gram, count in held_by.items() if count > GENERIC)
    hits: dict[str, dict[str, list[int]]] = {}
    for name, source in found.items():
        hits[name] = {}
        for record_id, match in source["matches"].items():
            questions = [n for n, grams in match.items() if is_hit(index.questions[n], grams, generic)]
            if questions:
                hits[name][record_id] = sorted(questions)
    return hits, sorted(generic)


@lru_cache(maxsize=2)
def _index(benchmarks: Sequence[tuple[str, str]], ngram: int) -> Index:
    """Built once a worker process: artifact folders never change."""
    from tasks.clean.overlap import Index

    index = Index(ngram)
    for name, path in benchmarks:
        for question in records.read(Path(path)):
            index.add(name, question)
    return index


def _drops_of(dedup: Artifact, source: str) -> Path:
    return dedup.path / source / "drops.jsonl"


def _write(
    folder: Path,
    name: str,
    dedup: Path | None,
    found: Mapping[str, Any],
    hits: Mapping[str, list[int]],
    index: Index,
) -> dict[str, Any]:
    folder.mkdir(parents=True)
    with (folder / "drops.jsonl").open("wb") as file:
        for line in records.read(dedup) if dedup else ():
            file.write(records.dump({"id": line["id"], "step": "dedup"} | line))
        for record_id, numbers in hits.items():
            held = [(index.questions[n].benchmark, index.questions[n].id) for n in numbers[:EXAMPLES]]
            file.write(records.dump({"id": record_id, "step": STEP, "questions": held}))
    lost = sum(found["chars_of"][record_id] for record_id in hits)
    account = Accounting(
        name,
        records_in=found["records"],
        chars_in=found["chars"],
        kept=found["records"] - len(hits),
        chars_out=found["chars"] - lost,
        dropped=Counter({STEP: len(hits)}),
        steps=[
            StepCount(
                STEP,
                STEP,
                found["records"],
                found["records"] - len(hits),
                0,
                len(hits),
                found["chars"],
                found["chars"] - lost,
            )
        ],
    )
    result = account.as_json()
    (folder / "accounting.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    return result


class _Report:
    """What each benchmark has to know of the training data."""

    def __init__(self, index: Index, ignored: Sequence[str]):
        self.index = index
        self.hit: dict[str, set[str]] = defaultdict(set)
        totals = Counter(question.benchmark for question in index.questions)
        self.content: dict[str, Any] = {
            "ngram": index.ngram,
            "ignored_ngrams": {
                "count": len(ignored),
                "held_by_more_than": GENERIC,
                "examples": list(ignored[:EXAMPLES]),
            },
            "benchmarks": {
                name: {"questions": count, "questions_hit": 0, "dropped": {}, "examples": []}
                for name, count in totals.items()
            },
        }

    def add(self, source: str, hits: Mapping[str, list[int]], path: Path) -> None:
        """Count the hits of one source; fetch the text of the first few."""
        wanted: dict[str, tuple[str, str]] = {}
        for record_id, numbers in hits.items():
            for benchmark in sorted({self.index.questions[n].benchmark for n in numbers}):
                part = self.content["benchmarks"][benchmark]
                part["dropped"][source] = part["dropped"].get(source, 0) + 1
                if len(part["examples"]) + len(wanted) < EXAMPLES:
                    number = next(n for n in numbers if self.index.questions[n].benchmark == benchmark)
                    wanted[record_id] = (benchmark, self.index.questions[number].id)
            for n in numbers:
                question = self.index.questions[n]
                self.hit[question.benchmark].add(question.id)
        for benchmark, part in self.content["benchmarks"].items():
            part["questions_hit"] = len(self.hit[benchmark])
        for record in records.read(path) if wanted else ():
            if record["id"] in wanted:
                benchmark, question = wanted[record["id"]]
                example = {"source": source, "id": record["id"], "question": question}
                example["excerpt"] = accounting.excerpt(records.whole_text(record))
                self.content["benchmarks"][benchmark]["examples"].append(example)

    def table(self) -> str:
        lines = ["| benchmark | questions | found in training | records dropped |", "|---|---:|---:|---|"]
        for name, part in self.content["benchmarks"].items():
            dropped = ", ".join(f"{source} {count:,}" for source, count in part["dropped"].items()) or "–"
            lines.append(f"| {name} | {part['questions']:,} | {part['questions_hit']:,} | {dropped} |")
        return "\n".join(lines) + "\n"
