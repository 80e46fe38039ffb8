"""How many bytes of a file were lost with what went to quarantine.

A count of records says nothing where one bad line holds most of a file. Bytes are counted as they lie on the
disk: of compressed files and tables, by the share of what was read.
"""

from __future__ import annotations

from typing import Any

from tasks.convert.verdicts import Bad


class LostShare:
    """The count of one file, or of a part of one, of `size` bytes."""

    def __init__(self, size: int):
        self.size = size
        self.sound = self.bad = self.unread = 0
        self.any_sound = self.rows = self.broken_off = False

    def read(self, raw: Any) -> None:
        """A record was read from this."""
        self.any_sound = True
        self.sound += self._measure(raw)

    def lost(self, bad: Bad, position: int, raw: Any) -> Bad:
        """`bad` has been put in the place of this, and is handed back."""
        if not position:  # the file itself: what follows is not known
            self.broken_off = True
            self.unread += bad.size
        elif isinstance(raw, bytes):
            self.bad += max(bad.size, len(raw))
        else:
            self._measure(raw)
            self.bad += bad.records
        return bad

    def bytes(self) -> int:
        """Bytes lost, at most `size`."""
        if self.broken_off and not self.any_sound:
            return self.size
        seen = self.sound + self.bad
        lost = self.bad
        if self.rows or seen > self.size:  # rows, or more bytes than the compressed file has
            lost = round(self.size * self.bad / max(1, seen))
        return min(self.size, lost + self.unread)

    def _measure(self, raw: Any) -> int:
        """Bytes of a piece of JSON; of a table, rows."""
        if isinstance(raw, bytes):
            return len(raw)
        self.rows = True
        return 1
