"""The memory of an optimizer step on real CPU ranks, by torch's profiler: `torchrun ... real_memory.py QUESTION.json`.

The same step as model.training.memory tracks, on the paths of a GPU that a CPU can run: plain operators, eager attention,
FP32. Prints a JSON object {"total": bytes of this rank}, from the first rank.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch

from bench.device import peak_bytes
from model.training import loss, parallel
from model.training.config import from_dict
from model.training.memory import blocks
from model.training.objectives import NextToken
from model.training.optim import clip, local_gradients, make_optimizer
from model.training.sharding import begin_micro_step


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    train = from_dict({**asked["train"], "device": "cpu"})
    loss.chunk_size = lambda *_: loss.CHUNK_TOKENS
    world = parallel.start(train)
    scorer = parallel.build(train, world)
    optimizer, objective = make_optimizer(scorer, train.optim, world.dtype), NextToken(train)

    def step() -> None:
        batch = blocks(asked["micro"], asked["length"], asked["documents"])
        stats = torch.zeros(1, dtype=torch.float64)
        for last in (False, True):
            begin_micro_step(scorer, train, last=last)
            value, sums = objective(scorer, batch, 1e-3)
            value.backward()
            stats += sums
        clip(local_gradients(scorer), 1.0, stats)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    step()
    held = [p.to_local() for p in scorer.parameters()]
    held += [getattr(v, "to_local", lambda v=v: v)() for s in optimizer.state.values() for v in s.values()]
    total = sum(t.numel() * t.element_size() for t in held) + peak_bytes(step)
    if world.first:
        print(json.dumps({"total": total}), flush=True)
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
