"""Which raw files a source's reader reads, and how they become jobs.

One job per raw file; files of JSON lines above `job_bytes` are cut at line ends, and neighbours that
are small share a job (MOSS comes as a file per dialogue). Cuts do not depend on other files, so that
an added file converts itself and at worst the small ones around it.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.convert.formats import Span, is_lines, spans
from tasks.convert.readers import Reader
from tasks.download.names import few
from tasks.settings.errors import NodeError
from tasks.stage.store import file_digest
from tasks.work import partitions

SMALL = 32
"""A file below 1/SMALL of job_bytes shares its job with its neighbours, up to that size together."""
BORDER = 256
"""A group of small files also ends after each file whose name's hash says so: one in so many."""


@dataclass(frozen=True)
class Piece:
    """A raw file, or a span of one. Picklable."""

    file: str
    """Relative path below the raw folder."""
    digest: str
    """sha256 of the whole file."""
    span: Span | None = None


def choose(name: str, reader: Reader, options: Any, files: Sequence[str]) -> list[str]:
    """The files that this reader reads, sorted; NodeError when there are none."""
    chosen = sorted(f for f in files if f.lower().endswith(reader.suffixes))
    if reader.place:
        placed = {file: where for file in chosen if (where := reader.place(file))}
        subjects = sorted({subject for subject, _ in placed.values()})
        if missing := sorted(set(options.subjects) - set(subjects)):
            raise NodeError(
                f"{name}: there is no subject {', '.join(missing)} (options.subjects); there are: "
                f"{', '.join(subjects) or 'none'}"
            )
        chosen = [
            f for f, (subject, _) in placed.items() if not options.subjects or subject in options.subjects
        ]
    if not chosen:
        raise NodeError(
            f"{name}: none of the {len(files)} files is one for its reader ({', '.join(reader.suffixes)}); there are: "
            f"{few(sorted(files))}"
        )
    return chosen


def jobs(
    raw: Path,
    files: Mapping[str, str],
    reader: Reader,
    job_bytes: int,
    run: Callable[[list[partitions.Job]], list[Path]],
) -> list[list[Piece]]:
    """The pieces of each job, in the order of the source. `files` has sha256 by path ("" = not known)."""
    pieces = [Piece(file, digest or file_digest(raw / file)) for file, digest in files.items()]
    if reader.makes == "benchmark":  # small, and its repeated questions are numbered over all files
        return [pieces]
    spans_of = _cut([p for p in pieces if _is_large(raw, p, reader, job_bytes)], raw, job_bytes, run)
    grouped: list[list[Piece]] = []
    size = None  # of the group that is open; None: none is
    for piece in pieces:
        own = (raw / piece.file).stat().st_size
        if own * SMALL >= job_bytes:
            grouped += [[Piece(piece.file, piece.digest, span)] for span in spans_of.get(piece.file, [None])]
            size = None
            continue
        if size is None or (size + own) * SMALL > job_bytes:
            grouped.append([])
            size = 0
        grouped[-1].append(piece)
        size += own
        if zlib.crc32(piece.file.encode("utf-8", "surrogateescape")) % BORDER == 0:
            size = None
    return grouped


def cut(out: Path, path: str, job_bytes: int) -> None:
    """Job: the spans of one large file, as spans.json (an empty list if it is no plain JSON lines)."""
    cuts = spans(Path(path), job_bytes) if is_lines(Path(path)) else []
    (out / "spans.json").write_text(json.dumps(cuts))


def _cut(
    pieces: list[Piece], raw: Path, job_bytes: int, run: Callable[[list[partitions.Job]], list[Path]]
) -> dict[str, list[Span | None]]:
    folders = run(
        [
            partitions.Job(
                partitions.key(cut, piece.digest, job_bytes),
                cut,
                (str(raw / piece.file), job_bytes),
            )
            for piece in pieces
        ]
    )
    spans_of: dict[str, list[Span | None]] = {}
    for piece, folder in zip(pieces, folders, strict=True):
        cuts = json.loads((folder / "spans.json").read_text())
        spans_of[piece.file] = [Span(*span) for span in cuts] or [None]
    return spans_of


def _is_large(raw: Path, piece: Piece, reader: Reader, job_bytes: int) -> bool:
    may_be_cut = reader.by_spans and piece.file.lower().endswith((".json", ".jsonl", ".ndjson"))
    return may_be_cut and (raw / piece.file).stat().st_size > job_bytes
