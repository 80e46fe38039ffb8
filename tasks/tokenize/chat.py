"""The chat format: ChatML, rendered by pieces, so that every token knows what it is.

A dialogue becomes a sequence of pieces, either one special token or a text that is encoded with
specials off. So a message that contains the *string* `<|im_end|>` cannot end its turn, and the
targets of fine-tuning are spans by construction, never found by searching ids. For plain content
the ids equal those of transformers' `apply_chat_template` with model.chat_template.

The reply is a piece of its own: it is encoded as it will be generated, after the prompt
`<|im_start|>assistant\\n`, also where its first characters would merge with that line break.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from model.chat_template import DOCUMENT_END as END_OF_TEXT
from model.chat_template import SYSTEM
from model.chat_template import TURN_END as IM_END
from model.chat_template import TURN_START as IM_START

SPECIALS = (END_OF_TEXT, IM_START, IM_END)
"""In the order of their ids."""


class Piece(NamedTuple):
    """A special token, or a text without any."""

    text: str
    special: bool = False
    target: bool = False
    """Part of an assistant's reply, its <|im_end|> included."""


class TextEncoder(Protocol):
    """What rendering needs; tasks.tokenize.encode.Encoder has it."""

    def encode(self, text: str) -> Sequence[int]: ...

    def special_id(self, token: str) -> int: ...


def chat_pieces(messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False) -> Iterator[Piece]:
    """The pieces of a dialogue; without a system message it begins with the default one.

    A reply with `loss: False` is no target.
    """
    messages = list(messages)
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": SYSTEM})
    for message in messages:
        role, content = message["role"], message["content"]
        yield Piece(IM_START, special=True)
        if role == "assistant":
            learnt = message.get("loss", True)
            yield Piece("assistant\n")
            yield Piece(content, target=learnt)
            yield Piece(IM_END, special=True, target=learnt)
        else:
            yield Piece(f"{role}\n{content}")
            yield Piece(IM_END, special=True)
        yield Piece("\n")
    if generation_prompt:
        yield Piece(IM_START, special=True)
        yield Piece("assistant\n")


def render_chat(
    encoder: TextEncoder, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of a dialogue, and for each 1 if it is a target of fine-tuning (replies), else 0."""
    ids: list[int] = []
    mask: list[int] = []
    for piece in chat_pieces(messages, generation_prompt=generation_prompt):
        found = [encoder.special_id(piece.text)] if piece.special else encoder.encode(piece.text)
        ids.extend(int(token) for token in found)
        mask.extend([int(piece.target)] * len(found))
    return ids, mask
