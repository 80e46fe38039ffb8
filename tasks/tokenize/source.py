"""Nodes tokenize:<source>: the cleaned records of a source -> digested shards.

Records in their order, without those that deduplication and decontamination dropped; a document
goes to the validation shards by a hash of its record id. accounting.json: every record that came
in was tokenized or dropped.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tasks import parts
from tasks.node import Context, NodeError, Outcome
from tasks.tokenize.chat import chat_pieces

ROWS_PER_SHARD = 65_536
"""512 MiB a shard at 2,048 tokens a row."""
BATCH_CHARS = 1 << 20
"""Characters handed to the encoder at a time."""
SPLITS = ("train", "val")


def body(ctx: Context) -> Outcome:
    """Tokenize one source in a pool worker."""
    from tasks import pool

    source = ctx.name.partition(":")[2]
    account = pool.submit(
        tokenize_source,
        source,
        str(ctx.inputs["records"].path),
        str(ctx.inputs["drops"].path / "drops.jsonl"),
        str(ctx.inputs["tokenizer"].path),
        str(ctx.out),
        dict(ctx.config),
    ).result()
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


def tokenize_source(
    source: str, records: str, drops: str, tokenizer: str, out: str, settings: dict[str, Any]
) -> dict[str, Any]:
    """Write train-*.arrow, val-*.arrow and accounting.json; returns the account."""
    import orjson

    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(tokenizer)
    metadata = {"source": source, "tokenizer_digest": encoder.digest, "separator": str(encoder.end_of_text)}
    outputs = {
        split: _Shards(Path(out), split, settings["block_size"], encoder.end_of_text, metadata)
        for split in SPLITS
    }
    tally = _Tally()
    for record, document in _documents(read_records(records, drops, tally), encoder, tally):
        split = "val" if is_validation(document.id, settings["val_share"]) else "train"
        tally.characters += _characters(record)
        outputs[split].add(document)
    account = {
        "source": source,
        "records_in": tally.records_in,
        "dropped": {"drops": tally.dropped, "empty": tally.empty},
        "characters": tally.characters,
        "tokenizer_digest": encoder.digest,
        "encoder": encoder.backend,
        "warnings": encoder.warnings,
        **{split: outputs[split].close() for split in SPLITS},
    }
    tokenized = sum(account[split]["documents"] for split in SPLITS)
    if tally.records_in != tokenized + tally.dropped + tally.empty:
        raise NodeError(f"{source}: {tally.records_in} records came in, {tokenized} went out: {account}")
    options = orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE
    (Path(out) / "accounting.json").write_bytes(orjson.dumps(account, option=options))
    return account


@dataclass
class _Tally:
    records_in: int = 0
    dropped: int = 0
    empty: int = 0
    characters: int = 0


def read_records(records: str, drops: str, tally: _Tally | None = None) -> Iterator[dict[str, Any]]:
    """Unified records (of a folder or one file) that are not in drops.jsonl, in order."""
    import orjson

    with open(drops, "rb") as file:
        dropped = {bytes.fromhex(orjson.loads(line)["id"]) for line in file}
    for line in parts.lines(records):
        record = orjson.loads(line)
        keep = bytes.fromhex(record["id"]) not in dropped
        if tally:
            tally.records_in += 1
            tally.dropped += not keep
        if keep:
            yield record


def is_validation(record_id: bytes, share: float) -> bool:
    """A document's split depends on its id alone: more data, or another order, never moves it."""
    import xxhash

    return xxhash.xxh3_64_intdigest(b"steel-val" + record_id) < share * 2**64


def _documents(records: Iterator[dict], encoder: Any, tally: _Tally) -> Iterator[tuple[dict, Any]]:
    """Encode in batches; a record without any token is counted as empty."""
    for batch in _batches(records):
        pieces = [list(_pieces(record)) for record in batch]
        texts = iter(encoder.encode_batch([p.text for each in pieces for p in each if not p.special]))
        for record, each in zip(batch, pieces, strict=True):
            document = _assemble(record, each, texts, encoder)
            if document is None:
                tally.empty += 1
            else:
                yield record, document


def _batches(records: Iterator[dict]) -> Iterator[list[dict]]:
    batch, size = [], 0
    for record in records:
        batch.append(record)
        size += _characters(record)
        if size >= BATCH_CHARS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _pieces(record: dict) -> Iterator[Any]:
    from tasks.tokenize.chat import Piece

    if "messages" in record:
        return chat_pieces(record["messages"])
    return iter([Piece(record["text"])])


def _assemble(record: dict, pieces: list, texts: Iterator, encoder: Any) -> Any:
    import numpy as np

    from tasks.tokenize.packing import Document

    parts = [np.array([encoder.special_id(p.text)], np.uint32) if p.special else next(texts) for p in pieces]
    tokens = parts[0] if len(parts) == 1 else np.concatenate(parts)
    return Document(bytes.fromhex(record["id"]), tokens) if len(tokens) else None


def _characters(record: dict) -> int:
    if "messages" in record:
        return sum(len(message["content"]) for message in record["messages"])
    return len(record["text"])


class _Shards:
    """The shards of one split: a new file after every ROWS_PER_SHARD rows; none if there are no rows."""

    def __init__(
        self, out: Path, split: str, block_size: int, separator: int, metadata: dict[str, str]
    ) -> None:
        from tasks.tokenize.packing import Packer

        self._out, self._split, self._block_size = out, split, block_size
        self._metadata = {**metadata, "split": split}
        self._packer = Packer(block_size, separator)
        self._writer: Any = None
        self._done: list[dict[str, Any]] = []
        self._documents = 0

    def add(self, document: Any) -> None:
        self._documents += 1
        self._write(self._packer.add(document))

    def close(self) -> dict[str, Any]:
        self._write(self._packer.close())
        self._close_shard()
        totals = {key: sum(shard[key] for shard in self._done) for key in ("rows", "tokens")}
        return {"documents": self._documents, **totals, "shards": self._done}

    def _write(self, rows: list) -> None:
        from model.training.shards import ShardWriter

        for row in rows:
            if self._writer is None:
                path = self._out / f"{self._split}-{len(self._done):05d}.arrow"
                self._writer = ShardWriter(path, self._block_size, self._metadata)
            self._writer.write(row)
            if self._writer.rows_written == ROWS_PER_SHARD:
                self._close_shard()

    def _close_shard(self) -> None:
        if self._writer is not None:
            self._done.append(asdict(self._writer.close()))
            self._writer = None
