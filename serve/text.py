"""Ids to the text that a client sees: whole characters, no special tokens, and nothing from a stop string on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class Writer:
    """The text of one answer. What may still become a stop string, or a character, is held back."""

    def __init__(self, tokenizer: Any, stops: Sequence[str] = ()):
        """`tokenizer`: of the library tokenizers, with its added tokens."""
        self._tokenizer, self._stops = tokenizer, [stop for stop in stops if stop]
        self._stream = DecodeStream(skip_special_tokens=True)
        self._ids: list[int] = []
        self._written = ""
        """All text of whole characters so far, held back or not."""
        self._sent = 0
        self._stopped = False

    def write(self, number: int) -> tuple[str, bool]:
        """(text to send, whether a stop string has come)."""
        self._ids.append(number)
        self._written += self._stream.step(self._tokenizer, number) or ""
        begins = [at for stop in self._stops if (at := self._written.find(stop, self._sent)) >= 0]
        if begins:
            self._stopped = True
            return self._send(min(begins)), True
        return self._send(len(self._written) - self._held()), False

    def rest(self) -> str:
        """At the end: what was held back, and half a character as its replacement sign."""
        if self._stopped:
            return ""
        whole = self._tokenizer.decode(self._ids, skip_special_tokens=True)
        if whole.startswith(self._written):
            self._written = whole
        begins = [at for stop in self._stops if (at := self._written.find(stop, self._sent)) >= 0]
        return self._send(min(begins, default=len(self._written)))

    def _held(self) -> int:
        """Length of the longest end of the text that begins a stop string."""
        longest = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(self._written) - self._sent), longest, -1):
                if self._written.endswith(stop[:size]):
                    longest = size
                    break
        return longest

    def _send(self, until: int) -> str:
        text, self._sent = self._written[self._sent : until], max(self._sent, until)
        return text
