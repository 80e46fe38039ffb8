"""What a training takes of its machine."""

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import psutil
import pytest

from tasks.training.usage import Usage

NAMES = {
    "system/cpu_utilization_percentage",
    "system/system_memory_usage_megabytes",
    "system/system_memory_usage_percentage",
    "system/training_memory_megabytes",
}


@pytest.fixture
def child():
    process = subprocess.Popen([sys.executable, "-c", "b = b'x' * 50_000_000; print(flush=True); input()"],
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)  # fmt: skip
    assert process.stdout
    process.stdout.readline()
    yield process
    process.kill()
    process.communicate()


def test_the_memory_is_that_of_the_trainings_processes(child, monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    process = psutil.Process(child.pid)
    sample = Usage(lambda: [process]).sample()
    assert sample.keys() == NAMES
    assert 50 < sample["system/training_memory_megabytes"] < 200
    child.kill()
    child.wait()
    assert Usage(lambda: [process]).sample()["system/training_memory_megabytes"] == 0


def test_gpus_are_asked_where_the_library_is_there(monkeypatch):
    class NVMLError(Exception):
        pass

    def start():
        if not there:
            raise NVMLError("driver not loaded")

    there = True
    library = SimpleNamespace(
        NVMLError=NVMLError,
        nvmlInit=start,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda i: i,
        nvmlDeviceGetMemoryInfo=lambda i: SimpleNamespace(used=4e9 * (i + 1), total=16e9),
        nvmlDeviceGetUtilizationRates=lambda i: SimpleNamespace(gpu=90 + i),
    )
    monkeypatch.setitem(sys.modules, "pynvml", library)
    sample = Usage(list).sample()
    assert sample["system/gpu_1_utilization_percentage"] == 91
    assert sample["system/gpu_0_memory_usage_megabytes"] == 4000
    assert sample["system/gpu_1_memory_usage_percentage"] == 50
    there = False
    assert Usage(list).sample().keys() == NAMES
