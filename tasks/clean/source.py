"""clean:<source>: the records of one source through the recipe of their kind, part by part.

    job.py      one part, in a worker
    join.py     the cleaned parts put together
    source.py   the way through

Output: records (kept, in order) and dropped (`drops.NotClean`) in as many parts as came in, accounting.json,
examples.json. A cleaned part is kept as a partition: cleaned once, wherever it is needed again.
"""

from __future__ import annotations

import time

from tasks.clean.job import EXAMPLES, clean_part
from tasks.clean.join import join
from tasks.clean.recipe import Steps
from tasks.clean.shown import steps_table
from tasks.records import account as accounts
from tasks.records import parts
from tasks.settings.config import Section
from tasks.stage.node import Context, Outcome
from tasks.work import partitions

JOB_CODE = (
    "tasks.clean.chain",
    "tasks.clean.fast",
    "tasks.clean.language",
    "tasks.clean.operators",
    "tasks.clean.own_operators",
    "tasks.clean.recipe",
    "tasks.clean.shown",
    "tasks.records",
)
"""Modules that decide what is in the folder of a job."""
CODE = (*JOB_CODE, "tasks.clean.job", "tasks.clean.join")


class Settings(Section):
    """The recipe of a node clean:<source>."""

    recipes: Steps
    trace_examples: int
    """Kept of each operator."""


def body(ctx: Context) -> Outcome:
    """Clean the parts that have not been cleaned yet, then put them together."""
    started = time.monotonic()
    settings: Settings = ctx.config
    source, assets = ctx.inputs["records"].node.partition(":")[2], ctx.inputs["assets"]
    recipes, examples = settings.recipes, settings.trace_examples
    jobs = [
        partitions.Job(
            partitions.key(clean_part, source, settings, assets.digest, digest, code=JOB_CODE),
            clean_part,
            (path, assets.path, recipes, examples, source),
        )
        for path, digest in parts.digested(ctx.inputs["records"])
    ]
    account = join(source, partitions.run(ctx, jobs), ctx.out, examples)
    seconds = time.monotonic() - started
    return Outcome(
        headline=accounts.headline([account]),
        counts={name: account[name] for name in ("records_in", "kept", "chars_in", "chars_out")}
        | {"quarantined": sum(account["quarantined"].values())}
        | {f"dropped.{name}": n for name, n in account["dropped"].items()},
        metrics={"kept_share": account["kept"] / max(1, account["records_in"]), "clean_seconds": seconds},
        extra={"dropped": account["dropped"], "changed": account["changed"]},
        summary=steps_table(account),
        files=[accounts.FILE, EXAMPLES],
    )
