"""Convert one source: raw files in, `records.jsonl` (or `questions.jsonl`), quarantine and accounts out.

Runs in a worker process. Invariants, asserted at the end: every raw record is kept, quarantined
(with reason, file and position) or dropped by a named step, records_in = kept + quarantined +
dropped. Same files in, same bytes out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import orjson

from tasks.convert import readers
from tasks.convert.formats import check_object
from tasks.convert.readers import Reader
from tasks.convert.records import (
    Bad,
    Malformed,
    Unwanted,
    chars,
    content,
    excerpt,
    guess_language,
    stable_id,
)
from tasks.node import NodeError

BUFFER = 1 << 20
DUPLICATE = "duplicate-id"


def convert_source(
    raw: str,
    out: str,
    name: str,
    source: Mapping[str, Any],
    settings: Mapping[str, Any],
    files: Sequence[str] | None = None,
) -> dict[str, Any]:
    """Convert the source `name` from folder `raw` into folder `out`; returns its accounting.

    `source` has reader, language and options; `settings` has max_chars and max_quarantined_share;
    `files` are the raw files' relative paths (default: all that are there).
    """
    reader = readers.load(source["reader"])
    options = reader.options.model_validate(source.get("options") or {})
    if files is None:
        files = [p.relative_to(raw).as_posix() for p in Path(raw).rglob("*") if p.is_file()]
    chosen = _choose(name, reader, options, files)
    out_file = "questions.jsonl" if reader.makes == "benchmark" else "records.jsonl"
    with (
        open(Path(out, out_file), "wb", BUFFER) as kept,
        open(Path(out, "quarantine.jsonl"), "wb", BUFFER) as aside,
    ):
        run = _Run(name, source.get("language", "zh"), reader, options, settings["max_chars"], kept, aside)
        for file in chosen:
            run.file(Path(raw, file), file)
    account = run.account(chosen, len(files) - len(chosen))
    Path(out, "accounting.json").write_bytes(orjson.dumps(account, option=orjson.OPT_INDENT_2) + b"\n")
    _check_share(name, account, run.first, settings["max_quarantined_share"])
    return account


def _choose(name: str, reader: Reader, options: Any, files: Sequence[str]) -> list[str]:
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
            f"{name}: none of the {len(files)} files is one for its reader ({', '.join(reader.suffixes)})"
        )
    return chosen


def _check_share(name: str, account: Mapping[str, Any], first: Mapping[str, str], limit: float) -> None:
    quarantined = sum(account["quarantined"].values())
    share = quarantined / account["records_in"] if account["records_in"] else 0.0
    if share > limit:
        reasons = "; ".join(
            f"{reason} {n:,} (first: {first[reason]})" for reason, n in account["quarantined"].items()
        )
        raise NodeError(
            f"{name}: {quarantined:,} of {account['records_in']:,} records ({share:.0%}) cannot be read, more "
            f"than convert.max_quarantined_share = {limit:.0%} allows: {reasons}"
        )
    if not account["kept"]:
        raise NodeError(f"{name}: no record is left of {account['records_in']:,} ({account['dropped']})")


class _Run:
    """The counts and outputs of one source while its files go through."""

    def __init__(
        self,
        name: str,
        language: str,
        reader: Reader,
        options: Any,
        max_chars: int,
        kept: BinaryIO,
        aside: BinaryIO,
    ):
        self.name, self.language, self.reader, self.options = name, language, reader, options
        self.max_chars = max_chars
        # a character takes at most 12 bytes in JSON (an escaped surrogate pair)
        self.max_bytes = 12 * max_chars + (1 << 16)
        self.kept_file, self.aside_file = kept, aside
        self.records_in = self.chars_in = self.kept = self.chars_out = 0
        self.quarantined: Counter[str] = Counter()
        self.first: dict[str, str] = {}
        self.dropped: Counter[str] = Counter()
        self.dropped_chars: Counter[str] = Counter()
        self.seen: set[bytes] = set()
        self.asked: Counter[str] = Counter()

    def file(self, path: Path, file: str) -> None:
        """Take every record of one raw file."""
        shown = file.encode("utf-8", "backslashreplace").decode()
        finish = self._question if self.reader.makes == "benchmark" else self._record
        for position, value, raw in self.reader.items(path, self.max_bytes):
            if isinstance(value, Bad):
                self._quarantine(value, shown, position, raw)
                continue
            step = ""
            try:
                draft = self.reader.convert(check_object(value), self.options, shown)
            except Malformed as bad:
                self._quarantine(Bad(bad.reason, bad.detail), shown, position, raw)
                continue
            except Unwanted as unwanted:
                step, draft = unwanted.step, unwanted.record
            size = chars(draft)
            if size > self.max_chars:
                self._quarantine(Bad("over-long record", f"{size} characters"), shown, position, raw)
                continue
            self.records_in += 1
            self.chars_in += size
            draft["meta"]["at"] = f"{shown}:{position}"
            # a record that is not wanted does not make its twin a duplicate
            record = None if step else finish(draft)
            if not step and record is None:
                step = DUPLICATE
            if step:
                self.dropped[step] += 1
                self.dropped_chars[step] += size
            else:
                self.kept += 1
                self.chars_out += size
                self.kept_file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def account(self, files: Sequence[str], ignored: int) -> dict[str, Any]:
        """The accounting of what has gone through; AssertionError when it does not add up."""
        quarantined = dict(sorted(self.quarantined.items()))
        dropped = dict(sorted(self.dropped.items()))
        assert self.records_in == self.kept + sum(quarantined.values()) + sum(dropped.values())
        assert self.chars_in == self.chars_out + sum(self.dropped_chars.values())
        return {
            "source": self.name,
            "records_in": self.records_in,
            "chars_in": self.chars_in,
            "kept": self.kept,
            "chars_out": self.chars_out,
            "quarantined": quarantined,
            "dropped": dropped,
            "changed": {},
            "steps": self._steps(dropped),
            "files": len(files),
            "files_ignored": ignored,
        }

    def _steps(self, dropped: Mapping[str, int]) -> list[dict[str, Any]]:
        steps, records, size = [], self.records_in - sum(self.quarantined.values()), self.chars_in
        for step, n in dropped.items():
            after = {"out": records - n, "chars_out": size - self.dropped_chars[step]}
            steps.append(
                {"operator": step, "in": records, "changed": 0, "dropped": n, "chars_in": size, **after}
            )
            records, size = after["out"], after["chars_out"]
        return steps

    def _record(self, draft: dict[str, Any]) -> dict[str, Any] | None:
        """The draft with id, source and language; None when its content has been seen."""
        parts = content(draft)
        identity = stable_id(self.name, parts)
        key = bytes.fromhex(identity)
        if key in self.seen:
            return None
        self.seen.add(key)
        language = draft.get("language") or self.language
        if language == "mixed":
            language = guess_language(draft.get("text") or draft["messages"][-1]["content"])
        return {"id": identity, "source": self.name, **draft, "language": language}

    def _question(self, draft: dict[str, Any]) -> dict[str, Any]:
        """A benchmark keeps its repeated questions: scores are over all of them."""
        parts = [draft["subject"], draft["split"], draft["question"], draft["choices"]]
        identity = stable_id(self.name, parts)
        self.asked[identity] += 1
        if self.asked[identity] > 1:
            identity = stable_id(self.name, [*parts, self.asked[identity]])
        language = draft.get("language") or self.language
        if language == "mixed":
            language = guess_language(draft["question"])
        return {"id": identity, "benchmark": self.name, **draft, "language": language}

    def _quarantine(self, bad: Bad, file: str, position: int, raw: Any) -> None:
        line = {"file": file, "position": position, "reason": bad.reason, "excerpt": excerpt(raw)}
        if bad.detail:
            line["detail"] = bad.detail
        if bad.records != 1:
            line["records"] = bad.records
        self.aside_file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
        self.records_in += bad.records
        self.quarantined[bad.reason] += bad.records
        self.first.setdefault(bad.reason, f"{file}:{position}")
