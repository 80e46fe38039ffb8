"""`make trace ID=…`: what became of one record, from its raw file to the rows of a shard.

The query is a record id or its first digits (8 at least), `FILE:POSITION` in the raw data, or a piece of
text. The answer is read from the newest artifacts of a profile (tasks/inspect/artifacts.py); no server is needed.
A look-up scans the records: seconds a gigabyte.
"""

from __future__ import annotations

import mmap
import re
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import orjson

from tasks.records import drops, parts
from tasks.records.drops import DROPS, HITS, Copy, Hit, NotClean
from tasks.records.record import Question, Record, chars, line_start, whole_text
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.names import stage_of, unit_of
from tasks.stage.node import Artifact

ID = re.compile(r"[0-9a-f]{8,32}")
PLACE = re.compile(r".+:[0-9]+")
LEAST = 4
"""Bytes of a query in UTF-8: four Latin letters, or two Chinese characters."""
MOST = 5
"""Records that are reported when several match."""
SHOWN = 100
"""Characters of a text."""
Nodes = Mapping[str, Artifact]


@dataclass
class Match:
    """A line of convert's output that matches."""

    source: str
    where: Literal["records", "dropped", "quarantine"]
    line: Any
    """A record or question, a `drops.NotConverted`, or a line of quarantine.jsonl."""


def trace(query: str, config: SteelRun, nodes: Nodes) -> list[str]:
    """The story of every record that matches (at most MOST), as lines of text. NodeError when none does."""
    query = query.strip()
    if len(query.encode()) < LEAST:
        wanted = "a record id or its first 8 digits, FILE:POSITION, or a piece of text"
        raise NodeError(f"give an ID: {wanted} (four letters or two Chinese characters at least)")
    if not any(name.startswith("convert:") for name in nodes):
        raise NodeError(f"profile {config.profile!r} has no finished convert node here: `make run` makes one")
    matches = find(query, nodes)
    if not matches:
        raise NodeError(f"no record of profile {config.profile!r} matches {query!r}")
    lines: list[str] = []
    for match in matches[:MOST]:
        lines += [*_story(match, config, nodes), ""]
    if len(matches) > MOST:
        lines.append("more match: give more digits of the id, or FILE:POSITION")
    return lines


def find(query: str, nodes: Nodes) -> list[Match]:
    """Matching records, and what convert dropped or set aside; up to MOST + 1 of them.

    A query in the form of an id or a place is looked up as one first, and as text when no record has it:
    texts hold dates and times.
    """
    kind = "id" if ID.fullmatch(query) else "place" if PLACE.fullmatch(query) else "text"
    matches = _find(query, kind, nodes)
    return matches if matches or kind == "text" else _find(query, "text", nodes)


def _find(query: str, kind: str, nodes: Nodes) -> list[Match]:
    matches: list[Match] = []
    seen = set()
    for name, artifact in nodes.items():
        if not name.startswith("convert:"):
            continue
        source = unit_of(name)
        for match in _matches(source, artifact.path, query, kind):
            # a duplicate is reported with the record that it repeats
            key = (source, match.line.get("id") or (match.line["file"], match.line["position"]))
            if key not in seen:
                seen.add(key)
                matches.append(match)
            if len(matches) > MOST:
                return matches
    return matches


def _matches(source: str, folder: Path, query: str, kind: str) -> Iterator[Match]:
    text = orjson.dumps(query)[1:-1]
    needle = {"id": line_start(query), "place": b'"at":"' + text + b'"', "text": text}[kind]
    for path in _record_files(folder):
        yield from (Match(source, "records", line) for line in _lines_with(path, needle))
    yield from (Match(source, "dropped", line) for line in _lines_with(folder / "dropped.jsonl", needle))
    if kind == "id":
        return
    aside = text
    if kind == "place":
        file, _, position = query.rpartition(":")
        aside = b'{"file":' + orjson.dumps(file) + b',"position":' + position.encode() + b","
    yield from (Match(source, "quarantine", line) for line in _lines_with(folder / "quarantine.jsonl", aside))


def _record_files(folder: Path) -> list[Path]:
    questions = folder / "questions.jsonl"
    return [questions] if questions.exists() else parts.parts(folder)


def _lines_with(path: Path, needle: bytes) -> Iterator[Any]:
    """The lines of a JSON-lines file that hold some bytes."""
    if not path.exists() or not path.stat().st_size:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        at = whole.find(needle)
        while at >= 0:
            start = whole.rfind(b"\n", 0, at) + 1
            end = whole.find(b"\n", at)
            end = len(whole) if end < 0 else end
            yield orjson.loads(whole[start:end])
            at = whole.find(needle, end)


# ------------------------------------------------------------------------------------- the story
def _story(match: Match, config: SteelRun, nodes: Nodes) -> Iterator[str]:
    source, line = match.source, match.line
    if match.where == "quarantine":
        yield f"{source}, no record: it could not be read"
        yield _said("raw", _raw(nodes, source, f"{line['file']}:{line['position']}"))
        detail = f" ({line['detail']})" if line.get("detail") else ""
        count = f", {line['records']:,} records" if line.get("records") else ""
        yield _said("convert", f"quarantined: {line['reason']}{detail}{count}")
        yield _said("", f"«{_short(line['excerpt'])}»")
        return
    record = line if match.where == "records" else _by_id(nodes, source, line["id"])
    yield f"{line['id']}  {source}"
    if record is None:
        yield _said("raw", _raw(nodes, source, line["at"]))
        yield _said("convert", f"dropped: {line['operator']}")
        yield _said("", f"«{_short(line['excerpt'])}»")
        return
    yield _said("raw", _raw(nodes, source, record["meta"]["at"]))
    kind = record["kind"] if "kind" in record else f"question of {record['subject']}, {record['split']}"
    yield _said("convert", f"kept: {kind}, {record['language']}, {chars(record):,} characters")
    yield _said("", f"«{_short(whole_text(record))}»")
    dropped = nodes[f"convert:{source}"].path / "dropped.jsonl"
    for twin in _lines_with(dropped, line_start(record["id"])):
        yield _said("", f"again at {twin['at']}: dropped there ({twin['operator']})")
    use = config.sources[source].use if source in config.sources else ""
    if "kind" not in record:
        yield _said("", "a benchmark's question: asked, never trained on")
        return
    if use == "pretrain":
        yield from _cleaned(record, nodes, source)
    else:
        yield from _chosen(record, nodes, source)


def _cleaned(record: Record, nodes: Nodes, source: str) -> Iterator[str]:
    artifact = nodes.get(f"clean:{source}")
    if artifact is None:
        yield _said("clean", "has not run")
        return
    clean: Record | None = _first(record["id"], parts.parts(artifact.path))
    gone: NotClean | None = None
    if clean is None:
        gone = _first(record["id"], parts.parts(artifact.path, drops.DROPPED))
    if clean is None and gone is None:
        raise NodeError(f"clean:{source} has lost {record['id']}: neither kept nor dropped")
    changes = _changes(record, nodes, artifact) if gone or whole_text(clean) != whole_text(record) else {}
    if gone:
        why = ", ".join(f"{name} {value}" for name, value in gone.get("why", {}).items())
        reason = gone.get("quarantined")
        fate = f"quarantined: {reason}" if reason else f"dropped by {gone['operator']}"
        yield _said("clean", f"{fate}{f' ({why})' if why else ''}")
    elif changes:
        yield _said("clean", f"kept, changed: {chars(record):,} → {chars(clean):,} characters")
    else:
        yield _said("clean", "kept as it is")
    for operator, example in changes.items():
        yield _said("", operator)
        yield _said("", f"  «{_short(example['before'])}»")
        yield _said("", f"  «{_short(example['after'])}»")
    if clean is None:
        return
    ended = yield from _dropped(record, nodes, source)
    if not ended:
        yield from _tokenized(clean, nodes, source)


def _changes(record: Record, nodes: Nodes, artifact: Artifact) -> dict[str, dict[str, str]]:
    """Operator -> before and after: the recipe run once more on this one record."""
    from tasks.clean.chain import Chain
    from tasks.clean.recipe import Step

    recipes = artifact.manifest["identity"]["config"]["recipes"]
    steps = [Step.model_validate(step) for step in recipes[record["kind"]]]
    chain = Chain(record["kind"], steps, nodes["clean:assets"].path, 1)
    list(chain.run([record]))
    examples = {key.partition("/")[2]: some[0] for key, some in chain.examples.items() if some}
    return {operator: example for operator, example in examples.items() if "after" in example}


def _dropped(record: Record, nodes: Nodes, source: str) -> Generator[str, None, bool]:
    """Deduplication and decontamination; returns whether the way ends here."""
    artifact = nodes.get("clean:decontaminate")
    if artifact is None:
        yield _said("dedup", "has not run")
        return True
    drop: Copy | Hit | None = _first(record["id"], [artifact.path / source / DROPS])
    if drop and drop["step"] == "dedup":
        yield _said("dedup", f"dropped: {drop['method']} duplicate of {drop['duplicate_of']}")
        other = _anywhere(nodes, drop["duplicate_of"])
        if other:
            yield _said(
                "", f"  {other.source}, {other.line['meta']['at']} «{_short(whole_text(other.line))}»"
            )
        return True
    yield _said("dedup", "no duplicate of an earlier record")
    yield from _contaminated(drop, record, nodes, source)
    return drop is not None


def _contaminated(drop: Hit | None, record: Record, nodes: Nodes, source: str) -> Iterator[str]:
    hits = nodes["clean:decontaminate"].path / source / HITS
    hit: Hit | None = drop or _first(record["id"], [hits])
    if not hit:
        yield _said("decontaminate", "holds no benchmark question")
        return
    yield _said("decontaminate", f"{'dropped: ' if drop else 'kept, though '}it holds benchmark questions")
    for benchmark, question in hit.get("questions", ())[:MOST]:
        asked = _by_id(nodes, benchmark, question)
        yield _said("", f"  {benchmark} {question} «{_short(whole_text(asked)) if asked else ''}»")


def _tokenized(record: Record, nodes: Nodes, source: str) -> Iterator[str]:
    from model.training.shards import ShardFile

    artifact = nodes.get(f"tokenize:{source}")
    if artifact is None:
        yield _said("tokenize", "has not run")
        return
    kept = False
    for path in sorted(artifact.path.glob("*.arrow")):
        rows, tokens = _rows_of(ShardFile(path), bytes.fromhex(record["id"]))
        if rows:
            kept = True
            where = f"row {rows[0]}" if len(rows) == 1 else f"rows {rows[0]}–{rows[-1]}"
            yield _said("tokenize", f"{path.stem.partition('-')[0]}: {path.name}, {where}, {tokens:,} tokens")
    if not kept:
        yield _said("tokenize", "no token is left of it")
        return
    if "pretrain" in nodes:
        yield from _trained(record["id"], nodes["pretrain"], source)


def _trained(record_id: str, artifact: Artifact, source: str) -> Iterator[str]:
    """The steps at which its rows were read, from the plan's inverse (model.training.provenance)."""
    from model.training.gather import DataError
    from model.training.provenance import Provenance

    try:
        known = Provenance(artifact.path)
        sightings = list(known.sightings(record_id, source))
    except DataError as error:  # such as shards that have been deleted since
        yield _said("pretrain", f"cannot be told: {error}")
        return
    for sighting in sightings:
        yield _said("pretrain", f"{sighting.file}, row {sighting.row}: {sighting.when(known.trained)}")
    if not sightings:
        yield _said("pretrain", "held out: in none of the shards that were trained on")


def step(number: int, config: SteelRun, nodes: Nodes) -> list[str]:
    """The documents of an optimizer step of the newest pre-training, as lines of text."""
    from model.training.gather import DataError
    from model.training.provenance import tell_step

    if "pretrain" not in nodes:
        raise NodeError(f"profile {config.profile!r} has no finished pre-training here: `make run` makes one")
    try:
        return list(tell_step(nodes["pretrain"].path, number))
    except DataError as error:
        raise NodeError(str(error)) from error


def _rows_of(shard: Any, record_id: bytes) -> tuple[list[int], int]:
    """The rows of a shard that hold a document, and how many of its tokens (with the separator)."""
    rows, tokens, before = [], 0, 0
    while before < shard.rows:
        columns, _ = shard.locate(before)
        hits = (columns.doc_ids == list(record_id)).all(axis=1).nonzero()[0]
        for at in hits.tolist():
            row = int((columns.offsets[1:] > at).argmax())
            last = at + 1 == columns.offsets[row + 1]
            end = columns.valid[row] if last else columns.starts[at + 1]
            rows.append(before + row)
            tokens += int(end - columns.starts[at])
        before += len(columns.valid)
    return rows, tokens


def _chosen(record: Record, nodes: Nodes, source: str) -> Iterator[str]:
    """An instruction or a pair: decontaminated, then taken into mixtures or not."""
    artifact = nodes.get("clean:decontaminate")
    if artifact is not None and (artifact.path / source / DROPS).exists():
        drop: Hit | None = _first(record["id"], [artifact.path / source / DROPS])
        yield from _contaminated(drop, record, nodes, source)
        if drop:
            return
    manifests = {"sft": "mixture.jsonl", "dpo": "pairs.jsonl", "rl": "prompts.jsonl"}
    needle = b'"id":"' + record["id"].encode()
    for name, node in nodes.items():
        path = node.path / manifests.get(stage_of(name), "-")
        if path.is_file():
            taken = [line for line in _lines_with(path, needle) if line["set"] == source]
            yield _said(name, f"taken, {taken[0]['split']}" if taken else "not in its mixture")


# ---------------------------------------------------------------------------------------- helpers
def _raw(nodes: Nodes, source: str, at: str) -> str:
    file, _, position = at.rpartition(":")
    folder = nodes[f"download:{source}"].path if f"download:{source}" in nodes else Path()
    return f"{folder / file}, {position if int(position) else 'the file itself'}"


def _anywhere(nodes: Nodes, record_id: str) -> Match | None:
    return next((match for match in _find(record_id, "id", nodes) if match.where == "records"), None)


def _by_id(nodes: Nodes, source: str, record_id: str) -> Record | Question | None:
    artifact = nodes.get(f"convert:{source}")
    return _first(record_id, _record_files(artifact.path)) if artifact else None


def _first(record_id: str, paths: list[Path]) -> Any:
    """The line of a whole id, or None."""
    needle = line_start(record_id)
    return next((line for path in paths for line in _lines_with(path, needle)), None)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else text[: SHOWN - 1] + "…"


def _said(label: str, text: str) -> str:
    return f"  {label:<14}{text}"
