"""Which attention computes packed rows: one name, checked against the machine before anything runs.

    auto                the best that this machine has and that has been tried; logged once
    flash_attention_4   flash-attn's CuTe kernels (Hopper, Blackwell)
    flash_attention_2   flash-attn's CUDA kernels (Ampere and later)
    varlen              torch's own variable-length attention, which is built from the same kernels
    sdpa                torch's scaled_dot_product_attention under the block-diagonal mask; anywhere
    eager               the definition; anywhere

The name is transformers' `attn_implementation`, so `from_pretrained(..., attn_implementation="auto")` and
`model.set_attn_implementation("varlen")` work. Rows that are not packed (generation) go through transformers' function
of that name, or through SDPA for `auto` and `varlen`.
This file is copied into every exported model folder: it imports nothing of this repository.
"""

from __future__ import annotations

import logging
from functools import cache
from importlib.util import find_spec

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

ATTENTIONS = ("auto", "flash_attention_4", "flash_attention_2", "varlen", "sdpa", "eager")
BEST_FIRST = ("varlen", "flash_attention_2", "sdpa")
"""What `auto` tries. flash_attention_4 joins once it has been run at this model's head size of 56."""
MODULES = {
    "flash_attention_4": ("flash_attn.cute", 9, "pip install 'flash-attn-4>=4.0.0b36'"),
    "flash_attention_2": (
        "flash_attn.flash_attn_interface",
        8,
        "pip install flash-attn --no-build-isolation",
    ),
    "varlen": ("torch.nn.attention.varlen", 8, "pip install 'torch>=2.10'"),
}
"""Where it is imported from, the least compute capability, and how to get it."""

log = logging.getLogger("steel.attention")

for _name in ("auto", "varlen"):
    ALL_ATTENTION_FUNCTIONS.register(_name, sdpa_attention_forward)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_name, sdpa_mask)


def choose(name: str, device: torch.device, dtype: torch.dtype) -> str:
    """The attention that `name` means here; what the machine cannot do is refused with the way out."""
    if name not in ATTENTIONS:
        raise ValueError(
            f"attention {name} cannot compute packed rows. Choose one of {', '.join(ATTENTIONS)}."
        )
    if name == "auto":
        return _best(str(device), dtype)
    why = _obstacle(name, str(device), dtype)
    if why:
        raise ValueError(f"attention {name} {why}. Choose auto to take what this machine has.")
    return name


@cache
def _best(device: str, dtype: torch.dtype) -> str:
    found = next(name for name in BEST_FIRST if _obstacle(name, device, dtype) is None)
    log.info("attention: %s (%s, %s)", found, device, str(dtype).removeprefix("torch."))
    return found


@cache
def _obstacle(name: str, device: str, dtype: torch.dtype) -> str | None:
    """What stands against computing with this one, or None."""
    if name not in MODULES:
        return None
    module, capability, remedy = MODULES[name]
    if not _exists(module):
        return f"is not installed: {remedy}"
    if not device.startswith("cuda"):
        return f"runs on CUDA devices only, this model is on {device}"
    if torch.cuda.get_device_capability(device)[0] < capability:
        return f"needs compute capability {capability}.0, this GPU has {torch.cuda.get_device_capability(device)}"
    if dtype not in (torch.bfloat16, torch.float16):
        return f"computes in BF16 or FP16, not in {str(dtype).removeprefix('torch.')}"
    return None


def _exists(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # the package above it
        return False
