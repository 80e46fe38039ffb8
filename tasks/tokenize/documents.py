"""Unified records -> the tokens of their documents, a batch at a time.

A text is encoded as it is. A dialogue is rendered here, by the pieces of tasks.tokenize.chat. What
lies around its messages is the same in every dialogue with the same roles, so it is rendered and
encoded once; only what people wrote goes through the encoder, all texts of a batch in one call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from model.chat_format import STEEL
from model.training.shards import ID_BYTES
from tasks.records.record import Code, Dialogue, Message, Text
from tasks.tokenize.chat import After, chat_pieces
from tasks.tokenize.encode import Encoder
from tasks.tokenize.packing import Documents

TEXT = -1
"""Stands for an encoded text where other numbers stand for fixed tokens."""
MOST_SHAPES = 4096


class Shape(NamedTuple):
    """A dialogue without its contents."""

    pieces: list[int]
    """What follows what: TEXT, or the number of a run of fixed tokens."""
    texts: list[tuple[str, int]]
    """For each TEXT, what comes before the content and the number of the message."""
    characters: int
    """Of all that comes before contents."""


class Tokenizer:
    """Records in, documents out."""

    def __init__(self, encoder: Encoder) -> None:
        self.characters = 0
        """Of what was written, so far; the template's not counted."""
        self._encoder = encoder
        self._fixed: list[np.ndarray] = []
        self._shapes: dict[tuple[str, ...], Shape] = {}
        self._begin = [self._number(encoder.begin), TEXT] if encoder.begin else [TEXT]

    def __call__(self, records: Sequence[Text | Code | Dialogue]) -> Documents:
        """One document a record, in order; one without any token is left out."""
        texts: list[str] = []
        afters: list[After] = []  # of dialogues in a format that is not Steel's
        pieces: list[int] = []
        last = [0]  # pieces up to the end of each record
        template = 0
        for record in records:
            if "text" in record:
                texts.append(record["text"])
                pieces += self._begin
            elif self._encoder.chat is not STEEL:
                afters += [""] * (len(texts) - len(afters))
                template -= sum(len(message["content"]) for message in record["messages"])
                for piece in self._encoder.chat.pieces(record["messages"]):
                    if piece.special:
                        pieces.append(self._number([self._encoder.special_id(piece.text)]))
                    else:
                        texts.append(piece.text)
                        afters.append(piece.after)
                        pieces.append(TEXT)
                        template += len(piece.text)
            else:
                messages = record["messages"]
                shape = self._shape(messages)
                texts += [before + messages[i]["content"] for before, i in shape.texts]
                pieces += shape.pieces
                template += shape.characters
            last.append(len(pieces))
        self.characters += sum(map(len, texts)) - template
        if afters:
            tokens, bounds = self._encoder.encode_pieces(texts, afters + [""] * (len(texts) - len(afters)))
        else:
            tokens, bounds = self._encoder.encode_flat(texts)
        if len(texts) < len(pieces):
            tokens, bounds = self._weave(np.array(pieces), tokens, bounds)
        bounds = bounds[np.array(last)]
        ids = np.frombuffer(bytes.fromhex("".join([record["id"] for record in records])), np.uint8)
        ids = ids.reshape(-1, ID_BYTES)
        filled = np.diff(bounds) > 0
        if not filled.all():
            ids, bounds = ids[filled], np.append(bounds[:-1][filled], bounds[-1])
        return Documents(ids, tokens, bounds)

    def _shape(self, messages: Sequence[Message]) -> Shape:
        roles = tuple([message["role"] for message in messages])
        if (shape := self._shapes.get(roles)) is None:
            if len(self._shapes) == MOST_SHAPES:
                self._shapes.clear()
            shape = self._shapes[roles] = self._render(roles)
        return shape

    def _render(self, roles: Sequence[str]) -> Shape:
        """The chat format with a mark in the place of every content."""
        pieces, texts, run = [], [], []
        blank = [{"role": role, "content": f"\0{i}"} for i, role in enumerate(roles)]
        for piece in chat_pieces(blank):
            before, mark, number = piece.text.partition("\0")
            if piece.special:
                run.append(self._encoder.special_id(piece.text))
            elif not mark:
                run += self._encoder.encode(piece.text)
            else:
                pieces += [self._number(run), TEXT]
                texts.append((before, int(number)))
                run = []
        return Shape([*pieces, self._number(run)], texts, sum(len(before) for before, _ in texts))

    def _number(self, run: list[int]) -> int:
        for number, ids in enumerate(self._fixed):
            if ids.tolist() == run:
                return number
        self._fixed.append(np.array(run, np.uint32))
        return len(self._fixed) - 1

    def _weave(
        self, pieces: np.ndarray, tokens: np.ndarray, bounds: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Tokens of all pieces one after the other, and where each begins."""
        fixed = np.cumsum([0, *map(len, self._fixed)])
        starts, lengths = fixed[pieces], np.diff(fixed, append=fixed[-1])[pieces]
        text = pieces == TEXT
        starts[text], lengths[text] = bounds[:-1] + fixed[-1], np.diff(bounds)
        ends = np.concatenate([[0], np.cumsum(lengths)])
        pool = np.concatenate([*self._fixed, tokens])
        return pool[np.repeat(starts - ends[:-1], lengths) + np.arange(ends[-1])], ends
