"""One job of convert: pieces of raw files in; records, quarantine, dropped lines and a tally out.

It runs in a worker process and fills one folder:

    records-00000.jsonl …   rolled at part_bytes (benchmarks: questions.jsonl, whole)
    ids.npy                 (hi, lo, row) of every record, sorted by id, for unique.py
    quarantine.jsonl        {file, position, reason, excerpt, [detail], [records]}
    dropped.jsonl           {id, operator, at, excerpt}
    tally.json              counts, and the first examples

`convert_file` is the same for one file, easy to call.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO, NotRequired, TypedDict

import numpy as np
import orjson

from tasks.convert import readers
from tasks.convert.formats import check_object
from tasks.convert.jobs import Piece
from tasks.convert.lost import LostShare
from tasks.convert.verdicts import Bad, Malformed, Unwanted, excerpt, guess_language, printable
from tasks.convert.wrapped import unwrapped
from tasks.records import parts
from tasks.records.account import balance
from tasks.records.drops import NotConverted
from tasks.records.record import ID_BYTES, Draft, Question, Record, chars, content, dump, opening, stable_id
from tasks.settings.config import Convert, Section, Source

BUFFER = 1 << 20
QUESTIONS, QUARANTINE, DROPPED = "questions.jsonl", "quarantine.jsonl", "dropped.jsonl"
IDS, TALLY = "ids.npy", "tally.json"
ID = np.dtype([("hi", ">u8"), ("lo", ">u8"), ("row", "<u4")])
"""16 bytes of an id as two numbers, and the record's place in its job."""


class Reading(Section):
    """How a source is read."""

    reader: str
    language: str = "zh"
    options: dict[str, Any] = {}

    @classmethod
    def of(cls, source: Source) -> Reading:
        return cls(reader=source.reader, language=source.language, options=source.options)


class Settings(Convert):
    """The recipe of a node convert:<source>."""

    source: Reading
    examples: int = 10
    """Kept of each step."""


class Example(TypedDict):
    """A record that was kept: the beginning of its raw form and of its text."""

    id: str
    at: str
    before: str
    after: str


class Quarantined(TypedDict):
    """A line of quarantine.jsonl: raw data that gave no record."""

    file: str
    position: int
    """Of a line or row, from 1; 0: the file itself."""
    reason: str
    excerpt: str
    detail: NotRequired[str]
    records: NotRequired[int]
    """How many, where it is not one."""


class PartTally(TypedDict):
    """A file of records."""

    file: str
    records: int


class Tally(TypedDict):
    """tally.json: what one job counted."""

    bytes_in: int
    bytes_lost: int
    cut: list[str]
    """Files of which the job has a part only."""
    barren: list[str]
    """Files, or parts, of which no record came."""
    records_in: int
    chars_in: int
    kept: int
    chars_out: int
    quarantined: dict[str, int]
    first: dict[str, Quarantined]
    """Reason -> the first line of quarantine."""
    dropped: dict[str, int]
    dropped_chars: dict[str, int]
    parts: list[PartTally]
    examples: dict[str, list[Example | NotConverted]]
    """`convert` or the step that dropped -> the first examples."""


def convert_file(
    path: str | Path, out: str | Path, reader: str, source: str = "source", **settings: Any
) -> Tally:
    """Convert one raw file into the (empty, existing) folder `out`, here and now; returns the tally.

    For measuring a core and for a look at a file by hand: no pool, no finished jobs, no uniqueness
    over other files. tally["records_in"] and ["kept"] are records; throughput is path's size over
    CPU seconds.
    """
    path = Path(path)
    whole = Settings(source=Reading(reader=reader), **settings)
    return convert_pieces(Path(out), str(path.parent), [Piece(path.name, "")], source, whole)


def convert_pieces(out: Path, raw: str, pieces: Sequence[Piece], name: str, settings: Settings) -> Tally:
    """The job: the pieces, below the folder `raw`, of the source `name`."""
    with (
        open(out / QUARANTINE, "wb", BUFFER) as quarantine,
        open(out / DROPPED, "wb", BUFFER) as dropped,
    ):
        job = _Job(out, name, settings, quarantine, dropped)
        for piece in pieces:
            job.take(Path(raw, piece.file), piece)
        tally = job.close()
    (out / TALLY).write_bytes(orjson.dumps(tally, option=orjson.OPT_INDENT_2))
    return tally


def most_bytes(max_chars: int) -> int:
    """Bytes that a raw record of so many characters may have, with what it has beside its texts."""
    return 12 * max_chars + (1 << 16)  # JSON has 12 bytes for a character at most: an escaped surrogate pair


class _Job:
    """The counts and outputs of one job while its pieces go through."""

    def __init__(self, out: Path, name: str, settings: Settings, quarantine: BinaryIO, dropped: BinaryIO):
        self.name, self.language = name, settings.source.language
        self.reader = readers.load(settings.source.reader)
        self.options = self.reader.options.model_validate(settings.source.options)
        self.max_chars, self.examples = settings.max_chars, settings.examples
        self.max_bytes = most_bytes(self.max_chars)
        asks = self.reader.makes == "benchmark"
        self.finish = self._question if asks else self._record
        self.out, self.quarantine_file, self.dropped_file = out, quarantine, dropped
        self.parts = _Parts(out, None if asks else settings.part_bytes)
        self.ids = bytearray()
        self.cut: list[str] = []
        self.barren: list[str] = []
        self.records_in = self.chars_in = self.chars_out = self.bytes_in = self.bytes_lost = 0
        self.quarantined: Counter[str] = Counter()
        self.first: dict[str, Quarantined] = {}
        self.dropped: Counter[str] = Counter()
        self.dropped_chars: Counter[str] = Counter()
        self.asked: Counter[bytes] = Counter()
        self.shown: dict[str, list[Example | NotConverted]] = {}

    def take(self, path: Path, piece: Piece) -> None:
        """Take every record of one piece."""
        size = piece.span.end - piece.span.start if piece.span else path.stat().st_size
        sound, share = self._sound(), LostShare(size)
        file = printable(piece.file)
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

    def close(self) -> Tally:
        """Finish the files; the tally. NodeError when it does not add up."""
        lost = Counter(quarantined=self.quarantined.total(), dropped=self.dropped.total())
        balance(self.name, "records", self.records_in, self.parts.records, **lost)
        balance(self.name, "characters", self.chars_in, self.chars_out, dropped=self.dropped_chars.total())
        if self.reader.makes != "benchmark":
            balance(self.name, "ids", len(self.ids) // ID_BYTES, self.parts.records)
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
            draft: Draft = self.reader.convert(check_object(value), self.options, file)
        except Unwanted as unwanted:
            step, draft = unwanted.step, unwanted.record
        size = chars(draft)
        if size > self.max_chars:
            raise Malformed("over-long record", f"{size} characters")
        draft["meta"]["at"] = at = f"{file}:{position}"
        identity, record = self.finish(draft)
        line = dump(record)
        # nothing has been counted yet: whatever failed above is one quarantined record
        self.records_in += 1
        self.chars_in += size
        if step:
            self.dropped[step] += 1
            self.dropped_chars[step] += size
            lost = NotConverted(id=identity.hex(), operator=step, at=at, excerpt=opening(record))
            self.dropped_file.write(dump(lost))
            self._show(step, lost)
        else:
            self.chars_out += size
            self.parts.write(line)
            self.ids += identity
            if len(self.shown.get("convert", ())) < self.examples:
                example = Example(id=identity.hex(), at=at, before=excerpt(raw), after=opening(record))
                self._show("convert", example)

    def _record(self, draft: Draft) -> tuple[bytes, Record]:
        """The draft with id, source and language."""
        identity = stable_id(self.name, content(draft))
        language = draft.get("language") or self.language
        if language == "mixed":
            language = guess_language(_said(draft))
        record: Any = {"id": identity.hex(), "source": self.name, **draft, "language": language}
        return identity, record

    def _question(self, draft: Draft) -> tuple[bytes, Question]:
        """A benchmark keeps its repeated questions: scores are over all of them."""
        asked = [draft["subject"], draft["split"], draft["question"], draft["choices"]]
        identity = stable_id(self.name, asked)
        self.asked[identity] += 1
        if self.asked[identity] > 1:
            identity = stable_id(self.name, [*asked, self.asked[identity]])
        language = draft.get("language") or self.language
        if language == "mixed":
            language = guess_language(draft["question"])
        question: Any = {"id": identity.hex(), "benchmark": self.name, **draft, "language": language}
        return identity, question

    def _set_aside(self, bad: Bad, file: str, position: int, raw: Any) -> None:
        line = Quarantined(file=file, position=position, reason=bad.reason, excerpt=excerpt(raw))
        if bad.detail:
            line["detail"] = bad.detail
        if bad.records != 1:
            line["records"] = bad.records
        self.quarantine_file.write(dump(line))
        self.records_in += bad.records
        self.quarantined[bad.reason] += bad.records
        self.first.setdefault(bad.reason, line)

    def _show(self, step: str, example: Example | NotConverted) -> None:
        examples = self.shown.setdefault(step, [])
        if len(examples) < self.examples:
            examples.append(example)


class _Parts:
    """The output, begun anew before it passes `limit` bytes (None: one file of questions)."""

    def __init__(self, out: Path, limit: int | None):
        self.out, self.limit = out, limit
        self.done: list[PartTally] = []
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

    def close(self) -> list[PartTally]:
        """File and number of records of every part."""
        if self.file:
            self.file.close()
        return self.done

    def _begin(self, name: str) -> None:
        self.close()
        self.file, self.size = open(self.out / name, "wb", BUFFER), 0  # noqa: SIM115  (closed by close)
        self.done.append({"file": name, "records": 0})


def _said(draft: Draft) -> str:
    """What the language of a record is told by: the text, or all turns and replies but the system's, which is often in
    another language. The last turn alone may be a number or a formula."""
    if "text" in draft:
        return draft["text"]
    turns = [turn["content"] for turn in draft["messages"] if turn["role"] != "system"]
    return "\n".join([*turns, *(draft[reply] for reply in ("chosen", "rejected") if reply in draft)])


def _sorted_ids(ids: bytearray) -> np.ndarray:
    pairs = np.frombuffer(ids, ">u8").reshape(-1, 2)
    rows = np.empty(len(pairs), ID)
    order = np.lexsort((pairs[:, 1], pairs[:, 0]))  # stable: of equal ids the first row comes first
    rows["hi"], rows["lo"], rows["row"] = pairs[order, 0], pairs[order, 1], order
    return rows
