"""Start a training: `torchrun --nproc-per-node N -m model.training.run CONFIG.json` (or plain python: one process).

Exit codes: 0 finished · 75 stopped by a signal, checkpoint saved · 2 a configuration or data that cannot be run
(one line says why) · anything else is a fault, with its traceback. After 2 and 75 torchrun does not start the ranks
again, however many restarts it has left. When one rank ends with an error, all do, at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import logging
import os
import sys
import traceback
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from transformers.utils.logging import disable_progress_bar

from model.families import FamilyError
from model.guard import refuse_foreign_kernels
from model.training.config import ConfigError, TrainConfig, from_json
from model.training.export import needed_tokens
from model.training.loader import DataError
from model.training.lock import locked
from model.training.loop import TrainingError, logprobs, train
from model.training.now import Now
from model.training.parallel import refuse_longer, start
from model.training.reinforce import reinforce
from model.training.stop import STOPPED, StopFlag
from model.training.watch import Watch, leave
from model.training.wide_products import widened

log = logging.getLogger("steel.training")
ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
"""Settings of CUDA's memory, read when CUDA starts."""


def main(arguments: list[str]) -> int:
    first = os.environ.get("RANK", "0") == "0"
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.INFO if first else logging.WARNING)
    if len(arguments) != 1:
        print("usage: python -m model.training.run CONFIG.json", file=sys.stderr)
        return 2
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed")
    stop, watch = StopFlag(), Watch()
    stop.install()
    faulthandler.enable(
        sys.__stderr__
    )  # a signal that ends the process (a shard cut short: SIGBUS) leaves its stack
    try:
        refuse_foreign_kernels()
        code = run(from_json(arguments[0]), stop, watch)
    except (ConfigError, DataError, FamilyError, TrainingError) as error:
        code = 2
        if watch.end(code):
            print(f"error: {error}", file=sys.stderr)
    except Exception:  # noqa: BLE001 - told to the other ranks, too
        code = 1
        traceback.print_exc()
        watch.end(code)
    else:
        if code and watch.end(code):
            print(f"the training ends with exitcode: {code}", file=sys.stderr)
    if code and watch.attached:
        leave(code)
    return code


def run(config: TrainConfig, stop: StopFlag, watch: Watch | None = None) -> int:
    """One run of the engine in this process group."""
    _make(Path(config.work_dir))
    keep_memory()
    disable_progress_bar()
    if config.device != "cpu":
        # cuBLAS repeats its sums' order only with a workspace of its own; read when CUDA starts
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        if config.expandable_segments:
            os.environ[ALLOCATOR] = with_expandable_segments(os.environ.get(ALLOCATOR, ""))
    torch.use_deterministic_algorithms(True, warn_only=not config.deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = False  # for debugging; 4 % of a step
    world = start(config)
    if watch is not None:
        watch.attach(world.store, config.watchdog_seconds)
    log.info(
        "%s on %d x %s, %s, %d thread(s) each",
        config.objective, world.size, world.device, world.dtype, torch.get_num_threads(),
    )  # fmt: skip
    gc.collect()
    gc.freeze()  # what is loaded by now lives for ever: the collector need not look at it again
    work = {"logprobs": logprobs, "grpo": reinforce}.get(config.objective, train)
    try:
        alone = locked(Path(config.work_dir)) if world.first else contextlib.nullcontext()
        with alone, widened(world.dtype, world.device), Now(Path(config.work_dir), active=world.first) as now:
            world.sum(0.0)  # no rank reads what another run is writing
            needed_tokens(config)  # what will not do is refused before the training, not after
            refuse_longer(config, world)
            finished = work(config, world, stop, watch or Watch(), now)
    except BaseException:
        if world.store is None:  # others may wait in a collective, and an orderly end would wait for them
            dist.destroy_process_group()
        raise
    if watch is not None:
        watch.close()
    dist.destroy_process_group()
    return 0 if finished else STOPPED


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"work_dir: the folder {folder} cannot be made: {error.strerror}") from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise ConfigError(f"work_dir: {folder} cannot be written")


def with_expandable_segments(settings: str) -> str:
    """CUDA's allocator settings with those that are there kept; what they say of expandable segments stays."""
    if "expandable_segments" in settings:
        return settings
    return ",".join(filter(None, [settings, "expandable_segments:True"]))


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
