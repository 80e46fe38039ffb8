"""Convert one source: raw files in, records (or questions), quarantine and accounts out.

    jobs.py     which files, cut and grouped into jobs
    job.py      one job, in a worker
    join.py     the jobs' parts put together; unique.py says which records repeat an earlier one
    here        the way through, and the account of the whole

Invariants, asserted at the end: every raw record is kept, quarantined (with reason, file and
position) or dropped by a named step; records_in = kept + quarantined + dropped; an id occurs once.
Memory is bounded by a job, not by the source. Same files in, same bytes out.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import orjson

from tasks.convert import job, readers
from tasks.convert import jobs as plan
from tasks.convert.join import DUPLICATE, Gathered, Submit, gather
from tasks.convert.verdicts import check_sum
from tasks.settings.errors import NodeError
from tasks.stage.node import Context
from tasks.work import partitions

EXAMPLES = "examples.json"
NAMED = 100
"""Files that bring nothing are named up to this number, and counted beyond it."""
JOB_BYTES = 256 << 20
CODE = tuple(
    f"tasks.convert.{module}"
    for module in (
        "verdicts",
        "formats",
        "values",
        "streams",
        "tabular",
        "texts",
        "json_window",
        "json_lines",
        "json_array",
        "json_documents",
        "wrapped",
        "lost",
        "readers",
    )
)


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
    if not place:  # no job is looked up by its content: it is enough to tell the files apart
        digests = {file: f"file {number}" for number, file in enumerate(chosen)}
    scratch = None if place else Path(tempfile.mkdtemp(prefix="convert-", dir=out.parent))
    try:

        def run(jobs: list[partitions.Job]) -> list[Path]:
            return partitions.run(place or scratch, jobs, None if place else submit)

        pieces = plan.jobs(raw, digests, reader, settings.get("job_bytes", JOB_BYTES), run)
        folders = run(_jobs(raw, pieces, name, dict(source), settings))
        gathered = gather(folders, reader.makes == "benchmark", out, submit)
    finally:
        if scratch:
            shutil.rmtree(scratch)
    account = _account(name, gathered, sorted(set(chosen)), sorted(set(files) - set(chosen)))
    _write(out / "accounting.json", account)
    _write(out / EXAMPLES, gathered.examples(settings.get("examples", job.SETTINGS["examples"])))
    _check_share(name, account, gathered.first, settings["max_quarantined_share"], out / job.QUARANTINE)
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
    wanted = {key: settings.get(key, default) for key, default in job.SETTINGS.items()}
    return [
        partitions.Job(
            partitions.key(
                job.convert_pieces,
                name,
                source,
                wanted,
                [[p.file.encode("utf-8", "backslashreplace").decode(), p.digest, p.span] for p in group],
                code=CODE,
            ),
            job.convert_pieces,
            (str(raw), group, name, source, wanted),
        )
        for group in pieces
    ]


def _account(name: str, gathered: Gathered, files: list[str], ignored: list[str]) -> dict[str, Any]:
    """The accounting of the source; NodeError when it does not add up."""
    barren = gathered.without_records
    records_in, chars_in = gathered.total("records_in"), gathered.total("chars_in")
    dropped, dropped_chars = gathered.counts("dropped"), gathered.counts("dropped_chars")
    if gathered.repeated:
        dropped[DUPLICATE], dropped_chars[DUPLICATE] = gathered.repeated, gathered.repeated_chars
    kept, chars_out = (
        gathered.total("kept") - gathered.repeated,
        gathered.total("chars_out") - gathered.repeated_chars,
    )
    quarantined = dict(sorted(gathered.counts("quarantined").items()))
    set_aside = sum(quarantined.values())
    check_sum(name, "records", records_in, kept, quarantined=set_aside, dropped=dropped.total())
    check_sum(name, "characters", chars_in, chars_out, dropped=dropped_chars.total())
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
        "files": len(files),
        "files_ignored": len(ignored),
        "ignored": [file.encode("utf-8", "backslashreplace").decode() for file in ignored[:NAMED]],
        "files_without_records": len(barren),
        "without_records": barren[:NAMED],
        "bytes_in": gathered.total("bytes_in"),
        "bytes_lost": gathered.total("bytes_lost"),
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


def _place(line: Mapping[str, Any]) -> str:
    """file:position, what exactly, and how it begins, on one line."""
    detail = f", {line['detail']}" if line.get("detail") else ""
    excerpt = " ".join(line["excerpt"][:60].split())
    return f"{line['file']}:{line['position']}{detail}{f' «{excerpt}»' if excerpt else ''}"


def _write(path: Path, value: Any) -> None:
    path.write_bytes(orjson.dumps(value, option=orjson.OPT_INDENT_2) + b"\n")
