"""Nodes tokenize:<source>: the cleaned records of a source -> digested shards.

    job.py      one part, in a worker
    join.py     the parts' shards put together
    source.py   the way through

Every part of the records is a job of its own (tasks.work.partitions), addressed by its content, the
records dropped from it by deduplication and decontamination, the tokenizer and the settings. So a
killed node goes on with the parts that are left, and a part that is added makes new shards behind
the old ones.
"""

from __future__ import annotations

from pathlib import Path

from tasks.records.account import FILE, SPLITS
from tasks.stage.node import Context, Outcome
from tasks.tokenize.join import join

JOB_CODE = (
    "model.chat_template",
    "model.training.shards",
    "tasks.tokenize.chat",
    "tasks.tokenize.documents",
    "tasks.tokenize.encode",
    "tasks.tokenize.packing",
    "tasks.records",
)
"""Modules that decide what is in a shard."""
CODE = (*JOB_CODE, "tasks.tokenize.job", "tasks.tokenize.join")


def body(ctx: Context) -> Outcome:
    """Tokenize the parts of one source in the pool's workers."""
    source = ctx.name.partition(":")[2]
    account = join(source, _run(ctx, source), ctx.out)
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
        files=[FILE],
    )


def _run(ctx: Context, source: str) -> list[Path]:
    """The folders of the parts, in order."""
    from tasks.records import drops, parts
    from tasks.tokenize.encode import tokenizer_digest
    from tasks.tokenize.job import tokenize_part
    from tasks.work import partitions, pool

    folder = ctx.inputs["tokenizer"].path
    listed = ctx.inputs["drops"].path / drops.DROPS
    settings, backend = ctx.config, ctx.runtime.encoder
    records = parts.digested(ctx.inputs["records"])
    dropped = [pool.submit(drops.of_part, part, listed) for part, _ in records]
    digest = tokenizer_digest(folder)
    jobs = []
    for (part, content), ids in zip(records, dropped, strict=True):
        made_from = (source, content, ids.result().hex(), digest, backend, settings)
        args = (source, str(part), ids.result(), str(folder), backend, settings)
        jobs.append(
            partitions.Job(partitions.key(tokenize_part, *made_from, code=JOB_CODE), tokenize_part, args)
        )
    return partitions.run(ctx, jobs)
