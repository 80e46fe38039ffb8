"""Node tokenize:manifest: shards.json, the one description of what a model is trained on.

It names every shard with its digest and how often each of its blocks is seen an epoch (`repeats`,
from the weights), and refuses shards that do not belong together.
"""

from __future__ import annotations

import json
from typing import Any

from tasks.node import Context, NodeError, Outcome

FORMAT = 1


def body(ctx: Context) -> Outcome:
    """Write shards.json and say what is in it."""
    from tasks.tokenize.encode import Encoder

    encoder = Encoder(ctx.inputs["tokenizer"].path, "tokenizers")
    accounts = {
        name: artifact.read_json("accounting.json")
        for name, artifact in ctx.inputs.items()
        if name != "tokenizer"
    }
    manifest = build(accounts, encoder.digest, encoder.vocab_size, ctx.config)
    text = json.dumps(manifest, ensure_ascii=False, indent=1) + "\n"
    (ctx.out / "shards.json").write_text(text, "utf-8")
    table = mix_table(manifest)
    ctx.log.info("source mix of an epoch:\n%s", table)
    totals = manifest["totals"]
    return Outcome(
        headline=f"{totals['epoch_blocks']:,} blocks, {totals['epoch_tokens']:,} tokens an epoch",
        counts=totals,
        metrics={f"share/{name}": s["share"] for name, s in manifest["sources"].items()},
        extra={"tokenizer_digest": encoder.digest},
        summary=table,
        files=["shards.json"],
    )


def build(
    accounts: dict[str, dict[str, Any]], tokenizer_digest: str, vocab_size: int, config: Any
) -> dict[str, Any]:
    """The manifest, from the accounts of the sources."""
    weights, block_size = config["weights"], config["block_size"]
    sources: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, account in accounts.items():
        if account["tokenizer_digest"] != tokenizer_digest:
            raise NodeError(f"the shards of {name} were made with another tokenizer")
        weight = weights.get(name, 1)
        entry: dict[str, Any] = {"weight": weight}
        for split in ("train", "val"):
            entry[split] = [
                _shard(name, shard, weight if split == "train" else 1, seen)
                for shard in account[split]["shards"]
            ]
        for split in ("train", "val"):
            for key in ("documents", "tokens"):
                entry[f"{split}_{key}"] = account[split][key]
        entry["epoch_blocks"] = weight * account["train"]["rows"]
        entry["epoch_tokens"] = weight * account["train"]["tokens"]
        entry["encoder"] = account["encoder"]
        sources[name] = entry
    keys = ("epoch_blocks", "epoch_tokens", "train_documents", "train_tokens", "val_documents", "val_tokens")
    totals = {key: sum(entry[key] for entry in sources.values()) for key in keys}
    if not totals["epoch_blocks"]:
        raise NodeError(
            "there is nothing to train on: no source has a block (see clean and tokenize.weights)"
        )
    for entry in sources.values():
        entry["share"] = round(entry["epoch_tokens"] / totals["epoch_tokens"], 6)
    return {
        "format": FORMAT,
        "block_size": block_size,
        "tokenizer_digest": tokenizer_digest,
        "vocab_size": vocab_size,
        "sources": sources,
        "totals": totals,
    }


def _shard(source: str, shard: dict[str, Any], repeats: int, seen: dict[str, str]) -> dict[str, Any]:
    """A shard's entry; one whose content is there already is refused."""
    where = f"{source}/{shard['file']}"
    if (before := seen.setdefault(shard["digest"], where)) != where:
        raise NodeError(f"{where} has the same content as {before}; use tokenize.weights to repeat data")
    return {**shard, "repeats": repeats}


def mix_table(manifest: dict[str, Any]) -> str:
    """Tokens per source as a Markdown table."""
    lines = [
        "| source | documents | tokens | seen an epoch | blocks an epoch | share | validation tokens |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, s in manifest["sources"].items():
        lines.append(
            f"| {name} | {s['train_documents']:,} | {s['train_tokens']:,} | {s['weight']}× "
            f"| {s['epoch_blocks']:,} | {s['share']:.1%} | {s['val_tokens']:,} |"
        )
    t = manifest["totals"]
    lines.append(
        f"| **all** | {t['train_documents']:,} | {t['train_tokens']:,} | "
        f"| {t['epoch_blocks']:,} | 100 % | {t['val_tokens']:,} |"
    )
    return "\n".join(lines)
