"""Start a training: `torchrun --nproc-per-node N -m model.training.run CONFIG.json` (or plain python: one process).

Exit codes: 0 finished · 75 stopped by a signal, checkpoint saved · 2 a configuration or data that cannot be run
(one line says why) · anything else is a fault, with its traceback.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from model.guard import refuse_foreign_kernels
from model.training.config import ConfigError, TrainConfig, from_json
from model.training.loader import DataError
from model.training.loop import TrainingError, logprobs, train
from model.training.parallel import start
from model.training.stop import STOPPED, StopFlag

log = logging.getLogger("steel.training")


def main(arguments: list[str]) -> int:
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO if first else logging.WARNING)
    if len(arguments) != 1:
        print("usage: python -m model.training.run CONFIG.json", file=sys.stderr)
        return 2
    stop = StopFlag()
    stop.install()
    try:
        refuse_foreign_kernels()
        return run(from_json(arguments[0]), stop)
    except (ConfigError, DataError, TrainingError) as error:
        if first:
            print(f"error: {error}", file=sys.stderr)
        return 2


def run(config: TrainConfig, stop: StopFlag) -> int:
    """One run of the engine in this process group."""
    Path(config.work_dir).mkdir(parents=True, exist_ok=True)
    keep_memory()
    disable_progress_bar()
    if config.device != "cpu":
        # cuBLAS repeats its sums' order only with a workspace of its own; read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for debugging; 4 % of a step
    world = start(config)
    log.info(
        "%s on %d x %s, %s, %d thread(s) each",
        config.objective, world.size, world.device, world.dtype, torch.get_num_threads(),
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what is loaded by now lives for ever: the collector need not look at it again
    try:
        finished = (logprobs if config.objective == "logprobs" else train)(config, world, stop)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    return 0 if finished else STOPPED


def keep_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MB instead of giving them back to the kernel.

    Each step frees and takes the same few hundred tensors; returned pages must be zeroed anew, 7,000 page faults a
    step at 2,048 tokens (measured, the demo's model).
    """
    if not sys.platform.startswith("linux"):
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        m_trim_threshold, m_mmap_threshold = -1, -3
        mallopt(m_mmap_threshold, 32 << 20)
        mallopt(m_trim_threshold, (1 << 31) - 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
