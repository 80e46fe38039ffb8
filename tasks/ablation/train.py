"""One training of the ablation: pretrain's own, with this kind of FFN and this seed, then the honest loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson

from tasks.settings.config import Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.training import continuation, engine, pretrain


def body(ctx: Context) -> Outcome:
    """Train, then score the same targets with the whole row and with the prefix alone."""
    from tasks.training.launch import launch
    from tasks.work import pool

    wanted = ctx.config
    train = Train.model_validate(wanted["train"])
    shards = pretrain.read_shards(ctx)
    files, val_files = pretrain.data_files(ctx, shards)
    if not val_files:
        raise NodeError(
            "the ablation compares validation losses, and no source has any: see tokenize.val_share"
        )
    blocks = sum(map(continuation.blocks_of, files))
    vocab_size = pretrain.rounded_vocab(wanted["model"]["vocab_size"], shards["vocab_size"])
    found = pool.submit(engine.machine, ctx.runtime.device, train.precision).result()
    nproc = engine.ranks(found, ctx.runtime.sft_nproc, ctx.runtime.nproc)
    settings = engine.settings(
        ctx,
        "pretrain",
        train,
        files,
        val_files=val_files,
        steps=engine.steps(train, blocks),
        model={**wanted["model"], "vocab_size": vocab_size},
        seed=wanted["seed"],
    )
    launch(ctx, settings, nproc=nproc)
    engine.finish(ctx.out)
    length = document_length(shards)
    job = pool.submit(measure, ctx.out / "export", val_files, length, wanted["seed"], **wanted["honest"])
    measured = job.result()
    (ctx.out / "honest.json").write_bytes(orjson.dumps(measured, option=orjson.OPT_INDENT_2) + b"\n")
    metrics = engine.headline_metrics(engine.read_metrics(ctx.out))
    losses = {name: measured[name] for name in ("forced", "honest")}
    return Outcome(
        headline=f"val loss {metrics['val_loss']:.3f}; whole row {losses['forced']:.3f}, "
        f"prefix only {losses['honest']:.3f}",
        counts={"parameters": measured["parameters"], "targets": measured["targets"]},
        metrics={**metrics, **{f"loss/{name}": value for name, value in losses.items()}},
        extra={**measured, **engine.execution(ctx, train, found, nproc)},
        files=["honest.json"],
    )


def measure(
    export: Path, val_files: list[dict], length: int, seed: int, rows: int, positions: int
) -> dict[str, Any]:
    """Both losses of an exported model on the validation rows, its size, and its FLOPs a trained token."""
    from model import leak as honest
    from model import scoring

    model = scoring.load(export)
    found = honest.losses(model, val_files, rows=rows, positions=positions, seed=seed)
    leak = found.honest - found.forced
    return {
        "forced": float(found.forced.mean()),
        "honest": float(found.honest.mean()),
        "leak": float(leak.mean()),
        "largest_difference": float(abs(leak).max()),
        "targets": len(leak),
        "parameters": sum(p.numel() for p in model.parameters()),
        "document_length": length,
        "flops_per_token": float(model.config.num_flops_per_token(length)),
    }


def document_length(shards: dict[str, Any]) -> int:
    """Tokens of a mean training document, at most a row: what attention and slots run over."""
    totals = shards["totals"]
    return min(shards["block_size"], max(1, round(totals["train_tokens"] / totals["train_documents"])))
