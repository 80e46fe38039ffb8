"""Convert: each source's own schema → unified records, one node a source.

A reader (readers/<schema>.py) maps one raw value to one record; formats.py streams the values out
of JSON, parquet and CSV; source.py counts and writes. Malformed input goes to quarantine.jsonl with
reason, file and position, and the run goes on, up to convert.max_quarantined_share.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from tasks.config import Source, SteelRun
from tasks.node import Context, Node, NodeError, Outcome

CODE = (
    "tasks.convert.source",
    "tasks.convert.records",
    "tasks.convert.formats",
    "tasks.convert.json_array",
)


def nodes(config: SteelRun) -> list[Node]:
    """`convert:<name>` for every source; an unknown reader or option is refused here."""
    return [_node(config, name, source) for name, source in config.sources.items()]


def body(ctx: Context) -> Outcome:
    """Convert one source in a worker process."""
    from tasks import pool
    from tasks.convert.source import convert_source

    raw = ctx.inputs["raw"]
    files = [entry["path"] for entry in raw.manifest["files"]]
    name = ctx.name.partition(":")[2]
    settings = {key: ctx.config[key] for key in ("max_chars", "max_quarantined_share")}
    future = pool.submit(
        convert_source, str(raw.path), str(ctx.out), name, ctx.config["source"], settings, files
    )
    account = future.result()
    quarantined, dropped = sum(account["quarantined"].values()), sum(account["dropped"].values())
    ctx.log.info("%s: %d of %d records kept", name, account["kept"], account["records_in"])
    return Outcome(
        headline=f"{account['kept']:,} of {account['records_in']:,} kept",
        counts={
            "files": account["files"],
            "records_in": account["records_in"],
            "kept": account["kept"],
            "quarantined": quarantined,
            "dropped": dropped,
            "chars_out": account["chars_out"],
        },
        summary=_summary(name, account),
        files=["accounting.json"],
    )


def _node(config: SteelRun, name: str, source: Source) -> Node:
    _check(name, source)
    return Node(
        name=f"convert:{name}",
        body=body,
        config={
            "source": source.model_dump(include={"reader", "language", "options"}),
            "max_chars": config.convert.max_chars,
            "max_quarantined_share": config.convert.max_quarantined_share,
        },
        inputs={"raw": f"download:{name}"},
        code=(*CODE, "tasks.convert.readers"),
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
        raise NodeError(f"sources.{name}: the reader {source.reader!r} is not for use: {source.use}")
    try:
        reader.options.model_validate(source.options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise NodeError(f"sources.{name}.options.{where}: {first['msg']}") from error


def _summary(name: str, account: Mapping[str, Any]) -> str:
    rows = [f"| kept | {account['kept']:,} |"]
    rows += [f"| dropped: {step} | {n:,} |" for step, n in account["dropped"].items()]
    rows += [f"| quarantined: {reason} | {n:,} |" for reason, n in account["quarantined"].items()]
    head = [f"**{name}**: {account['records_in']:,} records in {account['files']:,} files", ""]
    return "\n".join([*head, "| | records |", "|---|---:|", *rows])
