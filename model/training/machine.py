"""What is here to train on. Asked in another process than the flow's: the answer needs torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """What a training would run on."""

    device: str
    gpus: int
    precision: str


def look(device: str, precision: str) -> Machine:
    """`device` and `precision` as the settings have them, `auto` included."""
    import torch

    from model.training.parallel import compute_dtype

    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    resolved = "bf16" if compute_dtype(precision, device) is torch.bfloat16 else "fp32"
    return Machine(device, torch.cuda.device_count() if device == "cuda" else 0, resolved)
