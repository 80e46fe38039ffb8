"""A question as it is put to a model: first as text (`Request`), then as token ids (`Encoded`).

A protocol makes requests, the tokenizer encodes them, the scorer answers them: log-probabilities of the options
behind the prompt, or, where there are no options, a reply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from tasks.tokenize.chat import SYSTEM, TextEncoder, chat_pieces, render_chat, reply_ids

Seam = Literal["apart", "parting", "context"]
"""Where a prompt ends and an option begins, in tokens. `apart`: each is encoded by itself, as a chat's turns are.
`parting`: prompt and option are encoded together, and split where the sequences part; a token across the seam belongs
to the option. `context`: the same, split at the length of the prompt encoded alone, as lm-evaluation-harness does."""


@dataclass(frozen=True)
class Request:
    """One question as text."""

    head: str = ""
    """Plain form: the prompt is head + shots + tail."""
    shots: tuple[str, ...] = ()
    """Worked examples. When the prompt is longer than the model's context, the longest goes first."""
    tail: str = ""
    turns: tuple[tuple[str, str], ...] = ()
    """Chat form instead: (role, content), open for the assistant's reply."""
    options: tuple[str, ...] = ()
    """Texts that are scored behind the prompt; none: a reply is generated."""
    seam: Seam = "apart"
    spare: int = 0
    """Tokens of the context that stay empty."""
    reply_tokens: int = 0
    """Largest length of the reply."""

    def prompt(self, shots: Sequence[str] | None = None) -> str:
        """The whole prompt of the plain form."""
        return self.head + "".join(self.shots if shots is None else shots) + self.tail

    def show(self) -> str:
        """The prompt as a model would read it, special tokens by name."""
        if not self.turns:
            return self.prompt()
        return "".join(piece.text for piece in chat_pieces(self._messages(), generation_prompt=True))

    def _messages(self) -> list[dict[str, str]]:
        return [{"role": role, "content": content} for role, content in self.turns]


@dataclass(frozen=True)
class Encoded:
    """One question as token ids."""

    prompt: list[int]
    options: list[list[int]]
    cut: int = 0
    """Tokens that the prompt lost at its beginning, because the model's context is shorter."""
    shots_dropped: int = 0
    reply_tokens: int = 0


def encode(encoder: TextEncoder, request: Request, context: int) -> Encoded:
    """The ids of a request, fitted to the model's context: shots go first, then the beginning of the prompt."""
    kept = list(request.shots)
    before = [] if request.turns else _begin(encoder)  # a chat template has its own
    while True:
        prompt, options = _encoded(encoder, request, kept)
        room = max(1, context - len(before) - _behind(request, options, context))
        if len(prompt) <= room or not kept:
            break
        kept.remove(max(kept, key=lambda shot: len(encoder.encode(shot))))
    cut = max(0, len(prompt) - room)
    dropped = len(request.shots) - len(kept)
    return Encoded([*before, *prompt[cut:]], options, cut, dropped, min(request.reply_tokens, context - 1))


def ids(encoder: TextEncoder, text: str) -> list[int]:
    """The ids of a text, as plain numbers."""
    return [int(i) for i in encoder.encode(text)]


def _behind(request: Request, options: list[list[int]], context: int) -> int:
    """Tokens that need a place behind the prompt; the last token of an option is scored, and not read."""
    if not options:
        return min(request.reply_tokens, context // 2)
    return max(map(len, options)) - 1 + request.spare


def _encoded(
    encoder: TextEncoder, request: Request, shots: Sequence[str]
) -> tuple[list[int], list[list[int]]]:
    if request.turns:
        messages = request._messages()
        return _chat(encoder, messages), [_reply(encoder, messages, option) for option in request.options]
    text = request.prompt(shots)
    prompt = ids(encoder, text)
    if request.seam == "apart" or not request.options:
        return prompt, [ids(encoder, option) for option in request.options]
    whole = [ids(encoder, text + option) for option in request.options]
    seam = len(prompt)
    if request.seam == "parting":
        seam = min(min(_common(prompt, each), len(each) - 1) for each in whole)
    return prompt[:seam], [each[seam:] for each in whole]


def _begin(encoder: TextEncoder) -> list[int]:
    """Ids before a plain text: of a model by path (model.by_path), or of a run's own tokenizer."""
    ids = getattr(encoder, "prefix_ids", None)
    return list(encoder.begin if ids is None else ids)


def _chat(encoder: TextEncoder, messages: list[dict[str, str]]) -> list[int]:
    """By the encoder's own template, where it has one (model.by_path), else by the run's chat format."""
    own = getattr(encoder, "chat_ids", None)
    return own(messages) if own else render_chat(encoder, _plain(messages), generation_prompt=True)[0]


def _reply(encoder: TextEncoder, messages: list[dict[str, str]], option: str) -> list[int]:
    """An option as it follows that prompt."""
    if hasattr(encoder, "chat_ids"):
        return ids(encoder, option)
    return reply_ids(encoder, _plain(messages), option, end=False)


def _plain(messages: list[dict[str, str]]) -> list[dict[str, str]]:
    """Without Steel's default system message: its own format adds it, and other templates have theirs, or none."""
    return [m for m in messages if (m["role"], m["content"]) != ("system", SYSTEM)]


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return k
    return min(len(a), len(b))
