"""Time, memory and ceilings of the device at hand, for the benches of kernels and training steps.

On CUDA: events around a call, with the L2 cache flushed before each; peak of torch's allocator. On a CPU: CPU time of
the process (machines are shared); the peak of what torch's allocator held, from its profiler. Ceilings are measured in
the same run: a copy for bytes per second, a matrix product for FLOP/s.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from statistics import median
from typing import Any

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read when torch is imported

import torch
from torch.profiler import ProfilerActivity, profile

from bench.common import cpu_seconds

FLUSH_BYTES = 256 << 20
"""More than any GPU's L2 cache."""


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def where() -> str:
    """What the numbers belong to."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()}, torch {torch.__version__}"
    return f"CPU, {torch.get_num_threads()} thread(s), torch {torch.__version__}"


def fits(run: Callable[[], Any]) -> bool:
    """Whether a call goes through, or the GPU's memory is too small for it."""
    try:
        run()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return False
    return True


def timed(contenders: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each, after a call to warm up (compile, tune), in turns."""
    for run in contenders.values():
        run()
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats):
        for name, run in contenders.items():
            times[name].append(_milliseconds(run))
    return {name: median(values) for name, values in times.items()}


def _milliseconds(run: Callable[[], Any]) -> float:
    if not torch.cuda.is_available():
        begin = cpu_seconds()
        run()
        return 1e3 * (cpu_seconds() - begin)
    torch.empty(FLUSH_BYTES, dtype=torch.int8, device="cuda").zero_()
    begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    begin.record()
    run()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end)


def _allocations(results: Any) -> Iterator[Any]:
    waiting = list(results.experimental_event_tree())
    while waiting:
        event = waiting.pop()
        waiting += event.children
        if event.name == "[memory]":
            yield event


def peak_bytes(run: Callable[[], Any]) -> int:
    """The most that one call held beyond what was there before."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        run()
    # by address: the profiler also reports a free of what was there before, with a size from an earlier profile
    sizes: dict[int, int] = {}
    held = peak = 0
    for event in sorted(_allocations(profiled.profiler.kineto_results), key=lambda e: e.start_time_ns):
        address, size = event.extra_fields.ptr, event.extra_fields.alloc_size
        if size > 0:
            sizes[address] = size
            held += size
        else:
            held -= sizes.pop(address, 0)
        peak = max(peak, held)
    return peak


def ceilings(dtype: torch.dtype) -> tuple[float, float]:
    """(bytes per second of a copy, both ways counted; FLOP/s of a product of two square matrices in `dtype`)."""
    on_gpu = torch.cuda.is_available()
    words = (1 << 28) if on_gpu else (1 << 24)
    source = torch.empty(words, dtype=torch.float32, device=device()).fill_(1.0)
    target = torch.empty_like(source)
    size = 8192 if on_gpu else 768
    a = torch.randn(size, size, device=device()).to(dtype)
    b, out = torch.randn_like(a), torch.empty_like(a)
    found = timed({"copy": lambda: target.copy_(source), "product": lambda: torch.mm(a, b, out=out)}, 10)
    return 2 * 4 * words / (found["copy"] / 1e3), 2 * size**3 / (found["product"] / 1e3)
