"""Which documents a step read, and at which steps a document was read.

    python -m model.training.provenance FOLDER --step 120
    python -m model.training.provenance FOLDER --id 3f2a91c0

FOLDER is a pretrain artifact or the work folder of a training, finished or not. Nothing was logged for this: the order
of blocks is a function, so a step's rows follow from it, and the steps of a row from its inverse, also across
continuations and changes of the batch size. Steps count from 1, as in the log. A look-up by id reads the id column of
the shards, 16 bytes a document (of one source if it is named).
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from model.training import lines
from model.training.checkpoint import Checkpoints, DamagedError, read_state
from model.training.loader import BlockLoader, DataError
from model.training.shards import ShardFile

SHOWN_TIMES = 12


@dataclass(frozen=True)
class Piece:
    """A document, or the part of it that lies in one row."""

    id: str
    source: str
    file: str
    row: int
    tokens: int


@dataclass(frozen=True)
class Sighting:
    """A row that holds a document, and when it was read."""

    id: str
    source: str
    file: str
    row: int
    seen: list[tuple[int, int]]
    """(epoch, step), both from 1."""

    def when(self, trained: int) -> str:
        """In words, for a training of so many steps."""
        times = [f"step {step} (epoch {epoch})" for epoch, step in self.seen[:SHOWN_TIMES]]
        more = f" and {len(self.seen) - SHOWN_TIMES} times more" if len(self.seen) > SHOWN_TIMES else ""
        return f"read at {', '.join(times)}{more}" if times else f"not read in {trained} steps"


class Provenance:
    """What one training has read, and when."""

    def __init__(self, folder: Path | str) -> None:
        folder = Path(folder)
        try:
            config = json.loads((folder / "CONFIG.json").read_text("utf-8"))
        except FileNotFoundError:
            raise DataError(f"{folder} is no training's folder: it has no CONFIG.json") from None
        self.files: list[dict[str, Any]] = config["data"]["files"]
        own = Checkpoints(folder / "checkpoints", 1).newest()
        at = own or (Path(config["continue_from"]) if config.get("continue_from") else None)
        state = read_state(at)["loader"] if at else None
        self._loader = BlockLoader(
            self.files, seed=config["seed"], batch_size=config["batch_size"], state=state, append=own is None
        )
        steps = (line["step"] for line in lines.read(folder / "metrics.jsonl"))
        self.trained = max([state["step"] if state else 0, *steps])
        """Steps trained so far."""
        self._opened: dict[int, ShardFile] = {}

    def documents(self, step: int) -> Iterator[Piece]:
        """The documents of a step (from 1), in the order of its rows; also of a step that is yet to come."""
        if step < 1:
            raise DataError("steps count from 1")
        for file, row in zip(*self._loader.rows_of_step(step - 1), strict=True):
            read = self._shard(int(file)).read(int(row))
            ends = [*read.doc_starts[1:].tolist(), read.valid]
            for document, start, end in zip(read.doc_ids, read.doc_starts.tolist(), ends, strict=True):
                yield Piece(document.hex(), *self._name(int(file)), int(row), end - start)

    def sightings(self, record_id: str, source: str | None = None) -> Iterator[Sighting]:
        """The rows that hold a document (or those whose id begins so), and every time they were read."""
        if not re.fullmatch(r"[0-9a-f]{8,32}", record_id):
            raise DataError(f"{record_id!r} is no record id: 8 to 32 hex digits")
        for file, entry in enumerate(self.files):
            if source in (None, entry.get("source")):
                for row, found in _rows_with(self._shard(file), record_id):
                    seen = self._loader.steps_of_row(file, row, self.trained)
                    yield Sighting(found, *self._name(file), row, [(e + 1, s + 1) for e, s in seen])

    def _shard(self, file: int) -> ShardFile:
        if file not in self._opened:
            self._opened = {file: ShardFile(Path(self.files[file]["path"]))}  # a shard's views are not small
        return self._opened[file]

    def _name(self, file: int) -> tuple[str, str]:
        entry = self.files[file]
        return entry.get("source", ""), Path(entry["path"]).name


def tell_step(folder: Path | str, step: int) -> Iterator[str]:
    """The documents of a step as lines of text."""
    known = Provenance(folder)
    pieces = list(known.documents(step))
    rows = len({(p.source, p.file, p.row) for p in pieces})
    when = "" if step <= known.trained else f", which is yet to come ({known.trained} are trained)"
    yield f"step {step}{when}: {len(pieces):,} documents or parts of them in {rows:,} rows"
    before = None
    for piece in pieces:
        here = (piece.source, piece.file, piece.row)
        if here != before:
            yield f"  {piece.source}, {piece.file}, row {piece.row}"
            before = here
        yield f"    {piece.id}  {piece.tokens:,} tokens"


def tell_document(folder: Path | str, record_id: str, source: str | None = None) -> Iterator[str]:
    """The rows that hold a document and the steps that read them, as lines of text."""
    known = Provenance(folder)
    some = False
    for one in known.sightings(record_id, source):
        some = True
        yield f"{one.id}  {one.source}, {one.file}, row {one.row}: {one.when(known.trained)}"
    if not some:
        yield f"{record_id} is in none of the shards that were trained on"


def _rows_with(shard: ShardFile, record_id: str) -> Iterator[tuple[int, str]]:
    """(row, full id) of every row that holds a document with this id or beginning of one."""
    wanted = np.frombuffer(bytes.fromhex(record_id[: len(record_id) // 2 * 2]), np.uint8)
    before = 0
    while before < shard.rows:
        columns, _ = shard.locate(before)
        found = (columns.doc_ids[:, : len(wanted)] == wanted).all(axis=1)
        for at in np.flatnonzero(found).tolist():
            full = bytes(columns.doc_ids[at]).hex()
            if full.startswith(record_id):
                yield before + int(np.searchsorted(columns.offsets, at, side="right")) - 1, full
        before += len(columns.valid)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.provenance", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("folder", type=Path, help="a pretrain artifact, or a training's work folder")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--step", type=int, help="the documents of this step, from 1")
    asked.add_argument("--id", help="a record id or its first 8 digits: where and when it was read")
    parser.add_argument("--source", help="look for the id in this source only")
    options = parser.parse_args(arguments)
    try:
        if options.step is not None:
            lines = tell_step(options.folder, options.step)
        else:
            lines = tell_document(options.folder, options.id, options.source)
        for line in lines:
            print(line)
    except (DataError, DamagedError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
