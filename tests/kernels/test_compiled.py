"""Every kernel compiles for real GPUs, without one: Triton and ptxas cross-compile.

Says what the interpreter cannot: types agree, shared memory fits, Hopper gets its warp-group products (wgmma), and what
is held in registers stays there but for a little. Not how fast any of it is.
"""

from __future__ import annotations

import pytest

from bench import kernel_resources as bench
from kernels import launch

needs_triton = [
    pytest.mark.skipif(launch.triton is None, reason="needs triton: install the one in requirements.txt"),
    pytest.mark.skipif(launch.INTERPRETED, reason="compiles kernels: run it without TRITON_INTERPRET"),
]
pytestmark = needs_triton


@pytest.mark.slow
@pytest.mark.parametrize("capability", bench.SHARED)
@pytest.mark.parametrize("name", list(bench.cases()) if launch.triton else [])
def test_a_kernel_compiles_and_spills_little(name, capability):
    found = bench.resources(name, capability)
    assert found.shared <= bench.SHARED[capability]
    assert found.stack <= bench.SPILLED
    assert found.programs >= 1
    if name.startswith("experts"):
        compiled = bench.compiled(*bench.cases()[name], capability)
        assert ("wgmma.mma_async" if capability == 90 else "mma.sync") in compiled.asm["ptx"]


def test_a_kernel_that_spills_is_seen():
    """So many numbers a thread that no register file holds them."""
    kernel, arguments, constants, _ = bench.cases()["rms_norm backward"]
    made = bench.compiled(kernel, arguments, {**constants, "BLOCK": 8192}, {"num_warps": 1}, 80)
    _, stack = bench._usage(made.asm["cubin"])
    assert stack > bench.SPILLED


def test_occupancy_is_that_of_the_vendors_arithmetic():
    def at_once(capability, warps, registers, shared):
        return min(bench._fitting(capability, warps, registers, shared).values())

    assert at_once(80, 4, 32, 0) == 16  # all 64 warps
    assert at_once(80, 8, 128, 0) == 2  # 8 * 32 * 128 registers, of 65,536
    assert at_once(80, 4, 33, 0) == 12  # 33 registers are given as 40
    assert at_once(90, 4, 32, 100 << 10) == 2  # 228 KiB, 101 each
    assert at_once(80, 4, 32, 100 << 10) == 1  # 164 KiB
