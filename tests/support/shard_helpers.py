"""Small shards with tokens that tell where they come from."""

from pathlib import Path

import numpy as np

from model.training.shards import Row, ShardInfo, write_shard

PADDING = 9


def make_rows(rows: int, block_size: int, base: int = 0) -> list[Row]:
    """Row r holds base + r in its first token; each row starts a second document at 3."""
    made = []
    for r in range(rows):
        tokens = np.arange(block_size + 1, dtype=np.uint32) + 100_000
        tokens[0] = base + r
        ids = [(base + r).to_bytes(15, "big") + bytes([k]) for k in range(2)]
        made.append(Row(tokens, np.array([0, 3], np.int32), ids, block_size + 1))
    return made


def make_file(path: Path, rows: int, block_size: int = 8, base: int = 0) -> ShardInfo:
    return write_shard(path, make_rows(rows, block_size, base), block_size, {"source": path.stem})
