"""Node tokenize:manifest: shards.json, the one description of what a model is trained on.

It names every shard with its digest and how often an epoch takes its blocks (`repeats` and
`extra_rows`, from the weights), and refuses shards that do not belong together.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from math import floor
from typing import Any

from tasks.records.account import TokenizeAccount, read
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome

FORMAT = 2


class Settings(Section):
    """The recipe of the node tokenize:manifest."""

    block_size: int
    weights: dict[str, int | float]
    """Source -> how many times an epoch takes it; a whole number is an int."""


def body(ctx: Context) -> Outcome:
    """Write shards.json and say what is in it."""
    from tasks.tokenize.encode import Encoder

    encoder = Encoder(ctx.inputs["tokenizer"].path, "tokenizers")
    accounts: dict[str, TokenizeAccount] = {
        name: read(artifact.path) for name, artifact in ctx.inputs.items() if name != "tokenizer"
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
    accounts: Mapping[str, TokenizeAccount], tokenizer_digest: str, vocab_size: int, settings: Settings
) -> dict[str, Any]:
    """The manifest, from the accounts of the sources."""
    block_size = settings.block_size
    sources: dict[str, Any] = {}
    seen: dict[str, str] = {}
    for name, account in accounts.items():
        if account["tokenizer_digest"] != tokenizer_digest:
            raise NodeError(f"the shards of {name} were made with another tokenizer")
        weight = settings.weights.get(name, 1)
        train = account["train"]["shards"]
        counts = takes([shard["rows"] for shard in train], weight)
        entry: dict[str, Any] = {
            "weight": weight,
            "train": [
                {**_shard(name, shard, seen), "repeats": repeats, "extra_rows": extra}
                for shard, (repeats, extra) in zip(train, counts, strict=True)
            ],
            "val": [
                {**_shard(name, shard, seen), "repeats": 1, "extra_rows": 0}
                for shard in account["val"]["shards"]
            ],
        }
        for split in ("train", "val"):
            for key in ("documents", "tokens"):
                entry[f"{split}_{key}"] = account[split][key]
        entry["epoch_blocks"] = sum(s["rows"] * s["repeats"] + s["extra_rows"] for s in entry["train"])
        # extra rows are full ones: a shard's last row, which may be padded, is never among them
        entry["epoch_tokens"] = sum(
            s["tokens"] * s["repeats"] + s["extra_rows"] * (block_size + 1) for s in entry["train"]
        )
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


def takes(rows: Sequence[int], weight: float) -> Iterator[tuple[int, int]]:
    """(repeats, extra_rows) of each shard of a source, from its rows and the source's weight.

    Exact: Σ rows * repeats + extra_rows is weight * Σ rows, rounded half up. The extra rows are dealt out
    as the sum grows, so a shard that is added behind changes nothing for those before it.
    """
    share = Fraction(str(weight))  # 0.1 is a tenth
    repeats = floor(share)
    total = given = 0
    for count in rows:
        total += count
        extra = floor((share - repeats) * total + Fraction(1, 2)) - given
        given += extra
        yield (repeats + 1, 0) if extra == count else (repeats, extra)


def _shard(source: str, shard: dict[str, Any], seen: dict[str, str]) -> dict[str, Any]:
    """A shard's entry; NodeError when another shard has the same content."""
    where = f"{source}/{shard['file']}"
    if (before := seen.setdefault(shard["digest"], where)) != where:
        raise NodeError(f"{where} has the same content as {before}; use tokenize.weights to repeat data")
    return shard


def mix_table(manifest: dict[str, Any]) -> str:
    """Tokens per source as a Markdown table."""
    lines = [
        "| source | documents | tokens | seen an epoch | blocks an epoch | share | validation tokens |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for name, s in manifest["sources"].items():
        lines.append(
            f"| {name} | {s['train_documents']:,} | {s['train_tokens']:,} | {s['weight']:g}× "
            f"| {s['epoch_blocks']:,} | {s['share']:.1%} | {s['val_tokens']:,} |"
        )
    t = manifest["totals"]
    lines.append(
        f"| **all** | {t['train_documents']:,} | {t['train_tokens']:,} | "
        f"| {t['epoch_blocks']:,} | 100 % | {t['val_tokens']:,} |"
    )
    return "\n".join(lines)
