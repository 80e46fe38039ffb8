"""The chat format for the rooms of tasks/: model.chat_template, under the names that data have for its tokens."""

from __future__ import annotations

from model.chat_template import DOCUMENT_END as END_OF_TEXT
from model.chat_template import (
    SYSTEM,
    After,
    Piece,
    Refused,
    TextEncoder,
    chat_pieces,
    render_chat,
    reply_ids,
)
from model.chat_template import TURN_END as IM_END
from model.chat_template import TURN_START as IM_START

SPECIALS = (END_OF_TEXT, IM_START, IM_END)
"""In the order of their ids."""

__all__ = [
    "END_OF_TEXT",
    "IM_END",
    "IM_START",
    "SPECIALS",
    "SYSTEM",
    "After",
    "Piece",
    "Refused",
    "TextEncoder",
    "chat_pieces",
    "render_chat",
    "reply_ids",
]
