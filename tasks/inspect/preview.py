"""The first records of a source before and after its reader, and what would be quarantined and why.

Nothing is written and no server is asked. `lines` is for a terminal (`make preview`), `first_records` for checks.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.convert import jobs, readers
from tasks.convert.formats import check_object
from tasks.convert.job import most_bytes
from tasks.convert.verdicts import Bad, Malformed, Unwanted, excerpt
from tasks.convert.wrapped import unwrapped
from tasks.download import local
from tasks.download import node as download
from tasks.download.names import few, readable
from tasks.inspect.artifacts import newest
from tasks.records.record import Draft
from tasks.settings.config import Convert, Source, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.store import Store

SHOWN = 300
"""Characters of a raw record and of what is made of it."""
FILES = 5
"""Files that are looked into."""
MAX_CHARS = Convert().max_chars


@dataclass(frozen=True)
class First:
    """One of the first raw records."""

    file: str
    position: int
    raw: str
    """How it begins."""
    record: Draft | None
    """What the reader makes of it; None: it would be quarantined."""
    reason: str = ""
    """Why it would be quarantined, or which step would drop it."""
    detail: str = ""

    @property
    def at(self) -> str:
        return f"{self.file}:{self.position}"


def first_records(
    name: str,
    source: Source,
    folder: Path,
    n: int,
    files: Sequence[str] | None = None,
    max_chars: int = MAX_CHARS,
) -> list[First]:
    """The first `n` raw records of a source whose raw files lie below `folder`, from its first files.

    `files` are their relative paths (None: those in a local folder that match the source's patterns). NodeError
    when no file is one for the reader, as in a run.
    """
    if files is None:
        files = list(local.list_files(name, folder, source.files).values())
    reader = readers.load(source.reader)
    options = reader.options.model_validate(source.options)
    chosen = jobs.choose(name, reader, options, files)[: min(n, FILES)]
    found: list[First] = []
    for number, file in enumerate(chosen, start=1):
        most = n * number // len(chosen) - len(found)
        found += [
            first
            for _, first in zip(range(most), _firsts(reader, options, folder, file, max_chars), strict=False)
        ]
    return found


def lines(config: SteelRun, name: str, n: int) -> list[str]:
    """The same for a terminal, of a source of the profile: from its local folder, or from what was downloaded."""
    if name not in config.sources:
        raise NodeError(
            f"there is no source {name!r} in {config.profile}; there are: {few(sorted(config.sources), 40)}"
        )
    source = config.sources[name]
    folder, files = place(config, name)
    idle = idle_files(config, name, files)
    told = [
        f"{name}: {len(files) - len(idle):,} of {len(files):,} files are read, by the reader {source.reader}, in {folder}"
    ]
    if idle:
        told.append(f"not read: {few(idle, 10)}")
    for first in first_records(name, source, folder, n, files, config.convert.max_chars):
        told += ["", first.at, f"  raw     {_cut(first.raw)}"]
        if first.record:
            told += [f"  {line}" for line in _record_lines(first.record)]
        if first.reason:
            what = "dropped by" if first.record else "quarantined:"
            told.append(f"  {what} {first.reason}{f' ({first.detail})' if first.detail else ''}")
    return told


def idle_files(config: SteelRun, name: str, files: Sequence[str]) -> list[str]:
    """The names of a source's files that its reader does not read, sorted; NodeError when it reads none of them."""
    source = config.sources[name]
    reader = readers.load(source.reader)
    chosen = jobs.choose(name, reader, reader.options.model_validate(source.options), files)
    return [readable(file) for file in sorted(set(files) - set(chosen))]


def place(config: SteelRun, name: str) -> tuple[Path, list[str]]:
    """Where the raw files of a source lie, and their relative paths; NodeError when they are not here."""
    source = config.sources[name]
    if source.hub == "folder" and not source.unpack:
        below = source.below or local.BELOW[source.use]
        folder = local.folder_of(name, source.dataset, below, config.runtime.folders, source.manual)
        return folder, list(local.list_files(name, folder, source.files).values())
    nodes = {node.name: node for node in download.nodes(config) if node.unit == name}
    made = newest(Store(config.runtime.artifacts), nodes).get(f"download:{name}")
    if made is None:
        raise NodeError(
            f"source {name} is not downloaded yet: make run PROFILE={config.profile} UNTIL=download"
        )
    return made.path, [entry["path"] for entry in made.manifest["files"]]


def _firsts(reader: readers.Reader, options: Any, folder: Path, file: str, max_chars: int) -> Iterator[First]:
    def reads(value: dict[str, Any]) -> bool:
        return _verdict(reader, options, file, value)[0] is not None

    limit = most_bytes(max_chars)
    items = unwrapped(reader.reading(options)(folder / file, limit, None), reads)
    shown = readable(file)
    for position, value, raw in items:
        if isinstance(value, Bad):
            yield First(shown, position, excerpt(raw), None, value.reason, value.detail)
        else:
            yield First(shown, position, excerpt(raw), *_verdict(reader, options, file, value))


def _verdict(reader: readers.Reader, options: Any, file: str, value: Any) -> tuple[Draft | None, str, str]:
    try:
        return reader.convert(check_object(value), options, file), "", ""
    except Unwanted as unwanted:
        return unwanted.record, unwanted.step, ""
    except Malformed as bad:
        return None, bad.reason, bad.detail
    except (OSError, MemoryError):
        raise
    except Exception as error:  # noqa: BLE001  (as in a run: a hole in a reader costs one record, and says so)
        return None, "reader failed", f"{type(error).__name__}: {error}"[:200]


def _record_lines(record: Draft) -> Iterator[str]:
    for message in record.get("messages", ()):
        yield f"{message['role']:<10} {_cut(message['content'])}{'' if message.get('loss', True) else ' (not learnt)'}"
    for key in ("text", "question", "chosen", "rejected"):
        if key in record:
            yield f"{key:<10} {_cut(record[key])}"
    for letter, choice in zip("ABCDEFGHIJ", record.get("choices", ()), strict=False):
        yield f"  {letter}        {_cut(choice)}"
    if "choices" in record:
        yield f"answer     {record.get('target', record['answer'])}, subject {record['subject']}, split {record['split']}"
    if record.get("meta"):
        yield f"meta       {_cut(json.dumps(record['meta'], ensure_ascii=False))}"


def _cut(text: str) -> str:
    one = " ⏎ ".join(line for line in text.splitlines() if line.strip())
    return one if len(one) <= SHOWN else f"{one[:SHOWN]}… ({len(text):,} characters)"
