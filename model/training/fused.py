"""Which operators a training computes with: the plain ones of model/steel/ops.py, or the fused ones of kernels/.

    kernels: off    the definitions
             auto   the kernels on CUDA where triton is installed, else the definitions; said once in the log
             on     the kernels; a machine that has none is refused

A choice of how, not of what: the two agree to rounding, and the setting is no part of a result's fingerprint. The
kernels are registered with torch (torch.library), so torch.compile takes each as one opaque node of a block's graph;
FSDP2 sees parameters gathered and gradients reduced as ever. On a CPU nothing changes: the definitions run.
"""

from __future__ import annotations

import logging

import torch

from kernels import experts, launch, prefix, rms_norm, rope
from model.steel.ops import PLAIN, Ops
from model.training.config import ConfigError

log = logging.getLogger("steel.training")

FUSED = Ops(
    rms_norm=rms_norm.rms_norm,
    rms_norm_residual=rms_norm.rms_norm_residual,
    rotate=rope.rotate,
    combine_experts=experts.combine_experts,
    prefix_slots=prefix.prefix_slots,
)


def uses_kernels(setting: str, device: torch.device) -> bool:
    """Whether a run with this setting computes with the kernels on this device."""
    if setting == "off" or (setting == "auto" and device.type != "cuda"):
        return False
    if launch.triton is None:
        if setting == "on":
            raise ConfigError("kernels: on needs triton (pip install triton==3.7.1). Choose auto or off.")
        log.info("triton is missing: the plain operators are used")
        return False
    if device.type != "cuda" and not launch.INTERPRETED:
        raise ConfigError("kernels: on needs a CUDA device (or TRITON_INTERPRET=1). Choose auto or off.")
    log.info("the fused operators of kernels/ are used")
    return True


def operators(setting: str, device: torch.device) -> Ops:
    """The set of operators for `SteelForCausalLM.set_ops`."""
    return FUSED if uses_kernels(setting, device) else PLAIN
