"""What a model reaches that knows only how often each token occurs: the line a loss must fall below.

Counts come from the training rows (weighted as they are trained on, one added to every token), the
loss from the validation rows, in nats per token like the engine's. At most MAX_TOKENS of either are
read per source: a unigram model has learnt all it can long before.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tasks.report.gather import Nodes

MAX_TOKENS = 20_000_000


def loss(nodes: Nodes) -> float | None:
    """Unigram cross-entropy of the validation shards; None without shards to measure on."""
    import numpy as np

    if "tokenize:manifest" not in nodes:
        return None
    shards = nodes["tokenize:manifest"].read_json("shards.json")
    counts = np.ones(int(shards["vocab_size"]), np.float64)
    held_out = np.zeros_like(counts)
    for source, entry in shards["sources"].items():
        artifact = nodes.get(f"tokenize:{source}")
        if artifact is None:
            return None
        for into, files, weight in (
            (counts, entry["train"], entry.get("weight", 1)),
            (held_out, entry["val"], 1),
        ):
            read = 0
            for shard in files:
                for tokens in _tokens(artifact.path / shard["file"]):
                    into += weight * np.bincount(tokens, minlength=len(into))
                    read += len(tokens)
                    if read >= MAX_TOKENS:
                        break
    if not held_out.sum():
        return None
    return float(-(held_out * np.log(counts / counts.sum())).sum() / held_out.sum())


def _tokens(path: Path) -> Iterator:
    """The real tokens of a shard, a record batch at a time."""
    import numpy as np
    import pyarrow as pa

    with pa.memory_map(str(path)) as source:
        reader = pa.ipc.open_file(source)
        for index in range(reader.num_record_batches):
            batch = reader.get_batch(index)
            ids = batch.column("input_ids")
            wide = ids.type.list_size
            rows = ids.flatten().to_numpy().reshape(-1, wide)
            valid = batch.column("valid").to_numpy()
            yield rows[np.arange(wide)[None, :] < valid[:, None]]
