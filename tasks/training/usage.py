"""What a training takes of its machine: the processors, the memory, the GPUs. MLflow shows them as system metrics.

The names begin with `system/`, as MLflow's own collector writes them, and go the way of all metrics: an outage of
MLflow leaves no gap. GPUs are asked through NVIDIA's library (package nvidia-ml-py, requirements-gpu.txt) where it is
installed; that part has not been run yet.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any

import psutil

log = logging.getLogger(__name__)
MB = 1e6


class Usage:
    """Samples of one training's machine."""

    def __init__(self, processes: Callable[[], Iterable[psutil.Process]]):
        """`processes`: the training's own ones, as they are now."""
        self._processes = processes
        self._gpus = _gpus()
        psutil.cpu_percent()  # the first call begins the interval that the next one is about

    def sample(self) -> dict[str, float]:
        """Metric -> value: shares in percent (of all cores), sizes in megabytes (10^6 bytes)."""
        memory = psutil.virtual_memory()
        return {
            "system/cpu_utilization_percentage": psutil.cpu_percent(),
            "system/system_memory_usage_megabytes": memory.used / MB,
            "system/system_memory_usage_percentage": memory.percent,
            "system/training_memory_megabytes": sum(map(_resident, self._processes())) / MB,
            **self._of_gpus(),
        }

    def _of_gpus(self) -> dict[str, float]:
        if not self._gpus:
            return {}
        import pynvml

        values = {}
        for number, handle in enumerate(self._gpus):
            memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
            name = f"system/gpu_{number}_"
            values |= {
                f"{name}utilization_percentage": float(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu),
                f"{name}memory_usage_megabytes": memory.used / MB,
                f"{name}memory_usage_percentage": 100 * memory.used / memory.total,
            }
        return values


def _resident(process: psutil.Process) -> int:
    """Bytes of a process in memory, pages that it shares with others included; 0 once it has ended."""
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def _gpus() -> list[Any]:
    """Handles of the machine's GPUs; none where NVIDIA's library or driver is missing."""
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
        return [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    except pynvml.NVMLError as error:
        log.debug("no system metrics of GPUs: %s", error)
        return []
