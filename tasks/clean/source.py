"""clean:<source>: the records of one source through the recipe of their kind, part by part.

Output: records (kept, in order) and dropped (id, operator, why, excerpt; `quarantined` with the reason where
the operator failed on it instead of judging it) in as many parts as came in,
accounting.json, examples.json (up to N before/after pairs an operator). A part is a partition: cleaned
once, wherever it is needed again. Memory is bounded by a batch; in = kept + dropped + quarantined is asserted. Ids are
unique within a source (tasks/convert sees to it).
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tasks.clean.chain import MAX_FAILED_SHARE, MAX_FAILURES, Chain
from tasks.clean.recipe import Step
from tasks.records import account as accounting
from tasks.records import parts
from tasks.records import record as records
from tasks.records.account import Accounting
from tasks.records.record import Record
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import partitions

BATCH_RECORDS = 1000
BATCH_CHARS = 4_000_000
CODE = (
    "tasks.clean.addresses",
    "tasks.clean.chain",
    "tasks.clean.fast",
    "tasks.clean.language",
    "tasks.clean.markup",
    "tasks.clean.operators",
    "tasks.clean.own_operators",
    "tasks.clean.recipe",
    "tasks.clean.traditional",
    "tasks.records.record",
    "tasks.records.account",
)


def body(ctx: Context) -> Outcome:
    """Clean the parts that have not been cleaned yet, then put them together."""
    started = time.monotonic()
    source, assets = ctx.inputs["records"].node.partition(":")[2], ctx.inputs["assets"]
    recipes, examples = ctx.config["recipes"], ctx.config["trace_examples"]
    jobs = [
        partitions.Job(
            partitions.key(clean_part, source, recipes, examples, assets.digest, digest, code=CODE),
            clean_part,
            (path, assets.path, recipes, examples, source),
        )
        for path, digest in parts.digested(ctx.inputs["records"])
    ]
    account = join(source, partitions.run(ctx, jobs), ctx.out, examples)
    seconds = time.monotonic() - started
    return Outcome(
        headline=accounting.headline([account]),
        counts={name: account[name] for name in ("records_in", "kept", "chars_in", "chars_out")}
        | {"quarantined": sum(account["quarantined"].values())}
        | {f"dropped.{name}": n for name, n in account["dropped"].items()},
        metrics={"kept_share": account["kept"] / max(1, account["records_in"]), "clean_seconds": seconds},
        extra={"dropped": account["dropped"], "changed": account["changed"]},
        summary=accounting.steps_table(account),
        files=["accounting.json", "examples.json"],
    )


def join(source: str, folders: Sequence[Path], out: Path, examples: int) -> dict[str, Any]:
    """Cleaned parts as one output: files linked, counts summed, the first examples of each operator."""
    found: dict[str, list[Any]] = {}
    for number, folder in enumerate(folders):
        for stem in ("records", "dropped"):
            name = parts.name(number, stem) if len(folders) > 1 else f"{stem}.jsonl"
            partitions.link(folder / f"{stem}.jsonl", out / name)
        for operator, shown in orjson.loads((folder / "examples.json").read_bytes()).items():
            found.setdefault(operator, []).extend(shown)
    result = accounting.total(
        source, [orjson.loads((folder / "accounting.json").read_bytes()) for folder in folders]
    )
    (out / "accounting.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    _check_share(result)
    order = dict.fromkeys(f"{step['recipe']}/{step['operator']}" for step in result["steps"])
    shortened = {operator: found[operator][:examples] for operator in order if operator in found}
    (out / "examples.json").write_bytes(orjson.dumps(shortened, option=orjson.OPT_INDENT_2))
    return result


def clean_part(
    out: Path, path: Path, models: Path, recipes: Mapping[str, Any], examples: int, source: str
) -> None:
    """One partition (runs in a worker process)."""
    clean_source(path, models, out, recipes, examples, source=source)


def clean_source(
    records_path: Path,
    models: Path | None,
    out: Path,
    recipes: Mapping[str, Sequence[Mapping[str, Any]]],
    examples: int,
    *,
    source: str,
) -> dict[str, Any]:
    """Clean the records of one file into the folder `out`; returns what is in accounting.json.

    `recipes` maps a kind of record to the steps of its recipe (see tasks/clean/recipe.py).
    """
    parsed = {kind: [Step.model_validate(step) for step in steps] for kind, steps in recipes.items()}
    chains: dict[str, Chain] = {}
    account = Accounting(source)
    with (out / "records.jsonl").open("wb") as kept_file, (out / "dropped.jsonl").open("wb") as dropped_file:
        for batch in _batches(records_path):
            account.records_in += len(batch)
            account.chars_in += sum(map(records.chars, batch))
            rows = {}
            for kind in sorted({record["kind"] for record in batch}):
                if kind not in chains:
                    if kind not in parsed:
                        raise NodeError(f"{source}: there is no recipe for records of kind {kind!r}")
                    chains[kind] = Chain(kind, parsed[kind], models, examples)
                for row in chains[kind].run(r for r in batch if r["kind"] == kind):
                    rows[row.record["id"]] = row
            for record in batch:
                row = rows[record["id"]]
                if row.gone:
                    if row.quarantined:
                        account.quarantined[row.quarantined] += 1
                    else:
                        account.dropped[row.dropped_by] += 1
                    text = accounting.excerpt("\n".join(row.texts)) or accounting.excerpt(
                        "\n".join(records.texts_of(record))
                    )
                    operator = row.dropped_by or row.failed_at
                    lost = {"id": record["id"], "operator": operator, "why": row.why, "excerpt": text}
                    if row.quarantined:
                        lost["quarantined"] = row.quarantined
                    dropped_file.write(records.dump(lost))
                else:
                    account.kept += 1
                    account.chars_out += row.chars
                    kept_file.write(records.dump(row.result()))
    found: dict[str, Any] = {}
    for _, chain in sorted(chains.items()):
        account.steps += chain.counts
        account.skipped += chain.skipped
        found |= chain.examples
    result = account.as_json()
    (out / "accounting.json").write_bytes(orjson.dumps(result, option=orjson.OPT_INDENT_2))
    (out / "examples.json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    return result


def _check_share(account: Mapping[str, Any]) -> None:
    """NodeError when operators failed on more of the whole source than happens to odd records."""
    failed, whole = sum(account["quarantined"].values()), account["records_in"]
    if failed > min(max(MAX_FAILURES, MAX_FAILED_SHARE * whole), whole / 2):
        reasons = "; ".join(f"{reason} {n:,}" for reason, n in account["quarantined"].items())
        raise NodeError(f"{account['source']}: {failed:,} of {whole:,} records are quarantined: {reasons}")


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
