"""One training of a study: pretrain's own, with this model and this seed, then the leak."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tasks.settings.config import Model, Section, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.training import continuation, engine, pretrain
from tasks.work import pool


class Honest(Section):
    """Where the leak is measured: `positions` targets in each of `rows` validation rows."""

    rows: int
    positions: int


class Recipe(Section):
    """One variant with one seed."""

    model: Model
    train: Train
    seed: int
    """Of the fresh weights, the order of the data and the places where the leak is measured."""
    honest: Honest


def body(ctx: Context) -> Outcome:
    """Train, then score the same targets with the whole row and with the prefix alone."""
    recipe: Recipe = ctx.config
    shards = pretrain.read_shards(ctx)
    files, val_files = pretrain.data_files(ctx, shards)
    if not val_files:
        raise NodeError(
            "the ablation compares validation losses, and no source has any: see tokenize.val_share"
        )
    vocab_size = pretrain.rounded_vocab(recipe.model.vocabulary, shards["vocab_size"])
    trained = engine.train(
        ctx,
        "pretrain",
        recipe.train,
        files,
        nproc=ctx.runtime.sft_nproc or ctx.runtime.nproc,
        val_files=val_files,
        steps=engine.steps(recipe.train, sum(map(continuation.blocks_of, files))),
        model=pretrain.geometry(recipe.model, vocab_size),
        seed=recipe.seed,
    )
    length = document_length(shards)
    job = pool.submit(measure, ctx.out / "export", val_files, length, recipe.seed, recipe.honest)
    measured = job.result()
    (ctx.out / "honest.json").write_bytes(orjson.dumps(measured, option=orjson.OPT_INDENT_2) + b"\n")
    metrics = trained.headline()
    losses = {name: measured[name] for name in ("forced", "honest")}
    return Outcome(
        headline=f"val loss {metrics['val_loss']:.3f}; whole row {losses['forced']:.3f}, "
        f"prefix only {losses['honest']:.3f}",
        counts={"parameters": measured["parameters"], "targets": measured["targets"]},
        metrics={**metrics, **{f"loss/{name}": value for name, value in losses.items()}},
        extra={**measured, **trained.execution},
        files=["honest.json"],
    )


def measure(export: Path, val_files: list[dict], length: int, seed: int, places: Honest) -> dict[str, Any]:
    """Both losses of an exported model on the validation rows, its size, and its FLOPs a trained token."""
    from model import leak, scoring

    model = scoring.load(export)
    losses = leak.losses(model, val_files, rows=places.rows, positions=places.positions, seed=seed)
    difference = losses.honest - losses.forced
    return {
        "forced": float(losses.forced.mean()),
        "honest": float(losses.honest.mean()),
        "leak": float(difference.mean()),
        "largest_difference": float(abs(difference).max()),
        "targets": len(difference),
        "parameters": sum(p.numel() for p in model.parameters()),
        "document_length": length,
        "flops_per_token": float(model.config.num_flops_per_token(length)),
    }


def document_length(shards: dict[str, Any]) -> int:
    """Tokens of a mean training document, at most a row: what attention and slots run over."""
    totals = shards["totals"]
    return min(shards["block_size"], max(1, round(totals["train_tokens"] / totals["train_documents"])))
