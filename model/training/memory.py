"""Memory of one rank of a training on GPUs that are not here: the engine's own step under fake tensors.

    python -m model.training.memory QUESTIONS.json       prints a JSON list, an answer for each

A question: {"train": the engine's configuration, "ranks": 8, "rows": [1, 2, 4, 8, 16], "micro": 8, "length": 2048,
"documents": 4, "limit": 74e9}. `rows` are the micro-batches that deal the batch; the largest that stays within `limit`
bytes is looked for.

The model is built and sharded by model/training/parallel.py over a fake process group, runs the step that the loop runs
(pretend.py: on the paths of a GPU), and torch's FSDPMemTracker adds up what is alive. The peak of a step is reported by
part, in bytes. Not counted, because it is not the engine's: the CUDA context, NCCL's and cuBLAS's buffers, and what the
allocator cannot use because it lies in pieces. `compile: true` and `float8` are looked at as if they were off.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.fsdp2_mem_tracker import FSDPMemTracker
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils.checkpoint import set_checkpoint_early_stop

from kernels import cross_entropy
from model.steel.configuration import SteelConfig
from model.steel.layout import Layout
from model.steel.soft_moe import SteelFFN
from model.training import parallel
from model.training.batch import Batch
from model.training.config import ConfigError, TrainConfig, from_dict
from model.training.loss import CHUNK_TOKENS
from model.training.objectives import Dpo, NextToken, Scorer
from model.training.optim import clip, local_gradients, make_optimizer
from model.training.pairs import PairBatch
from model.training.pretend import Answers, gpu, sizes
from model.training.sharding import begin_micro_step, make_mesh

PARTS = {
    "parameters": ("Sharded Param", "Buffer"),
    "gradients": ("Sharded Grad",),
    "optimizer": ("OptState",),
    "activations": ("Activation", "Inputs", "Temp"),
    "unsharded": ("Unsharded Param", "Unsharded Grad", "All Gather", "Reduce Scatter"),
}
"""Part -> the tracker's names. `unsharded`: gathered weights, whole gradients, and the buffers of collectives.
`_by_part` takes two more out of `activations`."""


@dataclass(frozen=True)
class Question:
    """One rank of `ranks`, and the micro-batches that could deal its share of the batch."""

    train: TrainConfig
    """Its objective is pretrain; `dpo` says otherwise, because a configuration of DPO needs a trained model."""
    ranks: int
    rows: list[int]
    """Ascending; rows of `length` tokens, or pairs."""
    micro: int
    """The one that is set."""
    length: int
    limit: float
    documents: int = 4
    """A row's."""
    dpo: bool = False
    """`rows` are pairs, each of two replies that fill a row."""
    group: int = 0
    """`rows` are prompts, each with so many replies that fill a row (GRPO); the rank also holds the model whole, to sample
    with it. 0: no such training."""
    reference: bool = False
    """A second model is held in shards: the start of a GRPO with a KL term."""

    @property
    def lines(self) -> int:
        """Rows of `length` tokens that one of `rows` stands for."""
        return 2 if self.dpo else self.group or 1


def answer(question: Question) -> dict[str, Any]:
    """Counts of the model; `peaks`: rows -> part -> bytes, of those that were looked at; `largest`: that fits, or 0."""
    geometry = parallel.read_geometry(question.train, None)
    if not isinstance(geometry, SteelConfig):
        raise ConfigError(f"memory is planned for Steel's own models, not for {geometry.model_type}")
    peaks = {question.micro: peak(question, geometry, question.micro)}
    low, high = 0, len(question.rows)  # rows[:low] fit, rows[high:] do not
    while low < high:
        # the one that is set is known: it halves the first time
        known = [i for i in range(low, high) if question.rows[i] in peaks]
        middle = known[0] if known else (low + high) // 2
        rows = question.rows[middle]
        if rows not in peaks:
            peaks[rows] = peak(question, geometry, rows)
        if peaks[rows]["total"] <= question.limit:
            low = middle + 1
        else:
            high = middle
    return {
        "parameters": geometry.num_params(),
        "parameters_without_embeddings": geometry.num_params(embeddings=False),
        "flops_per_token": geometry.num_flops_per_token(question.length),
        "peaks": {str(rows): parts for rows, parts in sorted(peaks.items())},
        "largest": question.rows[low - 1] if low else 0,
    }


def peak(question: Question, geometry: SteelConfig, rows: int) -> dict[str, int]:
    """Bytes alive at the fullest moment of an optimizer step, by part and in all."""
    counts = _counts(question, geometry, rows) if geometry.ffn_needs_layout else []
    dist.init_process_group("fake", rank=0, world_size=question.ranks, store=FakeStore())
    try:
        mesh = make_mesh("cpu", question.ranks, question.train.parallel)
        dtype = torch.float32 if question.train.precision == "fp32" else torch.bfloat16
        world = parallel.World(0, question.ranks, torch.device("cpu"), mesh, dtype)
        whole = set_checkpoint_early_stop(False)  # a second pass asks for as many counts as the first
        with gpu(), FakeTensorMode(allow_non_fake_inputs=True), whole, Answers(counts) as answers:
            return _tracked_step(question, world, rows, answers)
    finally:
        dist.destroy_process_group()


def _tracked_step(question: Question, world: parallel.World, rows: int, answers: Answers) -> dict[str, int]:
    """The loop's optimizer step, with the optimizer's state there from its beginning."""
    train = question.train
    scorer = parallel.build(replace(train, compile=False, float8="off"), world)
    scorer.lm.model.chunk_documents = False
    optimizer = make_optimizer(scorer, train.optim, world.dtype)
    optimizer.prepare()
    objective = (Dpo if question.dpo else NextToken)(train)
    batch = batch_of(question, rows)
    micro_steps = 1 if train.batch_size <= rows * world.size else 2  # more than two hold what two hold
    tracker = FSDPMemTracker(scorer, optimizer)
    tracker.track_inputs(tuple(v for v in vars(batch).values() if isinstance(v, torch.Tensor)))
    with tracker:
        stats = torch.zeros(len(objective.stats), dtype=torch.float64)
        for i in range(micro_steps):
            begin_micro_step(scorer, train, last=i == micro_steps - 1)
            tracker.reset_mod_stats()
            answers.rewind()
            value, sums = objective(scorer, batch, 1.0)
            value.backward()
            stats += sums
        clip(local_gradients(scorer), train.optim.grad_clip, stats)
    tracked = next(iter(tracker.get_tracker_snapshot("peak").values()))
    parts = _by_part(
        {getattr(k, "value", k): v for k, v in tracked.items()},
        scorer,
        optimizer,
        micro_steps,
        batch,
        world.dtype.itemsize,
    )
    if not question.group:
        return parts
    shards = question.ranks // train.parallel.replicate
    return beside(
        parts, sum(p.numel() for p in scorer.parameters()), world.dtype.itemsize, shards, question.reference
    )


def beside(parts: dict[str, int], parameters: int, size: int, shards: int, reference: bool) -> dict[str, int]:
    """`parts` with what GRPO holds beside the step: `sampler`, the whole model at `size` bytes a parameter, and
    `reference`, a shard of the start model in FP32."""
    held = {"sampler": size * parameters}
    if reference:
        held["reference"] = 4 * -(-parameters // shards)
    return {**parts, **held, "total": parts["total"] + sum(held.values())}


def _by_part(
    tracked: dict[str, int],
    scorer: Scorer,
    optimizer: torch.optim.Optimizer,
    micro_steps: int,
    batch: Any,
    size: int,
) -> dict[str, int]:
    """The tracker's names as ours. Between micro-steps gradients are whole and FP32; the tracker has them among what the
    backward pass made, as it has the loss's buffers among the activations: both are taken out by their known sizes."""
    strange = set(tracked) - {name for names in PARTS.values() for name in names} - {"Total", "OptState"}
    if strange:
        raise RuntimeError(f"torch's tracker names what is unknown here: {', '.join(sorted(strange))}")
    parts = {part: sum(tracked.get(name, 0) for name in names) for part, names in PARTS.items()}
    state = sum(_local_bytes(v) for s in optimizer.state.values() for v in s.values())
    parts["optimizer"] = state
    whole = 4 * sum(p.numel() for p in scorer.parameters()) if micro_steps > 1 else 0
    loss = loss_bytes(scorer, batch, size)
    whole = min(whole, parts["activations"])
    loss = min(loss, parts["activations"] - whole)
    parts["activations"] -= whole + loss
    parts["gradients"] += whole
    parts["loss"] = loss
    return {**parts, "total": tracked["Total"] - tracked.get("OptState", 0) + state}


def loss_bytes(scorer: Scorer, batch: Any, size: int) -> int:
    """What the loss holds beyond its gradients: logits of a chunk, and the head's gradient in FP32 (`size`: bytes of a number)."""
    head, tokens = scorer.lm.lm_head.weight, batch.targets
    classes, hidden = head.shape
    if scorer.fused:
        chunk = cross_entropy.default_chunk(tokens, classes, hidden, size)
        return cross_entropy.extra_bytes(tokens, classes, hidden, size, chunk)
    return min(CHUNK_TOKENS, tokens) * classes * (2 * size + 4) + 4 * classes * hidden


def _local_bytes(value: torch.Tensor) -> int:
    local = value.to_local() if isinstance(value, DTensor) else value
    return local.numel() * local.element_size()


def batch_of(question: Question, rows: int) -> Batch | PairBatch:
    """A full micro-batch. That of GRPO stands as blocks: its loss, too, goes over the head in chunks."""
    if question.dpo:
        return pairs(rows, question.length, question.documents)
    return blocks(rows * question.lines, question.length, question.documents)


def blocks(rows: int, length: int, documents: int) -> Batch:
    """A micro-batch of packed rows, each of so many documents of one length."""
    width = length + 1
    places = torch.arange(documents) * (width // documents)
    return Batch(
        tokens=torch.zeros(rows, width, dtype=torch.int32),
        starts=(places + torch.arange(rows).unsqueeze(1) * width).flatten(),
        valid=torch.full((rows,), width, dtype=torch.int32),
        loss_mask=None,
        targets=rows * (width - documents),
        blocks=torch.arange(rows),
        files=torch.zeros(rows, dtype=torch.int32),
    )


def pairs(count: int, length: int, documents: int = 1) -> PairBatch:
    """A micro-batch of pairs whose replies fill a row each, every position a target: no batch holds more."""
    rows = 2 * count
    number = torch.arange(rows)
    return PairBatch(
        input_ids=torch.zeros(rows, length, dtype=torch.long),
        labels=torch.zeros(rows, length, dtype=torch.long),
        position_ids=torch.arange(length).expand(rows, -1).contiguous(),
        doc_index=torch.zeros(rows, length, dtype=torch.int32),
        branch_index=None,
        reply_of_target=number.repeat_interleave(length),
        reply_tokens=torch.full((count, 2), float(length)),
        reference=torch.zeros(count, 2),
        index=torch.arange(count),
        files=torch.zeros(count, dtype=torch.int32),
    )


def _counts(question: Question, geometry: SteelConfig, rows: int) -> list[int]:
    """What one layer asks of the layout, from a narrow model on the documents themselves."""
    fields = {"ffn": geometry.ffn, "expert": geometry.expert, "num_experts": geometry.num_experts}
    narrow = SteelConfig(
        vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=1, expert_width=2,
        merge_segment=geometry.merge_segment, slots_per_expert=geometry.slots_per_expert, **fields,
    )  # fmt: skip
    ffn = SteelFFN(narrow)
    for parameter in ffn.parameters():
        torch.nn.init.ones_(parameter)
    batch = batch_of(question, rows)
    layout = Layout.of(rows * question.lines, question.length, torch.device("cpu"), doc_index=batch.doc_index)
    return sizes(lambda: ffn(torch.ones(*batch.doc_index.shape, narrow.hidden_size), layout))


def main() -> None:
    asked = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    questions = [Question(**{**q, "train": from_dict(q["train"])}) for q in asked]
    print(json.dumps([answer(question) for question in questions]))


if __name__ == "__main__":
    main()
