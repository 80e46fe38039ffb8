"""clean:decontaminate: records that contain a benchmark question leave the training data.

Every record that any stage would train on (pre-training after deduplication, SFT, preferences) is
searched for every question of every benchmark in use; overlap.py says what counts. n-grams found in
more than GENERIC records are ignored as ordinary phrases, unless a long stem is held whole. Searching is a partition for each part of a
source; what deduplication dropped is left out afterwards, so that a new source, which may change that,
makes nothing be searched again.

Output: for every source and set `<name>/drops.jsonl` = clean:dedup's drops and these, each with its
`step`, and these with the `questions` they hold; `<name>/hits.jsonl`, the same records with `decontaminate:
report` too, which drops none; `<name>/accounting.json`; report.json per benchmark: questions,
those hit, those not testable (nothing but ordinary phrases, or no words), records that held one and were
dropped by source, examples.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict

import orjson

from tasks.clean.shown import excerpt, sources_table
from tasks.records import account as accounts
from tasks.records import drops, parts
from tasks.records import record as records
from tasks.records.account import Accounting, SourceAccount, StepCount
from tasks.records.drops import DROPS, HITS
from tasks.records.drops import Hit as HitLine
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import partitions

if TYPE_CHECKING:
    from tasks.clean.overlap import Index

GENERIC = 50
"""An n-gram in more records than this is a phrase of the language or of the exam, not a leak."""
STEP = "decontaminate"


class Settings(Section):
    """The recipe of the node clean:decontaminate."""

    sources: list[str]
    """For pre-training,"""
    sets: list[str]
    """and for post-training."""
    benchmarks: list[str]
    ngram: int
    """Units of overlap with a question."""
    action: Literal["drop", "report"]
    examples: int
    """Kept of each benchmark."""


class Match(TypedDict):
    """A line of matches.jsonl: a record with any gram of a question."""

    id: str
    chars: int
    offset: int
    """Where its line starts in the part."""
    grams: list[tuple[int, list[str]]]
    """[number of the question in the index, the grams of it that the record holds]"""


@dataclass(frozen=True)
class Hit:
    """A record that holds benchmark questions."""

    questions: list[int]
    """Their numbers in the index."""
    chars: int
    path: Path
    offset: int
    """Where its line starts in the part at `path`."""


@dataclass(frozen=True)
class Searched:
    """A part of a source, and the folder of what was found in it."""

    path: Path
    folder: Path


def body(ctx: Context) -> Outcome:
    """Search the parts that have not been searched for these questions, decide here."""
    settings: Settings = ctx.config
    names = [*settings.sources, *settings.sets]
    asked = {name: parts.digested(ctx.inputs[name], "questions")[0] for name in settings.benchmarks}
    benchmarks = {name: str(path) for name, (path, _) in asked.items()}
    digests = [[name, digest] for name, (_, digest) in asked.items()]
    read = [(name, *part) for name in names for part in parts.digested(ctx.inputs[name])]
    jobs = [
        partitions.Job(
            partitions.key(search_part, digests, settings.ngram, digest),
            search_part,
            (path, benchmarks, settings.ngram),
        )
        for _, path, digest in read
    ]
    searched: dict[str, list[Searched]] = {name: [] for name in names}
    for (name, path, _), folder in zip(read, partitions.run(ctx, jobs), strict=True):
        searched[name].append(Searched(path, folder))
    dedup = {name: ctx.inputs["dedup"].path / name for name in settings.sources}
    index = index_of(tuple(benchmarks.items()), settings.ngram)
    hits, ignored = decide(index, searched, dedup)
    dropping = settings.action == "drop"
    made, report = [], Report(index, ignored, dropping, settings.examples)
    for name in names:
        totals = totals_of(name, searched[name], dedup.get(name))
        made.append(write(ctx.out / name, name, dedup.get(name), totals, hits[name], index, dropping))
        report.add(name, hits[name])
    (ctx.out / "report.json").write_bytes(orjson.dumps(report.content, option=orjson.OPT_INDENT_2))
    held = sum(map(len, hits.values()))
    return Outcome(
        headline=f"{held:,} records held benchmark questions" + ("" if dropping else ", and were kept"),
        counts={
            "records_in": sum(a["records_in"] for a in made),
            "kept": sum(a["kept"] for a in made),
            "held": held,
            "dropped": held if dropping else 0,
        },
        extra={
            "questions_hit": {
                name: part["questions_hit"] for name, part in report.content["benchmarks"].items()
            }
        },
        summary=report.table() + "\n" + sources_table(made),
        files=["report.json", *(f"{name}/{accounts.FILE}" for name in names)],
    )


def search_part(out: Path, path: Path, benchmarks: Mapping[str, str], ngram: int) -> None:
    """Job: totals.json of a part, and matches.jsonl, its records with any gram of a question."""
    index = index_of(tuple(benchmarks.items()), ngram)
    totals = {"records": 0, "chars": 0}
    offset = 0
    with (out / "matches.jsonl").open("wb") as file:
        for line in parts.lines(path):
            record = orjson.loads(line)
            chars = records.chars(record)
            totals["records"] += 1
            totals["chars"] += chars
            if match := index.search(records.whole_text(record)):
                grams = [(number, sorted(grams)) for number, grams in sorted(match.items())]
                file.write(records.dump(Match(id=record["id"], chars=chars, offset=offset, grams=grams)))
            offset += len(line)
    (out / "totals.json").write_bytes(orjson.dumps(totals))


def decide(
    index: Index, searched: Mapping[str, Sequence[Searched]], dedup: Mapping[str, Path]
) -> tuple[dict[str, dict[str, Hit]], list[str]]:
    """`{source: {record id: hit}}`, and the n-grams that were too common to count.

    `dedup`: the folder of clean:dedup's drops of a source, which are no training data any more.
    """
    from tasks.clean.overlap import is_hit

    gone = {name: _gone(searched[name], folder) for name, folder in dedup.items()}
    held_by: Counter[str] = Counter()
    for name, some in searched.items():
        for _, match in _matches(some, gone.get(name, frozenset())):
            held_by.update({gram for _, grams in match["grams"] for gram in grams})
    generic = frozenset(gram for gram, count in held_by.items() if count > GENERIC)
    hits: dict[str, dict[str, Hit]] = {}
    for name, some in searched.items():
        hits[name] = {}
        for path, match in _matches(some, gone.get(name, frozenset())):
            questions = [n for n, grams in match["grams"] if is_hit(index.questions[n], grams, generic)]
            if questions:
                hits[name][match["id"]] = Hit(questions, match["chars"], path, match["offset"])
    return hits, sorted(generic)


def totals_of(name: str, searched: Sequence[Searched], dedup: Path | None) -> dict[str, int]:
    """Records and characters that are training data before this step; `searched` counts also dropped copies."""
    counted = [orjson.loads((part.folder / "totals.json").read_bytes()) for part in searched]
    totals = {key: sum(part[key] for part in counted) for key in ("records", "chars")}
    totals["searched"] = totals["records"]
    if dedup is None:
        return totals
    account: SourceAccount = accounts.read(dedup)
    if account["records_in"] != totals["records"]:
        raise NodeError(
            f"{name}: {totals['records']:,} records were searched, but clean:dedup counted {account['records_in']:,}"
        )
    return totals | {"records": account["kept"], "chars": account["chars_out"]}


def _matches(searched: Sequence[Searched], gone: Set[bytes] = frozenset()) -> Iterator[tuple[Path, Match]]:
    for part in searched:
        for match in drops.without(records.read(part.folder / "matches.jsonl"), gone):
            yield part.path, match


def _gone(searched: Sequence[Searched], dedup: Path) -> Set[bytes]:
    """Of the records with matches those that deduplication dropped."""
    matching = {records.id_bytes(match) for _, match in _matches(searched)}
    return matching.intersection(drops.read_ids(dedup / DROPS))


@lru_cache(maxsize=2)
def index_of(benchmarks: Sequence[tuple[str, str]], ngram: int) -> Index:
    """Built once a worker process: artifact folders never change."""
    from tasks.clean.overlap import Index

    index = Index(ngram)
    for name, path in benchmarks:
        for question in records.read(Path(path)):
            index.add(name, question)
    return index


def write(
    folder: Path,
    name: str,
    dedup: Path | None,
    totals: Mapping[str, int],
    hits: Mapping[str, Hit],
    index: Index,
    dropping: bool,
) -> SourceAccount:
    """drops.jsonl, hits.jsonl and accounting.json of one source; returns the account.

    NodeError if the drops, read back, do not leave as many records as were counted.
    """
    folder.mkdir(parents=True)
    lines = []
    for record_id, hit in hits.items():
        asked = [index.questions[n] for n in hit.questions]
        lines.append(
            HitLine(id=record_id, questions=[[question.benchmark, question.id] for question in asked])
        )
    with (folder / DROPS).open("wb") as file:
        for line in records.read(dedup / DROPS) if dedup else ():
            if line["id"] in hits:
                raise NodeError(f"{name}: record {line['id']} was dropped by clean:dedup already")
            file.write(records.dump({"id": line["id"], "step": "dedup"} | line))
        for line in lines if dropping else ():
            file.write(records.dump({"id": line["id"], "step": STEP} | line))
    (folder / HITS).write_bytes(b"".join(map(records.dump, lines)))
    lost = len(hits) if dropping else 0
    lost_chars = sum(hit.chars for hit in hits.values()) if dropping else 0
    reached, chars = totals["records"], totals["chars"]
    listed = Counter(line["step"] for line in records.read(folder / DROPS))
    kept = totals["searched"] - listed.total()
    if (totals["searched"] - listed["dedup"], listed[STEP]) != (reached, lost):
        raise NodeError(
            f"{name}: of {totals['searched']:,} records {reached:,} are left by clean:dedup and {lost:,} held "
            f"questions, but drops.jsonl lists {dict(listed)}"
        )
    step = StepCount(STEP, STEP, reached, reached - lost, 0, lost, chars, chars - lost_chars)
    account = Accounting(
        name,
        records_in=reached,
        chars_in=chars,
        kept=kept,
        chars_out=step.chars_out,
        dropped=Counter({STEP: lost}),
        steps=[step],
    )
    result = account.as_json()
    accounts.write(folder, result)
    return result


class Report:
    """What each benchmark has to know of the training data."""

    def __init__(self, index: Index, ignored: Sequence[str], dropping: bool, examples: int):
        from tasks.clean.overlap import is_testable

        self.index, self.most = index, examples
        self.hit: dict[str, set[str]] = defaultdict(set)
        totals = Counter(question.benchmark for question in index.questions) + index.empty
        generic = frozenset(ignored)
        untestable = index.empty + Counter(
            question.benchmark for question in index.questions if not is_testable(question, generic)
        )
        self.content: dict[str, Any] = {
            "ngram": index.ngram,
            "action": "drop" if dropping else "report",
            "ignored_ngrams": {
                "count": len(ignored),
                "held_by_more_than": GENERIC,
                "examples": list(ignored[:examples]),
            },
            "benchmarks": {
                name: {
                    "questions": count,
                    "questions_hit": 0,
                    "questions_not_testable": untestable[name],
                    "held": {},
                    "dropped": {},
                    "examples": [],
                }
                for name, count in totals.items()
            },
        }

    def add(self, source: str, hits: Mapping[str, Hit]) -> None:
        """Count the hits of one source; fetch the text of the first few."""
        for record_id, hit in hits.items():
            first: dict[str, str] = {}
            for n in hit.questions:
                question = self.index.questions[n]
                first.setdefault(question.benchmark, question.id)
                self.hit[question.benchmark].add(question.id)
            for benchmark, question_id in sorted(first.items()):
                part = self.content["benchmarks"][benchmark]
                part["held"][source] = part["held"].get(source, 0) + 1
                if len(part["examples"]) < self.most:
                    text = excerpt(records.whole_text(_read_at(hit.path, hit.offset)))
                    example = {"source": source, "id": record_id, "question": question_id, "excerpt": text}
                    part["examples"].append(example)
        for benchmark, part in self.content["benchmarks"].items():
            part["questions_hit"] = len(self.hit[benchmark])
            part["dropped"] = dict(part["held"]) if self.content["action"] == "drop" else {}

    def table(self) -> str:
        """Markdown: one line per benchmark."""
        fate = "dropped" if self.content["action"] == "drop" else "that hold one (kept)"
        lines = [
            f"| benchmark | questions | found in training | not testable | records {fate} |",
            "|---|---:|---:|---:|---|",
        ]
        for name, part in self.content["benchmarks"].items():
            held = ", ".join(f"{source} {count:,}" for source, count in part["held"].items()) or "–"
            lines.append(
                f"| {name} | {part['questions']:,} | {part['questions_hit']:,} "
                f"| {part['questions_not_testable']:,} | {held} |"
            )
        return "\n".join(lines) + "\n"


def _read_at(path: Path, offset: int) -> records.Record:
    with path.open("rb") as file:
        file.seek(offset)
        return orjson.loads(file.readline())
