"""What a training is at between two lines of metrics.jsonl: `validation: 120 of 900 batches`.

A small file of the first rank in the work folder, replaced each time and gone when the training ends, for those who
follow it; and now and then a line of the log, for those who read only that. It is no result and no part of one. Needs
no torch.
"""

from __future__ import annotations

import logging
import os
import time
from pathlib import Path

log = logging.getLogger("steel.training")

FILE = "now.txt"
SECONDS = 2.0
"""Between two changes of the file while something is counted."""
LOG_SECONDS = 60.0
"""Between two lines of the log."""


class Now:
    """Of one work folder; does nothing on other ranks. As a context: at its end the file is gone."""

    def __init__(self, folder: Path, *, active: bool):
        self._path, self._active = folder / FILE, active
        self._partial = self._path.with_name(FILE + ".partial")
        self._what: str | None = None
        self._told = self._logged = 0.0

    def __enter__(self) -> Now:
        self.rest()  # a killed one has left it
        return self

    def __exit__(self, *_: object) -> None:
        self.rest()

    def at(self, what: str) -> None:
        """From now on it is at this; told at once."""
        self._what, self._told = what, time.monotonic()
        self._logged = self._told
        self._write(what)

    def count(self, what: str, done: int, of: int, unit: str) -> None:
        """So many of it are done. What takes less than SECONDS is not told at all."""
        clock = time.monotonic()
        if what != self._what:
            self._what, self._told, self._logged = what, clock, clock
        if clock - self._told < SECONDS:
            return
        text, self._told = f"{what}: {done:,} of {of:,} {unit}", clock
        self._write(text)
        if self._active and clock - self._logged >= LOG_SECONDS:
            self._logged = clock
            log.info("%s", text)

    def rest(self) -> None:
        """Nothing of the kind; the next line of metrics.jsonl says where the training is."""
        self._what = None
        if not self._active:
            return
        try:
            self._partial.unlink(missing_ok=True)
            self._path.unlink(missing_ok=True)
        except OSError as error:
            log.warning("%s cannot be removed: %s", self._path, error)

    def _write(self, text: str) -> None:
        if not self._active:
            return
        try:
            self._partial.write_text(text, encoding="utf-8")
            os.replace(self._partial, self._path)
        except OSError as error:  # a full disk: the run is worth more than this
            log.warning("%s cannot be written: %s", self._path, error)


def read(folder: Path) -> str:
    """What the training in this folder is at; empty where it says nothing."""
    try:
        return (folder / FILE).read_text(encoding="utf-8")
    except FileNotFoundError:
        return ""
    except OSError as error:  # who follows the training goes on
        log.warning("%s cannot be read: %s", folder / FILE, error)
        return ""
