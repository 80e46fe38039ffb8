"""`make plan GPUS=8xH100`: what a profile would cost on GPUs, as text. Needs no data, no servers and no GPU.

Exit code 1 and a line each for what is wrong with the settings there, or one for what does not fit.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from typing import Any

from flows.settings import State
from tasks.inspect import cost, preflight
from tasks.inspect.cost import Cost
from tasks.inspect.gpus import Fleet, fleet
from tasks.settings import profiles
from tasks.settings.errors import NodeError

SMALL = 50_000_000
"""Parameters below which no anchor for the speed is near."""
_PARTS = {
    "unsharded": "gathered weights and buffers",
    "loss": "logits of a chunk and the head's gradient",
    "sampler": "a whole copy that samples",
    "reference": "the start model",
}
_TOO_SMALL = "a GPU waits for the kernels of so small a model to be started, not for its products"
_UNITS = (("days", 86_400), ("hours", 3600), ("minutes", 60), ("seconds", 1))


def show(profile: str, overrides: Mapping[str, Any], gpus: str) -> int:
    """Print the cost of a profile on `gpus`, such as 2x8xH100."""
    try:
        config = profiles.load(profile, dict(overrides))
        machines = fleet(gpus)
        wrong = list(preflight.complaints(config, cost.STAGES, machines.per_node, machines.nodes))
        if wrong:
            print("\n".join(wrong), file=sys.stderr)
            return 1
        costs = cost.costs(config, machines, State.default().folder / "plans", _tell)
    except NodeError as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(text(config, machines, costs)))
    return 0


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def text(config: Any, machines: Fleet, costs: list[Cost]) -> Iterator[str]:
    """The lines of the plan."""
    gpu, first = machines.gpu, costs[0].answer
    yield f"{config.profile} on {machines} (data sheet: {gpu.memory:g} GB, {gpu.tflops:g} TFLOP/s BF16, {gpu.bandwidth:g} GB/s)"
    yield (
        f"{first['parameters']:,} parameters, {first['parameters_without_embeddings']:,} without embeddings; "
        f"{_model(config)}"
    )
    yield from _idle(machines, costs)
    for each in costs:
        yield ""
        yield from _memory(each)
        yield from _time(each, machines)
    yield ""
    yield "disk, besides downloads and cleaned records"
    for name, size in cost.disk(config, costs).items():
        yield f"  {_bytes(size):>12}  {name}"
    yield ""
    yield from _assumptions(config, machines, costs)


def _idle(machines: Fleet, costs: list[Cost]) -> Iterator[str]:
    there = machines.nodes * machines.per_node
    for ranks in sorted({each.training.ranks for each in costs} - {there}):
        stages = ", ".join(each.training.stage for each in costs if each.training.ranks == ranks)
        yield (
            f"{stages}: {there - ranks:,} of {there:,} GPUs stay idle, for runtime.nproc (sft_nproc of what follows "
            f"pretrain) asks for {ranks // machines.nodes} of each node"
        )


def _model(config: Any) -> str:
    if config.model.own:
        return f"FFN {config.model.ffn}"
    return str(
        (config.model.transformers or {}).get("model_type") or f"continued from {config.model.pretrained}"
    )


def _memory(each: Cost) -> Iterator[str]:
    training = each.training
    unit = {"dpo": "pairs of 2 x", "rl": f"prompts of {training.rows_each} x"}.get(
        training.stage, "blocks of"
    )
    yield (
        f"{training.stage}: {training.recipe.batch_size} {unit} {training.length:,} tokens a step = {training.ranks} ranks x "
        f"{training.share // training.micro} micro-steps x {training.micro}"
    )
    if options := list(_options(training)):
        yield f"  with {', '.join(options)}"
    yield f"  memory of a GPU, {_bytes(each.peak['total'])} of {_bytes(each.limit)} that may be used:"
    yield "    " + ", ".join(
        f"{_PARTS.get(name, name)} {_bytes(size)}" for name, size in each.peak.items() if name != "total"
    )
    largest = each.answer["largest"]
    taken = each.answer["peaks"][str(largest)]["total"]
    yield f"  largest micro-batch that fits and deals the batch: {largest} ({_bytes(taken)})"


def _options(training: Any) -> Iterator[str]:
    """What differs from the defaults and decides memory or time."""
    runtime = training.runtime
    if runtime.activation_checkpointing != "none":
        yield f"activation checkpointing {runtime.activation_checkpointing}"
    if runtime.reshard_after_forward:
        yield f"weights dropped after the forward pass ({training.gathers} gatherings a step)"
    if training.copies > 1:
        yield f"{training.copies} copies of {training.ranks // training.copies} shards (HSDP)"
    if training.recipe.optim.name != "adamw":
        yield training.recipe.optim.name
    if training.recipe.float8 != "off":
        yield f"float8 {training.recipe.float8} (looked at as if it were off)"


def _time(each: Cost, machines: Fleet) -> Iterator[str]:
    training = each.training
    if each.answer["parameters"] < SMALL:
        yield f"  {each.answer['flops_per_token'] / 1e6:.1f} MFLOP a token; no estimate of its time: {_TOO_SMALL}"
        return
    best, worst = cost.seconds_per_step(each, machines)
    tokens = training.tokens_per_step
    yield (
        f"  {each.answer['flops_per_token'] / 1e9:.3f} GFLOP a token; {tokens / worst:,.0f} to {tokens / best:,.0f} tokens/s "
        f"({tokens / worst / training.ranks:,.0f} to {tokens / best / training.ranks:,.0f} a GPU)"
    )
    steps = training.recipe.steps
    if not steps:
        yield (
            f"  its length depends on the data ({training.recipe.epochs:g} epochs); 1,000 steps take "
            f"{_between(1000 * best, 1000 * worst)}"
        )
        return
    gpu_hours = [steps * seconds * training.ranks / 3600 for seconds in (best, worst)]
    yield (
        f"  {steps:,} steps, {_tokens(steps * tokens)}: {_between(steps * best, steps * worst)}, "
        f"{_short(gpu_hours[0])} to {_short(gpu_hours[1])} GPU-hours"
    )


def _between(least: float, most: float) -> str:
    """Seconds as a range in the unit that suits the larger one."""
    unit, size = next((u for u in _UNITS if most >= u[1]), _UNITS[-1])
    return f"{least / size:,.3g} to {most / size:,.3g} {unit}"


def _short(number: float) -> str:
    return f"{number:,.0f}" if number >= 100 else f"{number:,.3g}"


def _tokens(count: float) -> str:
    return f"{count / 1e9:,.1f} billion tokens" if count >= 1e9 else f"{count / 1e6:,.2f} million tokens"


def _bytes(size: float) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e9 else f"{size / 1e6:,.1f} MB"


def _assumptions(config: Any, machines: Fleet, costs: list[Cost]) -> Iterator[str]:
    gpu = machines.gpu
    yield "assumed"
    if any(each.answer.get("estimated") for each in costs):
        yield (
            "  memory: an estimate, for this is no model of Steel's own: what autograd keeps of its forward, and what FSDP2 holds"
            f". {cost.reserve(gpu.memory):.1f} GB are left for what is not counted (a guess)"
        )
    else:
        yield (
            f"  memory: the engine's step by torch's FSDPMemTracker on fake tensors. Not counted, and {cost.reserve(gpu.memory):.1f} "
            "GB are left for it (a guess): CUDA context, NCCL, cuBLAS, fragmentation"
        )
    yield f"  speed: {gpu.mfu[0]:.0%} to {gpu.mfu[1]:.0%} of the peak ({gpu.anchors})"
    yield (
        f"  at worst, too: {machines.link:g} GB/s each way between GPUs and nothing of it behind computation. Nothing has been "
        "measured with this code on a GPU"
    )
    if config.runtime.compile:
        yield "  compile is looked at as if it were off"
    if any(each.training.stage == "dpo" for each in costs):
        yield "  dpo: every reply fills its row, and every token is a target; real pairs take less"
    if any(each.training.stage == "rl" for each in costs):
        yield (
            "  rl: every reply fills its row, every group is trained on, and sampling is bound by reading the weights; its cache "
            "and the start of its kernels are not counted"
        )
