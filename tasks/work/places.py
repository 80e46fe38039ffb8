"""Where partitions are worked on: the pool's processes on this machine, or the workers of a Ray cluster.

Which of the two is `runtime.engine`, and never part of a fingerprint: a job is a function that fills a
folder, and fills it with the same bytes wherever it runs. Ray's workers see the artifacts under the same
path as the flow does (a shared file system) and have the same environment installed.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import cache
from typing import Any

from tasks.settings.config import Runtime
from tasks.settings.paths import ROOT
from tasks.work import pool

Submit = Callable[..., Future]
"""An engine: `submit(function, *args)` runs an importable function somewhere."""

_lock = threading.Lock()


def submit_of(runtime: Runtime | None) -> Submit:
    """The engine that a run's settings ask for."""
    if runtime is None or runtime.engine == "local":
        return pool.submit
    _start_ray(runtime)
    return submit_to_ray


def submit_to_ray(function: Callable[..., Any], *args: Any) -> Future:
    """Run an importable function in a Ray worker (one core); Ray repeats it when the worker's node is lost.

    An exception comes back as itself, not as Ray's wrapper of it. Cancelling interrupts what runs.
    """
    import ray

    reference = _remote(function).remote(*args)
    outer: Future = Future()

    def hand_on(inner: Future) -> None:
        if not outer.set_running_or_notify_cancel():
            return
        error = inner.exception()
        if error is None:
            outer.set_result(inner.result())
        else:
            outer.set_exception(getattr(error, "cause", None) or error)

    outer.add_done_callback(lambda future: ray.cancel(reference) if future.cancelled() else None)
    reference.future().add_done_callback(hand_on)
    return outer


@cache
def _remote(function: Callable[..., Any]) -> Any:
    import ray

    return ray.remote(num_cpus=1, max_retries=3)(function)


def _start_ray(runtime: Runtime) -> None:
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # nothing about a run leaves the house
    import ray

    with _lock:
        if ray.is_initialized():
            return
        there: dict[str, Any] = (
            {"address": runtime.ray_address} if runtime.ray_address else {"num_cpus": runtime.data_workers}
        )
        if not runtime.ray_address:
            there |= {"include_dashboard": False, "_node_ip_address": "127.0.0.1"}
        environment = {"PYTHONPATH": str(ROOT), **pool.ENVIRONMENT}
        ray.init(**there, runtime_env={"env_vars": environment}, log_to_driver=False, configure_logging=False)


def shutdown() -> None:
    """Leave Ray, if it was started; a cluster of its own stays up."""
    import sys

    if ray := sys.modules.get("ray"):
        ray.shutdown()
        _remote.cache_clear()
