"""Every kernel compiles for real GPUs, without one: Triton and ptxas cross-compile.

Says what the interpreter cannot: types agree, shared memory fits, Hopper gets its warp-group products (wgmma), and what
is held in registers stays there but for a little. Not how fast any of it is.
"""

from __future__ import annotations

import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels import cross_entropy, experts, launch, prefix, rms_norm, rope

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(launch.triton is None, reason="needs triton: install the one in requirements.txt"),
    pytest.mark.skipif(launch.INTERPRETED, reason="compiles kernels: run it without TRITON_INTERPRET"),
]
BF16, FP32 = torch.bfloat16, torch.float32
POINTERS = {BF16: "*bf16", FP32: "*fp32", torch.int64: "*i64", torch.uint8: "*u8"}
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that a program may have, by compute capability."""
SPILLED = 160
"""Bytes a thread may spill to memory: a few numbers of an epilogue, no accumulator."""


def _cases() -> dict[str, tuple[Any, dict[str, Any], dict[str, Any], dict[str, int]]]:
    """Steel-1B's sizes: (kernel, arguments, constants, options)."""
    norm = {"x": BF16, "weight": BF16, "scales": FP32, "width": 1792}
    strides = {n: 1792 for n in rope._turn.arg_names if n.endswith(("_b", "_t"))}
    moe = {"h": BF16, "c": FP32, "gate": BF16, "value": BF16, "tokens": 16_384, "experts": 6}
    widths = {"HIDDEN": 1792, "WIDTH": 448, "BLOCK_W": 64}
    scan = {"x": BF16, "logits": FP32, "starts": torch.uint8, "z": BF16, "lse": FP32}
    scan |= {"length": 2048, "width": 1792, "slots": 6}
    tiles = {"BLOCK_T": prefix.TILE_T, "BLOCK_D": prefix.TILE_D, "PRECISION": "tf32x3"}
    found = {
        "rms_norm": (
            rms_norm._forward,
            {**norm, "residual": BF16, "y": BF16, "total": BF16, "eps": 1e-6},
            {"RESIDUAL": True, "BLOCK": 2048},
            {"num_warps": 4},
        ),
        "rms_norm backward": (
            rms_norm._backward,
            {**norm, "grad_y": BF16, "grad_total": BF16, "grad_x": BF16, "partial": FP32, "rows": 16_384},
            {"RESIDUAL": True, "BLOCK": 2048},
            {"num_warps": 4},
        ),
        "rotate": (
            rope._turn,
            {**strides, "q": BF16, "k": BF16, "cos": FP32, "sin": FP32, "q_out": BF16, "k_out": BF16}
            | {"length": 2048, "heads": 32, "key_heads": 32, "cos_t": 56},
            {"BACKWARD": False, "HEADS": 32, "KEY_HEADS": 32, "HALF": 32, "half": 28}
            | {n: 56 for n in ("q_h", "k_h", "out_q_h", "out_k_h")},
            {"num_warps": 4},
        ),
        "cross-entropy": (
            cross_entropy._softmax_gradient,
            {"logits": BF16, "targets": torch.int64, "nll": FP32, "square": FP32, "classes": 151_936}
            | {"ignore_index": -100, "scale": 1.0, "z_loss": 0.0},
            {"GRADIENT": True, "BLOCK": 8192},
            {"num_warps": 16},
        ),
        "prefix": (prefix._forward, scan, tiles, {"num_warps": 4}),
        "prefix backward": (
            prefix._backward,
            {**scan, "grad_z": BF16, "grad_x": BF16, "partial": FP32},
            {**tiles, "BLOCK_P": 8},
            {"num_warps": 8},
        ),
    }
    for i, tile in enumerate(experts._TILES):
        constants, options = _split(tile)
        found[f"experts {i}"] = (experts._forward, {**moe, "y": BF16}, {**widths, **constants}, options)
    for i, tile in enumerate(experts._BACKWARD_TILES):
        constants, options = _split(tile)
        arguments = {**moe, "grad_y": BF16, "grad_av": BF16, "partial_c": FP32, "expert": 2, "tiles_d": 28}
        constants |= {**widths, "BLOCK_D": experts.BACKWARD_TILE_D}
        found[f"experts backward {i}"] = (experts._backward, arguments, constants, options)
    return found


def _split(tile: dict[str, int]) -> tuple[dict[str, int], dict[str, int]]:
    options = {k: v for k, v in tile.items() if k.startswith("num_")}
    return {k: v for k, v in tile.items() if k not in options}, options


@pytest.mark.parametrize("capability", [90, 80])
@pytest.mark.parametrize("name", list(_cases()) if launch.triton else [])
def test_a_kernel_compiles(name, capability, tmp_path):
    kernel, arguments, constants, options = _cases()[name]
    compiled = _compile(kernel, arguments, constants, options, capability)
    assert compiled.metadata.shared <= SHARED[capability]
    assert _spilled(compiled.asm["cubin"], tmp_path) <= SPILLED
    if name.startswith("experts"):
        assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in compiled.asm["ptx"]


def _compile(
    kernel: Any,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    options: dict[str, int],
    capability: int,
) -> Any:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    if isinstance(kernel, triton.runtime.autotuner.Autotuner):
        kernel = kernel.fn
    signature, aligned = {}, {}
    for i, name in enumerate(kernel.arg_names):
        value = arguments.get(name)
        if name in constants:
            signature[name] = "constexpr"
        elif isinstance(value, torch.dtype):
            signature[name], aligned[(i,)] = POINTERS[value], [["tt.divisibility", 16]]
        elif isinstance(value, int):
            signature[name] = "i32"
            if value % 16 == 0:
                aligned[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[name] = "fp32"
    values = {(kernel.arg_names.index(name),): value for name, value in constants.items()}
    source = ASTSource(kernel, signature, constexprs=values, attrs=aligned)
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def _spilled(cubin: bytes, folder: Path) -> int:
    """Bytes of a thread's stack, as the compiled code states it."""
    import triton

    file = folder / "kernel.cubin"
    file.write_bytes(cubin)
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    usage = subprocess.run([tool, "-res-usage", file], capture_output=True, text=True, check=True).stdout
    return int(re.search(r"STACK:(\d+)", usage).group(1))
