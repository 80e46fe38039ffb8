"""Convert: each source's own schema → unified records, one node a source.

A reader (readers/<schema>.py) maps one raw value to one record; formats.py and tabular.py stream the
values out of JSON, parquet and CSV; job.py does so for one job, join.py puts the jobs together and
source.py is the way through. Malformed input goes to quarantine.jsonl with reason, file and position, and
the run goes on, up to convert.max_quarantined_share.
"""

from __future__ import annotations

from pydantic import ValidationError

from tasks.convert.job import Reading, Settings
from tasks.convert.source import EXAMPLES, convert_source
from tasks.download.names import few
from tasks.records.account import SourceAccount, headline
from tasks.settings.config import Source, SteelRun
from tasks.settings.errors import NodeError, complaint
from tasks.stage.node import Context, Node, Outcome


def nodes(config: SteelRun) -> list[Node]:
    """`convert:<name>` for every source; an unknown reader or option is refused here."""
    return [_node(config, name, source) for name, source in config.sources.items()]


def body(ctx: Context) -> Outcome:
    """Convert one source: its files are jobs of the pool, put together here."""
    from tasks.work import pool

    raw = ctx.inputs["raw"]
    files = {entry["path"]: entry["sha256"] for entry in raw.manifest["files"]}
    name = ctx.unit
    account = convert_source(raw.path, ctx.out, name, ctx.config, files, place=ctx, submit=pool.submit)
    quarantined, dropped = sum(account["quarantined"].values()), sum(account["dropped"].values())
    idle = idle_files(account)
    ctx.log.info("%s: %d of %d records kept%s", name, account["kept"], account["records_in"], idle)
    return Outcome(
        headline=f"{headline([account])}{idle}",
        counts={
            "files": account["files"],
            "records_in": account["records_in"],
            "kept": account["kept"],
            "quarantined": quarantined,
            "dropped": dropped,
            "chars_out": account["chars_out"],
        },
        summary=_summary(name, account),
        files=["accounting.json", EXAMPLES],
    )


def idle_files(account: SourceAccount, most: int = 3) -> str:
    """Which files of the source brought nothing, to follow a count; "" when all brought something."""
    clauses = (
        (account["files_ignored"], account["ignored"], "not read"),
        (account["files_without_records"], account["without_records"], "without a record"),
    )
    return "".join(
        f"; {count:,} {'file' if count == 1 else 'files'} {what}: {few(names, most, count)}"
        for count, names, what in clauses
        if count
    )


def _node(config: SteelRun, name: str, source: Source) -> Node:
    _check(name, source)
    return Node(
        name=f"convert:{name}",
        body=body,
        config=Settings(
            source=Reading.of(source),
            examples=config.clean.trace_examples,
            **config.convert.model_dump(),
        ),
        inputs={"raw": f"download:{name}"},
    )


def _check(name: str, source: Source) -> None:
    from tasks.convert import readers

    try:
        reader = readers.load(source.reader)
    except KeyError:
        choice = ", ".join(readers.names())
        raise NodeError(
            f"sources.{name}: there is no reader {source.reader!r}; choose one of: {choice}"
        ) from None
    if not reader.suits(source.use):
        why = ": it makes texts without a reply" if source.use == "sft" and reader.makes == "pretrain" else ""
        raise NodeError(f"sources.{name}: the reader {source.reader!r} is not for use: {source.use}{why}")
    try:
        reader.options.model_validate(source.options)
    except ValidationError as error:
        raise NodeError(complaint(error, f"sources.{name}.options")) from error


def _summary(name: str, account: SourceAccount) -> str:
    rows = [f"| kept | {account['kept']:,} |"]
    rows += [f"| dropped: {step} | {n:,} |" for step, n in account["dropped"].items()]
    rows += [f"| quarantined: {reason} | {n:,} |" for reason, n in account["quarantined"].items()]
    head = [
        f"**{name}**: {account['records_in']:,} records in {account['files']:,} files{idle_files(account, 20)}",
        "",
    ]
    return "\n".join([*head, "| | records |", "|---|---:|", *rows])
