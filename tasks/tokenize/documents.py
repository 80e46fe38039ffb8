"""Unified records -> the tokens of their documents, a batch at a time.

A text is encoded as it is. A dialogue is rendered here, by the pieces of tasks.tokenize.chat: what
is the same in every dialogue (special tokens, role lines, the default system message) is encoded
once, only what people wrote goes through the encoder, all texts of a batch in one call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from tasks.tokenize.chat import SPECIALS, SYSTEM, chat_pieces
from tasks.tokenize.encode import Encoder
from tasks.tokenize.packing import Documents

FIXED = ("assistant\n", "\n", f"system\n{SYSTEM}")
"""Pieces of nearly every dialogue."""


class Tokenizer:
    """Records in, documents out."""

    def __init__(self, encoder: Encoder) -> None:
        self._encoder = encoder
        self._specials = {token: np.array([encoder.special_id(token)], np.uint32) for token in SPECIALS}
        self._fixed = {text: encoder.encode_flat([text])[0] for text in FIXED}

    def __call__(self, records: Sequence[Mapping[str, Any]]) -> Documents:
        """One document a record, in order; one without any token is left out."""
        texts: list[str] = []
        known: list[np.ndarray | None] = []  # per piece: its tokens, or None for the next of `texts`
        last = [0]  # pieces up to the end of each record
        for record in records:
            if "messages" not in record:
                texts.append(record["text"])
                known.append(None)
            else:
                for piece in chat_pieces(record["messages"]):
                    ids = (self._specials if piece.special else self._fixed).get(piece.text)
                    known.append(ids)
                    if ids is None:
                        texts.append(piece.text)
            last.append(len(known))
        tokens, bounds = self._encoder.encode_flat(texts)
        if len(texts) < len(known):
            tokens, bounds = _weave(known, tokens, bounds)
        bounds = bounds[np.array(last)]
        ids = np.frombuffer(bytes.fromhex("".join(record["id"] for record in records)), np.uint8)
        ids = ids.reshape(len(records), -1)
        filled = np.diff(bounds) > 0
        if not filled.all():
            ids, bounds = ids[filled], np.append(bounds[:-1][filled], bounds[-1])
        return Documents(ids, tokens, bounds)


def _weave(
    known: Sequence[np.ndarray | None], tokens: np.ndarray, bounds: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Put the encoded texts into the gaps between the pieces that are known."""
    ends = bounds.tolist()
    place, pieces = 0, []
    for ids in known:
        if ids is None:
            ids = tokens[ends[place] : ends[place + 1]]
            place += 1
        pieces.append(ids)
    return np.concatenate(pieces), np.cumsum([0, *map(len, pieces)], dtype=np.int64)


def characters(record: Mapping[str, Any]) -> int:
    """Characters of what was written, template excluded."""
    if "messages" in record:
        return sum(len(message["content"]) for message in record["messages"])
    return len(record["text"])
