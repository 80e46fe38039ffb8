"""What every Triton kernel takes of a multiprocessor, without a GPU: registers, spills, shared memory, occupancy.

    python -m bench.kernel_resources [--out FILE]

Triton and the ptxas in its wheel cross-compile each kernel, at Steel-1B's sizes and for every tile that tuning may
choose, for compute capability 8.0 (A100) and 9.0 (H100, H200). Registers and stack are what the compiled code states.
Occupancy is arithmetic: the warps that fit at once, of the 64 that a multiprocessor can hold. Prints a table, then JSON.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import re
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from kernels import cross_entropy, experts, launch, prefix, rms_norm, rope

BF16, FP32 = torch.bfloat16, torch.float32
POINTERS = {BF16: "*bf16", FP32: "*fp32", torch.int64: "*i64", torch.uint8: "*u8"}
SHARED = {80: 163 << 10, 90: 227 << 10}
"""Bytes of shared memory that a program may have, by compute capability; a multiprocessor has 1 KiB more."""
WARPS, PROGRAMS, REGISTERS = 64, 32, 65_536
"""Of a multiprocessor, for both (CUDA C++ Programming Guide, technical specifications)."""
SPILLED = 160
"""Bytes a thread may spill to memory: a few numbers of an epilogue, no accumulator."""


@dataclass(frozen=True)
class Resources:
    """Of one kernel on one capability."""

    kernel: str
    capability: int
    warps: int
    registers: int
    """Of a thread."""
    stack: int
    """Bytes of a thread in memory: what did not stay in registers."""
    shared: int
    """Bytes of a program."""
    programs: int
    """At once on a multiprocessor."""

    @property
    def occupancy(self) -> float:
        """Share of the warps that a multiprocessor can hold."""
        return self.programs * self.warps / WARPS

    @property
    def limit(self) -> str:
        """What holds more programs off."""
        by = _fitting(self.capability, self.warps, self.registers, self.shared)
        return min(by, key=lambda name: by[name])


def resources(name: str, capability: int) -> Resources:
    """Compile one of `cases` and read what it takes."""
    kernel, arguments, constants, options = cases()[name]
    made = compiled(kernel, arguments, constants, options, capability)
    registers, stack = _usage(made.asm["cubin"])
    warps, shared = made.metadata.num_warps, made.metadata.shared
    fitting = min(_fitting(capability, warps, registers, shared).values())
    return Resources(name, capability, warps, registers, stack, shared, fitting)


def cases() -> dict[str, tuple[Any, dict[str, Any], dict[str, Any], dict[str, int]]]:
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
            {"num_warps": 8},
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
        "prefix": (prefix._forward, scan, tiles, {"num_warps": 8}),
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


def compiled(
    kernel: Any,
    arguments: dict[str, Any],
    constants: dict[str, Any],
    options: dict[str, int],
    capability: int,
) -> Any:
    """Triton's compiled kernel for the capability, without a GPU."""
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


def _usage(cubin: bytes) -> tuple[int, int]:
    """(registers, bytes of stack) of a thread, as the compiled code states them."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        told = subprocess.run(
            [tool, "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    number = dict(re.findall(r"(REG|STACK):(\d+)", told))
    return int(number["REG"]), int(number["STACK"])


def _fitting(capability: int, warps: int, registers: int, shared: int) -> dict[str, int]:
    """Limit -> programs at once. A warp is given registers in steps of 256; a program takes 1 KiB of shared memory more."""
    of_warp = -(-32 * registers // 256) * 256
    return {
        "registers": REGISTERS // of_warp // warps,
        "shared memory": (SHARED[capability] + 1024) // (shared + 1024),
        "warps": WARPS // warps,
        "programs": PROGRAMS,
    }


def table(found: list[Resources]) -> str:
    """Markdown."""
    lines = [
        "| kernel | capability | warps | registers a thread | spilled bytes a thread | shared memory, KiB | programs at once "
        "| occupancy | limited by |",
        "|---|---|---:|---:|---:|---:|---:|---:|---|",
    ]
    lines += [
        f"| {r.kernel} | {r.capability / 10} | {r.warps} | {r.registers} | {r.stack} | {r.shared / 1024:.1f} | {r.programs} "
        f"| {r.occupancy:.0%} | {r.limit} |"
        for r in found
    ]
    return "\n".join(lines)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m bench.kernel_resources", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("--out", type=Path, help="write the JSON there, too")
    options = parser.parse_args(arguments)
    if launch.triton is None or launch.INTERPRETED:
        print("triton is needed, without TRITON_INTERPRET: it compiles the kernels", file=sys.stderr)
        return 2
    found = [resources(name, capability) for name in cases() for capability in SHARED]
    print(table(found))
    text = json.dumps(
        {
            "triton": launch.triton.__version__,
            "kernels": [{**dataclasses.asdict(r), "occupancy": r.occupancy, "limit": r.limit} for r in found],
        }
    )
    print(text)
    if options.out:
        options.out.write_text(text + "\n", "utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
