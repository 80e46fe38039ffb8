"""Convert one source: raw files in, records (or questions), quarantine and accounts out.

    plan.py     which files, cut and grouped into jobs
    piece.py    one job, in a worker
    unique.py   which records repeat an earlier one
    here        the parts put together, and the account of the whole

Invariants, asserted at the end: every raw record is kept, quarantined (with reason, file and
position) or dropped by a named step; records_in = kept + quarantined + dropped; an id occurs once.
Memory is bounded by a job, not by the source. Same files in, same bytes out.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from tasks import partitions, parts
from tasks.convert import piece, plan, readers, unique
from tasks.convert.records import chars, opening
from tasks.node import Context, NodeError

DUPLICATE = "duplicate-id"
EXAMPLES = "examples.json"
JOB_BYTES = 256 << 20
CODE = tuple(
    f"tasks.convert.{module}" for module in ("records", "formats", "tabular", "json_array", "readers")
)
Submit = Callable[..., Future]


def convert_source(
    raw: str | Path,
    out: str | Path,
    name: str,
    source: Mapping[str, Any],
    settings: Mapping[str, Any],
    files: Mapping[str, str] | Sequence[str] | None = None,
    *,
    place: Context | None = None,
    submit: Submit | None = None,
) -> dict[str, Any]:
    """Convert the source `name` from folder `raw` into folder `out`; returns its accounting.

    `source` has reader, language and options; `settings` those of config.Convert and `examples`.
    `files` are the raw files' relative paths, best with their sha256 (default: all that are there).
    In a node, `place` is its context (finished jobs are kept beside its artifact) and `submit` its
    pool; without them everything happens here and now, and nothing is kept.
    """
    raw, out, submit = Path(raw), Path(out), submit or at_once
    if files is None:
        files = [p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file()]
    reader = readers.load(source["reader"])
    chosen = plan.choose(
        name, reader, reader.options.model_validate(source.get("options") or {}), list(files)
    )
    digests = {file: files[file] if isinstance(files, Mapping) else "" for file in chosen}
    scratch = None if place else Path(tempfile.mkdtemp(prefix="convert-", dir=out.parent))
    try:

        def run(jobs: list[partitions.Job]) -> list[Path]:
            return partitions.run(place or scratch, jobs, None if place else submit)

        pieces = plan.jobs(raw, digests, reader, settings.get("job_bytes", JOB_BYTES), run)
        folders = run(_jobs(raw, pieces, name, dict(source), settings))
        gathered = _gather(folders, reader.makes == "benchmark", out, submit)
    finally:
        if scratch:
            shutil.rmtree(scratch)
    account = _account(name, gathered, len(chosen), len(files) - len(chosen))
    _write(out / "accounting.json", account)
    _write(out / EXAMPLES, gathered.examples(settings.get("examples", piece.SETTINGS["examples"])))
    _check_share(name, account, gathered.first, settings["max_quarantined_share"], out / piece.QUARANTINE)
    return account


def at_once(function: Callable[..., Any], *args: Any) -> Future:
    """An engine without processes."""
    future: Future = Future()
    try:
        future.set_result(function(*args))
    except Exception as error:  # noqa: BLE001  (handed on, as a pool does)
        future.set_exception(error)
    return future


def _jobs(
    raw: Path,
    pieces: Sequence[Sequence[plan.Piece]],
    name: str,
    source: dict[str, Any],
    settings: Mapping[str, Any],
) -> list[partitions.Job]:
    wanted = {key: settings.get(key, default) for key, default in piece.SETTINGS.items()}
    return [
        partitions.Job(
            partitions.key(
                piece.convert_pieces,
                name,
                source,
                wanted,
                [[p.file.encode("utf-8", "backslashreplace").decode(), p.digest, p.span] for p in group],
                code=CODE,
            ),
            piece.convert_pieces,
            (str(raw), group, name, source, wanted),
        )
        for group in pieces
    ]


@dataclass
class _Gathered:
    """What the jobs counted, and what of their records repeats an earlier one."""

    tallies: list[dict[str, Any]]
    repeated: int = 0
    repeated_chars: int = 0
    shown: list[dict[str, str]] = field(default_factory=list)

    def total(self, key: str) -> int:
        return sum(tally[key] for tally in self.tallies)

    def counts(self, key: str) -> Counter[str]:
        return sum((Counter(tally[key]) for tally in self.tallies), Counter())

    @property
    def first(self) -> dict[str, dict[str, Any]]:
        """Reason -> the first line of quarantine."""
        return {reason: line for tally in reversed(self.tallies) for reason, line in tally["first"].items()}

    def examples(self, most: int) -> dict[str, list[dict[str, str]]]:
        """Step -> its first examples."""
        found: dict[str, list[dict[str, str]]] = {}
        for tally in self.tallies:
            for step, examples in tally["examples"].items():
                found.setdefault(step, []).extend(examples)
        if self.shown:
            found[DUPLICATE] = self.shown
        return {step: examples[:most] for step, examples in sorted(found.items())}


def _gather(folders: Sequence[Path], benchmark: bool, out: Path, submit: Submit) -> _Gathered:
    """Link what the jobs made into `out`, without the records that repeat an earlier one."""
    gathered = _Gathered([orjson.loads((folder / piece.TALLY).read_bytes()) for folder in folders])
    _concatenate([folder / piece.QUARANTINE for folder in folders], out / piece.QUARANTINE)
    lost = [folder / piece.DROPPED for folder in folders]
    if benchmark:
        partitions.link(folders[0] / piece.QUESTIONS, out / piece.QUESTIONS)
        _concatenate(lost, out / piece.DROPPED)
        return gathered
    number, rewriting = 0, []
    repeated = unique.repeats(folders) if folders else []
    for folder, tally, rows in zip(folders, gathered.tallies, repeated, strict=True):
        before = 0
        for part in tally["parts"]:
            gone = rows[(rows >= before) & (rows < before + part["records"])] - before
            before += part["records"]
            if len(gone) == part["records"]:  # a part of nothing but repeats leaves no file of records
                target = None
            else:
                target, number = out / parts.name(number), number + 1
            if len(gone):
                aside = out / f"{len(rewriting):05d}.{piece.DROPPED}.part"
                rewriting.append((aside, submit(without, folder / part["file"], gone, target, aside)))
            else:
                partitions.link(folder / part["file"], target)
    for aside, future in rewriting:
        records, size, shown = future.result()
        gathered.repeated += records
        gathered.repeated_chars += size
        gathered.shown += shown
        lost.append(aside)
    _concatenate(lost, out / piece.DROPPED)
    for aside, _ in rewriting:
        aside.unlink()
    if number == 1:  # no reason for a number
        (out / parts.name(0)).rename(out / "records.jsonl")
    return gathered


def without(
    path: Path, rows: np.ndarray, out: Path | None, aside: Path
) -> tuple[int, int, list[dict[str, str]]]:
    """Copy a part without these rows, which are listed in `aside`: their number, characters, examples."""
    gone, size, shown = set(rows.tolist()), 0, []
    with path.open("rb") as source, open(out or "/dev/null", "wb") as kept, aside.open("wb") as lost:
        for row, line in enumerate(source):
            if row not in gone:
                kept.write(line)
                continue
            record = orjson.loads(line)
            size += chars(record)
            found = {"id": record["id"], "operator": DUPLICATE, "at": record["meta"]["at"]}
            found["excerpt"] = opening(record)
            lost.write(orjson.dumps(found, option=orjson.OPT_APPEND_NEWLINE))
            if len(shown) < piece.SETTINGS["examples"]:
                shown.append(found)
    return len(gone), size, shown


def _concatenate(paths: Sequence[Path], target: Path) -> None:
    with target.open("wb") as whole:
        for path in paths:
            with path.open("rb") as part:
                shutil.copyfileobj(part, whole, 1 << 20)


def _account(name: str, gathered: _Gathered, files: int, ignored: int) -> dict[str, Any]:
    """The accounting of the source; AssertionError when it does not add up."""
    records_in, chars_in = gathered.total("records_in"), gathered.total("chars_in")
    dropped, dropped_chars = gathered.counts("dropped"), gathered.counts("dropped_chars")
    if gathered.repeated:
        dropped[DUPLICATE], dropped_chars[DUPLICATE] = gathered.repeated, gathered.repeated_chars
    kept, chars_out = (
        gathered.total("kept") - gathered.repeated,
        gathered.total("chars_out") - gathered.repeated_chars,
    )
    quarantined = dict(sorted(gathered.counts("quarantined").items()))
    assert records_in == kept + sum(quarantined.values()) + dropped.total()
    assert chars_in == chars_out + dropped_chars.total()
    return {
        "source": name,
        "records_in": records_in,
        "chars_in": chars_in,
        "kept": kept,
        "chars_out": chars_out,
        "quarantined": quarantined,
        "dropped": dict(sorted(dropped.items())),
        "changed": {},
        "steps": _steps(records_in - sum(quarantined.values()), chars_in, dropped, dropped_chars),
        "files": files,
        "files_ignored": ignored,
    }


def _steps(
    records: int, size: int, dropped: Mapping[str, int], dropped_chars: Mapping[str, int]
) -> list[dict[str, Any]]:
    steps = []
    for step, n in sorted(dropped.items()):
        after = {"out": records - n, "chars_out": size - dropped_chars[step]}
        steps.append({"operator": step, "in": records, "changed": 0, "dropped": n, "chars_in": size, **after})
        records, size = after["out"], after["chars_out"]
    return steps


def _check_share(
    name: str, account: Mapping[str, Any], first: Mapping[str, Any], limit: float, where: Path
) -> None:
    quarantined = sum(account["quarantined"].values())
    share = quarantined / account["records_in"] if account["records_in"] else 0.0
    if share > limit:
        most = sorted(account["quarantined"].items(), key=lambda item: (-item[1], item[0]))
        reasons = "; ".join(f"{reason} {n:,} (first: {_place(first[reason])})" for reason, n in most)
        raise NodeError(
            f"{name}: {quarantined:,} of {account['records_in']:,} records ({share:.0%}) cannot be read, more "
            f"than convert.max_quarantined_share = {limit:.0%} allows: {reasons}. All of them: {where}"
        )
    if not account["kept"]:
        lost = {**account["quarantined"], **account["dropped"]}
        reasons = "; ".join(f"{reason} {n:,}" for reason, n in lost.items())
        raise NodeError(
            f"{name}: no record is left of {account['records_in']:,} ({reasons or 'empty files'})"
        )


def _place(line: Mapping[str, Any]) -> str:
    """file:position, what exactly, and how it begins, on one line."""
    detail = f", {line['detail']}" if line.get("detail") else ""
    excerpt = " ".join(line["excerpt"][:60].split())
    return f"{line['file']}:{line['position']}{detail}{f' «{excerpt}»' if excerpt else ''}"


def _write(path: Path, value: Any) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
