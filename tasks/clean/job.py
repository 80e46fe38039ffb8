"""One job of clean: a part of a source through the recipe of its records' kind.

It runs in a worker process and fills one folder: records.jsonl (kept, in order), dropped.jsonl (lines of
`drops.NotClean`), accounting.json, examples.json (up to N before/after pairs an operator). Memory is bounded
by a batch; in = kept + dropped + quarantined is checked. Ids are unique within a source (tasks/convert sees to it).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import orjson

from tasks.clean.chain import Chain, Row
from tasks.clean.recipe import Steps
from tasks.clean.shown import excerpt
from tasks.records import account as accounts
from tasks.records import record as records
from tasks.records.account import Accounting, SourceAccount
from tasks.records.drops import NotClean
from tasks.records.record import Record
from tasks.settings.errors import NodeError

BATCH_RECORDS = 1000
BATCH_CHARS = 4_000_000
EXAMPLES = "examples.json"


def clean_part(
    out: Path, path: Path, models: Path | None, recipes: Steps, examples: int, source: str
) -> SourceAccount:
    """The job: clean the records of the file `path` into the folder `out`; returns the account.

    `models` is the folder of clean:assets, `examples` how many are kept of each operator.
    """
    chains: dict[str, Chain] = {}
    account = Accounting(source)
    with (out / "records.jsonl").open("wb") as kept_file, (out / "dropped.jsonl").open("wb") as dropped_file:
        for batch in _batches(path):
            account.records_in += len(batch)
            account.chars_in += sum(map(records.chars, batch))
            rows = {}
            for kind in sorted({record["kind"] for record in batch}):
                if kind not in chains:
                    if kind not in recipes:
                        raise NodeError(f"{source}: there is no recipe for records of kind {kind!r}")
                    chains[kind] = Chain(kind, recipes[kind], models, examples)
                for row in chains[kind].run(r for r in batch if r["kind"] == kind):
                    rows[row.record["id"]] = row
            for record in batch:
                row = rows[record["id"]]
                if row.gone:
                    if row.quarantined:
                        account.quarantined[row.quarantined] += 1
                    else:
                        account.dropped[row.dropped_by] += 1
                    dropped_file.write(records.dump(_dropped(row)))
                else:
                    account.kept += 1
                    account.chars_out += row.chars
                    kept_file.write(records.dump(row.result()))
    shown: dict[str, Any] = {}
    for _, chain in sorted(chains.items()):
        account.steps += chain.counts
        account.skipped += chain.skipped
        shown |= chain.examples
    result = account.as_json()
    accounts.write(out, result)
    (out / EXAMPLES).write_bytes(orjson.dumps(shown, option=orjson.OPT_INDENT_2))
    return result


def _dropped(row: Row) -> NotClean:
    text = excerpt("\n".join(row.texts)) or excerpt("\n".join(records.texts(row.record)))
    operator = row.dropped_by or row.failed_at
    line = NotClean(id=row.record["id"], operator=operator, why=row.why, excerpt=text)
    if row.quarantined:
        line["quarantined"] = row.quarantined
    return line


def _batches(path: Path) -> Iterator[list[Record]]:
    batch: list[Record] = []
    chars = 0
    for record in records.read(path):
        batch.append(record)
        chars += records.chars(record)
        if len(batch) >= BATCH_RECORDS or chars >= BATCH_CHARS:
            yield batch
            batch, chars = [], 0
    if batch:
        yield batch
