"""Where a step's time goes beside computing, and how long the training will still take.

Ranks meet at the step's first exchange (its units) and at its last (the gradient's norm). Between the last and the next
first one each works by itself: the update, logging, saving, reading data. Its seconds travel with the units. So
nothing here sends a message or asks the device.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

WINDOWS = 20
"""Lines that the estimate of the time left looks back."""


class Pace:
    """Of one rank; `meet` has the numbers of all."""

    def __init__(self, rank: int, size: int):
        self._rank, self._size = rank, size
        self._left: float | None = None
        self._read = 0.0
        self._marks: deque[tuple[int, float]] = deque(maxlen=WINDOWS + 1)
        self._waits: list[float] = []
        self._reset()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Around the wait for a batch."""
        begin = time.perf_counter()
        yield
        self._read = time.perf_counter() - begin

    def arrive(self) -> list[float]:
        """To be added up over the ranks at the step's first exchange: seconds waited for data, then each rank's own
        seconds since the last one."""
        seconds = [0.0] * (1 + self._size)
        seconds[0], self._read = self._read, 0.0  # grpo meets twice in a step, and reads once
        if self._left is not None:
            seconds[1 + self._rank] = time.perf_counter() - self._left
        return seconds

    def meet(self, seconds: Sequence[float]) -> None:
        """What `arrive` gave, added up."""
        self._data += seconds[0] / self._size
        slowest = max(seconds[1:])
        self._waits = [wait + slowest - own for wait, own in zip(self._waits, seconds[1:], strict=True)]

    def part(self) -> None:
        """Behind the step's last exchange."""
        self._left = time.perf_counter()

    def made(self, done: int, seconds: float) -> None:
        """A step has ended; `seconds` it took."""
        self._steps += 1
        self._seconds += seconds
        if not self._marks:  # the first step of a process is slow: it counts for no estimate
            self._marks.append((done, time.perf_counter()))

    def close(self, done: int, steps: int) -> dict[str, Any]:
        """The line's entries; a new window begins."""
        now = time.perf_counter()
        line: dict[str, Any] = {}
        if done > self._marks[0][0]:
            first, then = self._marks[0]
            line["eta_s"] = round((now - then) / (done - first) * (steps - done), 1)
            self._marks.append((done, now))
        line["data_wait"] = round(self._data / self._seconds, 6) if self._seconds else 0.0
        if self._size > 1:
            by_rank = [round(wait / self._steps, 6) for wait in self._waits]
            line |= {"host_wait_s": max(by_rank), "host_wait_s_by_rank": by_rank}
        self._reset()
        return line

    def _reset(self) -> None:
        self._data = self._seconds = 0.0
        self._steps = 0
        self._waits = [0.0] * self._size


class BlockTimer:
    """Seconds that this rank itself computed in the blocks of a step, forward and backward, while it is `watch`ed.

    The clock runs from behind the gathering of a block's weights to its output, and from the output's gradient to the
    input's; what ranks wait for each other lies outside. On a GPU the clock is the device's (events).
    """

    def __init__(self, blocks: Sequence[torch.nn.Module], device: torch.device):
        self._blocks, self._cuda = blocks, device.type == "cuda"
        self._spans: list[tuple[Any, Any]] = []
        self._hooks: list[Any] = []

    def watch(self) -> None:
        self._spans = []
        for block in self._blocks:
            self._hooks += self._hook(block)

    def rest(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    def seconds(self) -> float:
        """Of the step; waits for the device."""
        if self._cuda:
            torch.cuda.synchronize()
            return sum(begin.elapsed_time(end) for begin, end in self._spans) / 1e3
        return sum(end - begin for begin, end in self._spans)

    def _hook(self, block: torch.nn.Module) -> list[Any]:
        forward: list[Any] = []
        backward: list[Any] = []

        def began(_: Any, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
            if _again():
                return
            backward.clear()
            entry = next((t for t in (*arguments, *named.values()) if _differentiable(t)), None)
            if entry is not None:
                entry.register_hook(ended_backward)
            forward.append(self._now())

        def ended(_: Any, arguments: tuple[Any, ...], output: Any) -> None:
            if _again() or not forward:
                return
            self._spans.append((forward.pop(), self._now()))
            left = output[0] if isinstance(output, tuple) else output
            if _differentiable(left):
                left.register_hook(began_backward)

        def began_backward(gradient: torch.Tensor) -> None:
            backward.append(self._now())

        def ended_backward(gradient: torch.Tensor) -> None:
            if backward:
                self._spans.append((backward.pop(), self._now()))

        return [
            block.register_forward_pre_hook(began, with_kwargs=True),
            block.register_forward_hook(ended),
        ]

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def memory(device: torch.device) -> dict[str, float]:
    """GB (1e9 bytes) of this process: on CUDA what tensors hold, what the allocator keeps, and the most that tensors
    ever held; on a CPU what is resident."""
    if device.type == "cuda":
        held, kept = torch.cuda.memory_allocated(device), torch.cuda.memory_reserved(device)
        peak = torch.cuda.max_memory_allocated(device)
        return {
            name: round(n / 1e9, 4) for name, n in (("allocated", held), ("reserved", kept), ("peak", peak))
        }
    return {"rss": round(resident() / 1e9, 4)}


def resident() -> int:
    """Bytes of this process in memory; 0 where the system does not say (no /proc)."""
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        return 0


def _differentiable(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.requires_grad


def _again() -> bool:
    """Whether a forward pass is run again for a backward one (activation checkpointing)."""
    return torch._C._current_graph_task_id() != -1
