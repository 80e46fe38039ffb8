"""Nodes tokenize:<source>: the cleaned records of a source -> digested shards.

Every part of the records is a job of its own (tasks.work.partitions), addressed by its content, the
records dropped from it by deduplication and decontamination, the tokenizer and the settings. So a
killed node goes on with the parts that are left, and a part that is added makes new shards behind
the old ones. Shards are numbered on through the parts; accounting.json adds their accounts up.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from tasks.stage.node import Context, Outcome

SPLITS = ("train", "val")
CODE = (
    "model.chat_template",
    "model.tokenizer",
    "tasks.tokenize.chat",
    "tasks.tokenize.documents",
    "tasks.tokenize.encode",
    "tasks.tokenize.packing",
    "tasks.tokenize.job",
    "model.training.shards",
)
"""Modules that decide what is in a shard."""


def body(ctx: Context) -> Outcome:
    """Tokenize the parts of one source in the pool's workers."""
    source = ctx.name.partition(":")[2]
    account = collect(source, _run(ctx, source), ctx.out)
    for warning in account["warnings"]:
        ctx.log.warning(warning)
    if not account["train"]["documents"]:
        ctx.log.warning("%s has no training documents", source)
    train, val = account["train"], account["val"]
    return Outcome(
        headline=f"{train['tokens']:,} tokens",
        counts={
            "records_in": account["records_in"],
            "dropped": sum(account["dropped"].values()),
            "characters": account["characters"],
            **{f"{split}_{key}": account[split][key] for split in SPLITS for key in ("documents", "tokens")},
            "train_blocks": train["rows"],
            "val_blocks": val["rows"],
        },
        metrics={"characters_per_token": account["characters"] / max(1, train["tokens"] + val["tokens"])},
        extra={"encoder": account["encoder"], "tokenizer_digest": account["tokenizer_digest"]},
        files=["accounting.json"],
    )


def _run(ctx: Context, source: str) -> list[Path]:
    """The folders of the parts, in order."""
    from tasks.records import parts
    from tasks.tokenize.encode import tokenizer_digest
    from tasks.tokenize.job import tokenize_part
    from tasks.work import partitions, pool

    folder = ctx.inputs["tokenizer"].path
    drops = str(ctx.inputs["drops"].path / "drops.jsonl")
    settings, backend = dict(ctx.config), ctx.runtime.encoder
    found = parts.digested(ctx.inputs["records"])
    dropped = [pool.submit(dropped_of, str(part), drops) for part, _ in found]
    digest = tokenizer_digest(folder)
    jobs = []
    for (part, content), ids in zip(found, dropped, strict=True):
        made_from = (source, content, ids.result().hex(), digest, backend, settings)
        args = (source, str(part), ids.result(), str(folder), backend, settings)
        jobs.append(partitions.Job(partitions.key(tokenize_part, *made_from, code=CODE), tokenize_part, args))
    return partitions.run(ctx, jobs)


def dropped_of(part: str, drops: str) -> bytes:
    """The ids of a part's records that are in drops.jsonl, one after the other (in a pool worker).

    Not the whole list: a later part's duplicates are no reason to tokenize this one again.
    """
    import orjson

    if not (dropped := dropped_ids(drops)):
        return b""
    found = []
    with open(part, "rb") as lines:
        for line in lines:
            # records begin with their id; parsing the text behind it would cost many times as much
            text = line[7:39].decode() if line.startswith(b'{"id":"') else orjson.loads(line)["id"]
            if (id := bytes.fromhex(text)) in dropped:
                found.append(id)
    return b"".join(found)


def dropped_ids(drops: str) -> frozenset[bytes]:
    """The 16-byte ids in a drops.jsonl; a worker reads it once for all parts of a source."""
    return _read_ids(drops, Path(drops).stat().st_mtime_ns)


@lru_cache(maxsize=2)
def _read_ids(drops: str, changed: int) -> frozenset[bytes]:
    import orjson

    with open(drops, "rb") as lines:
        return frozenset(bytes.fromhex(orjson.loads(line)["id"]) for line in lines)


def collect(source: str, folders: Sequence[Path], out: Path) -> dict[str, Any]:
    """Link the parts' shards into `out`, numbered on, and write the sum of their accounts."""
    import orjson

    from tasks.tokenize.job import write_account
    from tasks.work import partitions

    accounts = [orjson.loads((folder / "accounting.json").read_bytes()) for folder in folders]
    total: dict[str, Any] = {
        "source": source,
        "records_in": sum(account["records_in"] for account in accounts),
        "dropped": {
            why: sum(account["dropped"][why] for account in accounts) for why in accounts[0]["dropped"]
        },
        "characters": sum(account["characters"] for account in accounts),
        "tokenizer_digest": accounts[0]["tokenizer_digest"],
        "encoder": ", ".join(sorted({account["encoder"] for account in accounts})),
        "warnings": sorted({warning for account in accounts for warning in account["warnings"]}),
    }
    for split in SPLITS:
        shards = []
        for folder, account in zip(folders, accounts, strict=True):
            for shard in account[split]["shards"]:
                name = f"{split}-{len(shards):05d}.arrow"
                partitions.link(folder / shard["file"], out / name)
                shards.append({**shard, "file": name})
        sums = {k: sum(account[split][k] for account in accounts) for k in ("documents", "rows", "tokens")}
        total[split] = {**sums, "shards": shards}
    write_account(out, total)
    return total
