"""One convert job: pieces of raw files in; records, quarantine, what was dropped and a tally out.

Runs in a worker process and fills one folder:

    records-00000.jsonl …   rolled at part_bytes (benchmarks: questions.jsonl, whole)
    ids.npy                 (hi, lo, row) of every record, sorted by id, for unique.py
    quarantine.jsonl        {file, position, reason, excerpt, [detail], [records]}
    dropped.jsonl           {id, operator, at, excerpt}
    tally.json              counts, and the first examples

`convert_file` is the same for one file, easy to call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import orjson

from tasks.convert import readers
from tasks.convert.formats import check_object
from tasks.convert.jobs import Piece
from tasks.convert.lost import LostShare
from tasks.convert.verdicts import (
    Bad,
    Malformed,
    Unwanted,
    chars,
    check_sum,
    content,
    excerpt,
    guess_language,
    opening,
    stable_id,
)
from tasks.convert.wrapped import unwrapped
from tasks.records import parts

BUFFER = 1 << 20
QUESTIONS, QUARANTINE, DROPPED = "questions.jsonl", "quarantine.jsonl", "dropped.jsonl"
IDS, TALLY = "ids.npy", "tally.json"
ID = np.dtype([("hi", ">u8"), ("lo", ">u8"), ("row", "<u4")])
"""16 bytes of an id as two numbers, and the record's place in its job."""
SETTINGS = {"max_chars": 2_000_000, "part_bytes": parts.MAX_PART_BYTES, "examples": 10}


def convert_file(
    path: str | Path, out: str | Path, reader: str, source: str = "source", **settings: Any
) -> dict[str, Any]:
    """Convert one raw file into the (empty, existing) folder `out`, here and now; returns the tally.

    For measuring a core and for a look at a file by hand: no pool, no finished jobs, no uniqueness
    over other files. tally["records_in"] and ["kept"] are records; throughput is path's size over
    CPU seconds.
    """
    path = Path(path)
    what = {"reader": reader, "language": "zh", "options": {}}
    return convert_pieces(Path(out), str(path.parent), [Piece(path.name, "")], source, what, settings)


def convert_pieces(
    out: Path,
    raw: str,
    pieces: Sequence[Piece],
    name: str,
    source: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """The job. `source` has reader, language and options; `settings` is over SETTINGS."""
    settings = {**SETTINGS, **settings}
    with (
        open(out / QUARANTINE, "wb", BUFFER) as quarantine,
        open(out / DROPPED, "wb", BUFFER) as dropped,
    ):
        job = _Job(out, name, source, settings, quarantine, dropped)
        for piece in pieces:
            job.take(Path(raw, piece.file), piece)
        tally = job.close()
    (out / TALLY).write_bytes(orjson.dumps(tally, option=orjson.OPT_INDENT_2))
    return tally


class _Job:
    """The counts and outputs of one job while its pieces go through."""

    def __init__(
        self,
        out: Path,
        name: str,
        source: Mapping[str, Any],
        settings: Mapping[str, Any],
        quarantine: BinaryIO,
        dropped: BinaryIO,
    ):
        self.name, self.language = name, source.get("language") or "zh"
        self.reader = readers.load(source["reader"])
        self.options = self.reader.options.model_validate(source.get("options") or {})
        self.max_chars, self.examples = settings["max_chars"], settings["examples"]
        # a character takes at most 12 bytes in JSON (an escaped surrogate pair)
        self.max_bytes = 12 * self.max_chars + (1 << 16)
        asks = self.reader.makes == "benchmark"
        self.finish = self._question if asks else self._record
        self.out, self.quarantine_file, self.dropped_file = out, quarantine, dropped
        self.parts = _Parts(out, None if asks else settings["part_bytes"])
        self.ids = bytearray()
        self.cut: list[str] = []
        """Files of which this job has a part only."""
        self.barren: list[str] = []
        """Files, or parts, of which no record came."""
        self.records_in = self.chars_in = self.chars_out = self.bytes_in = self.bytes_lost = 0
        self.quarantined: Counter[str] = Counter()
        self.first: dict[str, dict[str, Any]] = {}
        self.dropped: Counter[str] = Counter()
        self.dropped_chars: Counter[str] = Counter()
        self.asked: Counter[bytes] = Counter()
        self.shown: dict[str, list[dict[str, str]]] = {}

    def take(self, path: Path, piece: Piece) -> None:
        """Take every record of one piece."""
        size = piece.span.end - piece.span.start if piece.span else path.stat().st_size
        sound, share = self._sound(), LostShare(size)
        file = piece.file.encode("utf-8", "backslashreplace").decode()
        items = self.reader.reading(self.options)(path, self.max_bytes, piece.span)
        if not piece.span:
            items = unwrapped(items, lambda value: self._reads(value, file))
        for position, value, raw in items:
            if isinstance(value, Bad):
                share.lost(value, position, raw)
                self._set_aside(value, file, position, raw)
                continue
            try:
                self._one(value, file, position, raw)
                share.read(raw)
            except Malformed as bad:
                self._set_aside(share.lost(Bad(bad.reason, bad.detail), position, raw), file, position, raw)
            except (OSError, MemoryError):
                raise  # the machine's, not the record's
            except Exception as error:  # noqa: BLE001  (a hole in a reader costs one record, and says so)
                what = f"{type(error).__name__}: {error}"[:200]
                failed = Bad("reader failed", what.encode("utf-8", "replace").decode())
                self._set_aside(share.lost(failed, position, raw), file, position, raw)
        self.cut += [file] if piece.span else []
        self.bytes_in += size
        self.bytes_lost += share.bytes()
        if self._sound() == sound:
            self.barren.append(file)

    def _reads(self, value: dict[str, Any], file: str) -> bool:
        """Whether the reader makes something of this object."""
        try:
            self.reader.convert(value, self.options, file)
        except Unwanted:
            return True
        except (OSError, MemoryError):
            raise
        except Exception:  # noqa: BLE001  (Malformed, or a hole in the reader: told where the record is taken)
            return False
        return True

    def _sound(self) -> int:
        return self.parts.records + self.dropped.total()

    def close(self) -> dict[str, Any]:
        """Finish the files; the tally. NodeError when it does not add up."""
        lost = Counter(quarantined=self.quarantined.total(), dropped=self.dropped.total())
        check_sum(self.name, "records", self.records_in, self.parts.records, **lost)
        check_sum(self.name, "characters", self.chars_in, self.chars_out, dropped=self.dropped_chars.total())
        if self.reader.makes != "benchmark":
            check_sum(self.name, "ids", len(self.ids) // 16, self.parts.records)
        np.save(self.out / IDS, _sorted_ids(self.ids))
        return {
            "bytes_in": self.bytes_in,
            "bytes_lost": self.bytes_lost,
            "cut": self.cut,
            "barren": self.barren,
            "records_in": self.records_in,
            "chars_in": self.chars_in,
            "kept": self.parts.records,
            "chars_out": self.chars_out,
            "quarantined": dict(self.quarantined),
            "first": self.first,
            "dropped": dict(self.dropped),
            "dropped_chars": dict(self.dropped_chars),
            "parts": self.parts.close(),
            "examples": self.shown,
        }

    def _one(self, value: Any, file: str, position: int, raw: Any) -> None:
        step = ""
        try:
            draft = self.reader.convert(check_object(value), self.options, file)
        except Unwanted as unwanted:
            step, draft = unwanted.step, unwanted.record
        size = chars(draft)
        if size > self.max_chars:
            raise Malformed("over-long record", f"{size} characters")
        draft["meta"]["at"] = at = f"{file}:{position}"
        identity, record = self.finish(draft)
        line = orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE)
        # nothing has been counted yet: whatever failed above is one quarantined record
        self.records_in += 1
        self.chars_in += size
        if step:
            self.dropped[step] += 1
            self.dropped_chars[step] += size
            lost = {"id": identity.hex(), "operator": step, "at": at, "excerpt": opening(record)}
            self.dropped_file.write(orjson.dumps(lost, option=orjson.OPT_APPEND_NEWLINE))
            self._show(step, lost)
        else:
            self.chars_out += size
            self.parts.write(line)
            self.ids += identity
            if len(self.shown.get("convert", ())) < self.examples:
                shown = {"id": identity.hex(), "at": at, "before": excerpt(raw), "after": opening(record)}
                self._show("convert", shown)

    def _record(self, draft: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """The draft with id, source and language."""
        identity = stable_id(self.name, content(draft))
        language = draft.get("language") or self.language
        if language == "mixed":
            language = guess_language(draft.get("text") or draft["messages"][-1]["content"])
        return identity, {"id": identity.hex(), "source": self.name, **draft, "language": language}

    def _question(self, draft: dict[str, Any]) -> tuple[bytes, dict[str, Any]]:
        """A benchmark keeps its repeated questions: scores are over all of them."""
        about = [draft["subject"], draft["split"], draft["question"], draft["choices"]]
        identity = stable_id(self.name, about)
        self.asked[identity] += 1
        if self.asked[identity] > 1:
            identity = stable_id(self.name, [*about, self.asked[identity]])
        language = draft.get("language") or self.language
        if language == "mixed":
            language = guess_language(draft["question"])
        return identity, {"id": identity.hex(), "benchmark": self.name, **draft, "language": language}

    def _set_aside(self, bad: Bad, file: str, position: int, raw: Any) -> None:
        line = {"file": file, "position": position, "reason": bad.reason, "excerpt": excerpt(raw)}
        if bad.detail:
            line["detail"] = bad.detail
        if bad.records != 1:
            line["records"] = bad.records
        self.quarantine_file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self.records_in += bad.records
        self.quarantined[bad.reason] += bad.records
        self.first.setdefault(bad.reason, line)

    def _show(self, step: str, example: dict[str, str]) -> None:
        examples = self.shown.setdefault(step, [])
        if len(examples) < self.examples:
            examples.append(example)


class _Parts:
    """The output, begun anew before it passes `limit` bytes (None: one file of questions)."""

    def __init__(self, out: Path, limit: int | None):
        self.out, self.limit = out, limit
        self.done: list[dict[str, Any]] = []
        self.file: BinaryIO | None = None
        self.records = 0
        if limit is None:
            self._begin(QUESTIONS)

    def write(self, line: bytes) -> None:
        if self.file is None or self.limit and self.size and self.size + len(line) > self.limit:
            self._begin(parts.name(len(self.done)))
        self.file.write(line)
        self.size += len(line)
        self.records += 1
        self.done[-1]["records"] += 1

    def close(self) -> list[dict[str, Any]]:
        """File and number of records of every part."""
        if self.file:
            self.file.close()
        return self.done

    def _begin(self, name: str) -> None:
        self.close()
        self.file, self.size = open(self.out / name, "wb", BUFFER), 0  # noqa: SIM115  (closed by close)
        self.done.append({"file": name, "records": 0})


def _sorted_ids(ids: bytearray) -> np.ndarray:
    pairs = np.frombuffer(ids, ">u8").reshape(-1, 2)
    found = np.empty(len(pairs), ID)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: of equal ids the first row comes first
    found["hi"], found["lo"], found["row"] = pairs[order, 0], pairs[order, 1], order
    return found
