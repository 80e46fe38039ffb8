"""Being told to stop: SIGTERM sets a flag, and the loop acts on it between two steps.

The ranks exchange the flag with the numbers they exchange anyway, so all stop before the same step.
"""

from __future__ import annotations

import ctypes
import signal
import sys

STOPPED = 75
"""Exit code of a run that was stopped at a checkpoint (EX_TEMPFAIL: try again later)."""
PR_SET_PDEATHSIG = 1


class StopFlag:
    """True once SIGTERM or SIGINT has arrived."""

    def __init__(self) -> None:
        self.requested = False

    def install(self) -> None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_signal)
        if sys.platform == "linux":
            # torchrun starts each rank in a session of its own: were it killed outright, ranks would train on unseen
            ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)

    def _on_signal(self, number: int, frame: object) -> None:
        self.requested = True
