"""The folders of a source's tokenized parts put together: shards numbered on, one account."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.records import account as accounts
from tasks.records.account import Split, SplitAccount, TokenizeAccount
from tasks.settings.files import link_or_copy


def join(source: str, folders: Sequence[Path], out: Path) -> TokenizeAccount:
    """Link the parts' shards into `out`, numbered on, and write the sum of their accounts."""
    parts: list[TokenizeAccount] = [accounts.read(folder) for folder in folders]
    total = TokenizeAccount(
        source=source,
        records_in=sum(part["records_in"] for part in parts),
        dropped={reason: sum(part["dropped"][reason] for part in parts) for reason in parts[0]["dropped"]},
        characters=sum(part["characters"] for part in parts),
        tokenizer_digest=parts[0]["tokenizer_digest"],
        encoder=", ".join(sorted({part["encoder"] for part in parts})),
        warnings=sorted({warning for part in parts for warning in part["warnings"]}),
        train=_shards("train", folders, [part["train"] for part in parts], out),
        val=_shards("val", folders, [part["val"] for part in parts], out),
    )
    accounts.write(out, total, b"\n")
    return total


def _shards(split: Split, folders: Sequence[Path], parts: Sequence[SplitAccount], out: Path) -> SplitAccount:
    """The shards of one split; a shard's name is its number over all parts."""
    shards = []
    for folder, part in zip(folders, parts, strict=True):
        for shard in part["shards"]:
            name = f"{split}-{len(shards):05d}.arrow"
            link_or_copy(folder / shard["file"], out / name)
            shards.append({**shard, "file": name})
    return SplitAccount(
        documents=sum(part["documents"] for part in parts),
        rows=sum(part["rows"] for part in parts),
        tokens=sum(part["tokens"] for part in parts),
        shards=shards,
    )
