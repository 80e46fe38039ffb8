"""Which GPUs a training has. Two trainings side by side in one flow run never have the same one.

A training takes as many as it has ranks, the first that are free, and sees no others (CUDA_VISIBLE_DEVICES); where too
few are free it waits. GPUs that this process itself may not see are never given.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Condition

WAIT_SECONDS = 1.0
"""Between two looks at whether to stop waiting."""
_taken: set[str] = set()
_changed = Condition()


def names(count: int) -> list[str]:
    """What the first `count` GPUs that torch sees are called: numbers, or as CUDA_VISIBLE_DEVICES has them."""
    given = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (given or [str(number) for number in range(count)])[:count]


@contextmanager
def taken(
    ranks: int, count: int, waits: Callable[[], None], check: Callable[[], None] = lambda: None
) -> Iterator[list[str]]:
    """The names of `ranks` of `count` GPUs, which nobody else has until the end.

    `waits` is called once if too few are free; `check` now and then while they are, to raise where the wait is to end.
    Raises ValueError when there are not so many at all.
    """
    every = names(count)
    if ranks > len(every):
        raise ValueError(f"{ranks} ranks need as many GPUs, and there are {len(every)}")
    with _changed:
        if not _changed.wait_for(lambda: len(_free(every)) >= ranks, timeout=0):
            waits()
        while not _changed.wait_for(lambda: len(_free(every)) >= ranks, WAIT_SECONDS):
            check()
        mine = _free(every)[:ranks]
        _taken.update(mine)
    try:
        yield mine
    finally:
        with _changed:
            _taken.difference_update(mine)
            _changed.notify_all()


def _free(every: list[str]) -> list[str]:
    return [name for name in every if name not in _taken]
