"""Convert one source: raw files in, records (or questions), quarantine and accounts out.

    jobs.py     which files, cut and grouped into jobs
    job.py      one job, in a worker
    join.py     the jobs' folders put together; unique.py says which records repeat an earlier one
    source.py   the way through, and the account of the whole

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
from pathlib import Path
from typing import Any

import orjson

from tasks.convert import job, readers
from tasks.convert import jobs as plan
from tasks.convert.job import Quarantined, Settings
from tasks.convert.join import DUPLICATE, Joined, Submit, join
from tasks.convert.verdicts import printable
from tasks.records import account as accounts
from tasks.records.account import Accounting, SourceAccount, StepAccount, balance
from tasks.settings.errors import NodeError
from tasks.stage.node import Context
from tasks.work import partitions

EXAMPLES = "examples.json"
NAMED = 100
"""Files that bring nothing are named up to this number, and counted beyond it."""


def convert_source(
    raw: str | Path,
    out: str | Path,
    name: str,
    settings: Settings,
    files: Mapping[str, str] | Sequence[str] | None = None,
    *,
    place: Context | None = None,
    submit: Submit | None = None,
) -> SourceAccount:
    """Convert the source `name` from folder `raw` into folder `out`; returns its account.

    `files` are the raw files' relative paths, best with their sha256 (default: every file in `raw`).
    In a node, `place` is its context (finished jobs are kept beside its artifact) and `submit` its
    pool; without them everything happens here and now, and nothing is kept.
    """
    raw, out, submit = Path(raw), Path(out), submit or at_once
    if files is None:
        files = [p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file()]
    reader = readers.load(settings.source.reader)
    chosen = plan.choose(name, reader, reader.options.model_validate(settings.source.options), list(files))
    digests = {file: files[file] if isinstance(files, Mapping) else "" for file in chosen}
    if not place:  # no job is looked up by its content: it is enough to tell the files apart
        digests = {file: f"file {number}" for number, file in enumerate(chosen)}
    scratch = None if place else Path(tempfile.mkdtemp(prefix="convert-", dir=out.parent))
    try:

        def run(jobs: list[partitions.Job]) -> list[Path]:
            return partitions.run(place or scratch, jobs, None if place else submit)

        pieces = plan.jobs(raw, digests, reader, settings.job_bytes, run)
        folders = run(_jobs(raw, pieces, name, settings))
        joined = join(folders, reader.makes == "benchmark", out, settings.examples, submit)
    finally:
        if scratch:
            shutil.rmtree(scratch)
    ignored = sorted(set(files) - set(chosen))
    account = _account(name, joined, len(set(chosen)), ignored)
    accounts.write(out, account, b"\n")
    examples = orjson.dumps(joined.examples(settings.examples), option=orjson.OPT_INDENT_2) + b"\n"
    (out / EXAMPLES).write_bytes(examples)
    _check_share(name, account, joined.first, settings.max_quarantined_share, out / job.QUARANTINE)
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
    raw: Path, pieces: Sequence[Sequence[plan.Piece]], name: str, settings: Settings
) -> list[partitions.Job]:
    counted = settings.model_dump(include={"source", "max_chars", "part_bytes", "examples"})
    return [
        partitions.Job(
            partitions.key(
                job.convert_pieces,
                name,
                counted,
                [[printable(p.file), p.digest, p.span] for p in group],
            ),
            job.convert_pieces,
            (str(raw), group, name, settings),
        )
        for group in pieces
    ]


def _account(name: str, joined: Joined, files: int, ignored: list[str]) -> SourceAccount:
    """The account of the source; NodeError when it does not add up."""
    dropped, dropped_chars = joined.counts("dropped"), joined.counts("dropped_chars")
    if joined.repeated:
        dropped[DUPLICATE], dropped_chars[DUPLICATE] = joined.repeated, joined.repeated_chars
    account = Accounting(
        name,
        records_in=joined.total("records_in"),
        chars_in=joined.total("chars_in"),
        kept=joined.total("kept") - joined.repeated,
        chars_out=joined.total("chars_out") - joined.repeated_chars,
        dropped=dropped,
        quarantined=joined.counts("quarantined"),
    )
    balance(name, "characters", account.chars_in, account.chars_out, dropped=dropped_chars.total())
    reached = account.records_in - account.quarantined.total()
    without_records = joined.without_records
    return account.without_steps() | {
        "steps": _steps(reached, account.chars_in, dropped, dropped_chars),
        "files": files,
        "files_ignored": len(ignored),
        "ignored": [printable(file) for file in ignored[:NAMED]],
        "files_without_records": len(without_records),
        "without_records": without_records[:NAMED],
        "bytes_in": joined.total("bytes_in"),
        "bytes_lost": joined.total("bytes_lost"),
    }


def _steps(records: int, chars: int, dropped: Counter[str], dropped_chars: Counter[str]) -> list[StepAccount]:
    steps: list[Any] = []
    for step, n in sorted(dropped.items()):
        after = {"out": records - n, "chars_out": chars - dropped_chars[step]}
        steps.append(
            {"operator": step, "in": records, "changed": 0, "dropped": n, "chars_in": chars, **after}
        )
        records, chars = after["out"], after["chars_out"]
    return steps


def _check_share(
    name: str, account: SourceAccount, first: Mapping[str, Quarantined], limit: float, where: Path
) -> None:
    """NodeError when too much was quarantined, by the number of records or by bytes, and when nothing is left."""
    quarantined = sum(account["quarantined"].values())
    share, lost = (
        quarantined / max(1, account["records_in"]),
        account["bytes_lost"] / max(1, account["bytes_in"]),
    )
    most = sorted(account["quarantined"].items(), key=lambda item: (-item[1], item[0]))
    reasons = "; ".join(f"{reason} {n:,} (first: {_place(first[reason])})" for reason, n in most)
    if max(share, lost) > limit:
        raise NodeError(
            f"{name}: {quarantined:,} of {account['records_in']:,} records ({share:.0%}) cannot be read, and with "
            f"them {lost:.0%} of the bytes; convert.max_quarantined_share = {limit:.0%} allows less: {reasons}. "
            f"All of them: {where}"
        )
    if not account["kept"]:
        dropped = [f"{step} {n:,} dropped" for step, n in account["dropped"].items()]
        why = "; ".join([*([reasons] if reasons else []), *dropped]) or "the files are empty"
        raise NodeError(
            f"{name}: no record is left of {account['records_in']:,} in {account['files']:,} files: {why}"
        )


def _place(line: Quarantined) -> str:
    """file:position, the detail and the beginning of the raw data, on one line."""
    detail = f", {line['detail']}" if line.get("detail") else ""
    excerpt = " ".join(line["excerpt"][:60].split())
    return f"{line['file']}:{line['position']}{detail}{f' «{excerpt}»' if excerpt else ''}"
