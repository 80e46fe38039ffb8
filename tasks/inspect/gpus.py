"""GPUs by name, as their vendors' data sheets have them, and what share of the peak trainings like this one reach.

Peaks are dense BF16 with FP32 sums (sheets often print the figure with sparsity, twice that).
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from tasks.settings.errors import NodeError


@dataclass(frozen=True)
class Gpu:
    name: str
    memory: float
    """GB of 1e9 bytes."""
    tflops: float
    """BF16, dense."""
    bandwidth: float
    """GB/s of its memory."""
    link: float
    """GB/s to its neighbours in one node, one way: half of NVLink's figure on the sheet, or PCIe's."""
    mfu: tuple[float, float]
    """Share of the peak that trainings of about a billion parameters reach, from and to."""
    anchors: str
    """Where that range is from."""


_HOPPER = (
    (0.30, 0.45),
    "SmolLM3-3B 29 %, Llama-3.1-8B (torchtitan, eager) 33 %, OLMo-1B 40 %, MPT-1b 42 %; the goal here is 45 %",
)
_AMPERE = ((0.40, 0.60), "TinyLlama-1.1B 56 %, MPT-1b 60 %, GPT3-1.3B (flash-attn) 61 %; 40 % is a guess")
_GUESS = ((0.25, 0.50), "a guess: no training of this size on this GPU is known here")

GPUS = {
    gpu.name: gpu
    for gpu in (
        Gpu("H100", 80, 989, 3350, 450, *_HOPPER),
        Gpu("H100-PCIe", 80, 756, 2000, 64, *_HOPPER),
        Gpu("H800", 80, 989, 3350, 200, *_HOPPER),
        Gpu("H200", 141, 989, 4800, 450, *_HOPPER),
        Gpu("H20", 96, 148, 4000, 450, *_GUESS),
        Gpu("B200", 180, 2250, 8000, 900, *_GUESS),
        Gpu("A100-40", 40, 312, 1555, 300, *_AMPERE),
        Gpu("A100-80", 80, 312, 2039, 300, *_AMPERE),
        Gpu("A800-80", 80, 312, 2039, 200, *_AMPERE),
        Gpu("L40S", 48, 362, 864, 32, *_GUESS),
        Gpu("L4", 24, 121, 300, 32, *_GUESS),
        Gpu("4090", 24, 165, 1008, 32, *_GUESS),
        Gpu("3090", 24, 71, 936, 32, *_GUESS),
    )
}
NETWORK = 50.0
"""GB/s between nodes for each GPU: 400 Gbit/s."""
_ASKED = re.compile(r"(?:(?:([0-9]+)[xX])?([0-9]+)[xX])?(\S+)")


@dataclass(frozen=True)
class Fleet:
    """Nodes of equal GPUs."""

    nodes: int
    per_node: int
    gpu: Gpu

    def __str__(self) -> str:
        one = f"{self.per_node} x {self.gpu.name}"
        return one if self.nodes == 1 else f"{self.nodes} nodes of {one}"

    @property
    def link(self) -> float:
        """GB/s of the slowest way that a collective over all GPUs takes."""
        return self.gpu.link if self.nodes == 1 else min(self.gpu.link, NETWORK)


def fleet(text: str) -> Fleet:
    """`H100`, `8xH100`, `2x8xH100` (nodes x GPUs of a node). NodeError for what is none of these."""
    found = _ASKED.fullmatch(text.strip())
    name = found[3].lower() if found else ""
    gpu = next((gpu for gpu in GPUS.values() if gpu.name.lower() == name), None)
    if name.isdecimal() and gpu is None:
        raise NodeError(
            f"GPUS={text}: which GPUs? A number alone is enough for make check; make plan wants {name}xH100, or another of "
            f"{', '.join(GPUS)}"
        )
    if gpu is None or not found:
        raise NodeError(f"GPUS={text}: write 8xH100, or 2x8xH100 for two nodes; known are {', '.join(GPUS)}")
    nodes, per_node = int(found[1] or 1), int(found[2] or 1)
    if min(nodes, per_node) < 1:
        raise NodeError(f"GPUS={text}: there must be at least one GPU")
    return Fleet(nodes, per_node, gpu)
