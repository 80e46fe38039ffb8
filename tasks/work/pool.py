"""One pool of worker processes for all CPU-heavy data work of a flow run.

Nodes of a stage run side by side in threads that only wait; the work happens here, in
`runtime.data_workers` spawned processes that live until the flow ends, so that the eight seconds
of importing Data-Juicer are paid once a worker and not once a source. They end when the flow
process does, whichever way it ends.
"""

from __future__ import annotations

import atexit
import gc
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

ENVIRONMENT = {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}
"""Of a worker, here or in a Ray cluster: one core each, nothing fetched."""

COLLECTED_AFTER = (50_000, 20, 50)
"""New objects, and collections of younger ones, before the garbage collector runs."""

_lock = threading.Lock()
_pool: ProcessPoolExecutor | None = None
_workers = 2


def configure(workers: int) -> None:
    """Set the number of workers; takes effect when the pool is next started."""
    global _workers
    if workers != _workers:
        shutdown()
    _workers = workers


def submit(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Future:
    """Run a module-level function in a worker process; its exception comes back with the result."""
    global _pool
    with _lock:
        if _pool is None:
            _pool = _new()
        try:
            return _pool.submit(function, *args, **kwargs)
        except BrokenProcessPool:  # a worker was killed under an earlier task, which has failed with this
            _pool = _new()
            return _pool.submit(function, *args, **kwargs)


def shutdown() -> None:
    """End the workers; the next `submit` starts new ones."""
    global _pool
    with _lock:
        if _pool is not None:
            _pool.shutdown(wait=True, cancel_futures=True)
            _pool = None


def _new() -> ProcessPoolExecutor:
    return ProcessPoolExecutor(
        max_workers=_workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=_start_worker,
        initargs=(os.getpid(),),
    )


def few_collections() -> None:
    """Let the garbage collector look rarely. Jobs make dicts by the ten thousand and no cycles: with Python's own limits
    a quarter of the time of reading records goes into looking at them."""
    gc.set_threshold(*COLLECTED_AFTER)


def _start_worker(parent: int) -> None:
    os.environ.update(ENVIRONMENT)
    few_collections()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the flow process decides
    # PR_SET_PDEATHSIG would fire when the *thread* that started the pool ends, so the worker looks itself
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


atexit.register(shutdown)
