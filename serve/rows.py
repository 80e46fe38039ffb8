"""One answer that is being made: what was asked, how its next token is chosen, and what becomes of it.

A row draws from a generator of its own and sees its own logits alone: its text does not depend on its neighbours.
"""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from serve.text import Writer


@dataclass(frozen=True)
class Ask:
    """What a client wants of one prompt."""

    ids: tuple[int, ...]
    max_tokens: int
    temperature: float = 1.0
    """0: the likeliest token."""
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logprobs: int | None = None
    """So many of the likeliest tokens at each place, with the chosen one's; None: none."""
    echo: bool = False
    """With logprobs: those of the prompt's tokens, too."""


@dataclass(frozen=True)
class Token:
    """A token and what the model thought of it; `logprob` None: nothing stands before it."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Event:
    """News of a row. The last one has a `reason` (stop, length) or an `error`."""

    text: str = ""
    tokens: tuple[Token, ...] = ()
    prompt: tuple[Token, ...] = ()
    reason: str | None = None
    error: str | None = None


@dataclass
class Row:
    """An answer in the making; everything but `leave` is the engine's thread's."""

    ask: Ask
    tell: Callable[[Event], None]
    """Called in the engine's thread."""
    writer: Writer
    ends: frozenset[int]
    gone: threading.Event = field(default_factory=threading.Event)
    made: list[int] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    over: bool = False

    def __post_init__(self) -> None:
        seed = secrets.randbits(63) if self.ask.seed is None else self.ask.seed
        self._random = torch.Generator().manual_seed(seed % (1 << 63))

    def leave(self) -> None:
        """The client has gone: nothing more is computed for it. From any thread."""
        self.gone.set()

    @property
    def length(self) -> int:
        """Tokens of prompt and answer that the cache holds, once the newest was fed."""
        return len(self.ask.ids) + len(self.made)

    def take(self, logits_V: Tensor, best: int, known: int) -> None:
        """Choose the next token from FP32 logits [V], and tell of it. `best`: the likeliest of the `known` first ids,
        which are those that the tokenizer has."""
        number = best if self.ask.temperature == 0 else self._draw(logits_V[:known])
        self.made.append(number)
        token = self.scored(logits_V, number) if self.ask.logprobs is not None else Token(number)
        if number in self.ends:
            return self._end("stop", self.writer.rest(), token)
        text, stopped = self.writer.write(number)
        if stopped:
            return self._end("stop", text, token)
        if len(self.made) >= self.ask.max_tokens:
            return self._end("length", text + self.writer.rest(), token)
        self.tell(Event(text, (token,), self._prompt()))
        return None

    def scored(self, logits_V: Tensor, number: int) -> Token:
        """A token with its log-probability over the whole vocabulary and the likeliest others, of one tensor: equal
        tokens have equal numbers."""
        logprobs_V = torch.log_softmax(logits_V, -1)
        values, ids = logprobs_V.topk(max(1, self.ask.logprobs or 0))
        top = tuple(zip(ids.tolist(), values.tolist(), strict=True)) if self.ask.logprobs else ()
        return Token(number, logprobs_V[number].item(), top)

    def finish(self, reason: str) -> None:
        """End without a further token."""
        self.over = True
        self.tell(Event(self.writer.rest(), (), self._prompt(), reason))

    def fail(self, error: str) -> None:
        self.over = True
        self.tell(Event(error=error))

    def _end(self, reason: str, text: str, token: Token) -> None:
        self.over = True
        self.tell(Event(text, (token,), self._prompt(), reason))

    def _prompt(self) -> tuple[Token, ...]:
        tokens, self.prompt = tuple(self.prompt), []
        return tokens

    def _draw(self, logits_V: Tensor) -> int:
        """By temperature, from the likeliest tokens that have `top_p` of the probability together."""
        weights_V = torch.softmax(logits_V.cpu() / self.ask.temperature, -1)
        if self.ask.top_p >= 1:
            return int(torch.multinomial(weights_V, 1, generator=self._random))
        sorted_V, ids_V = weights_V.sort(descending=True, stable=True)
        kept_V = sorted_V.cumsum(-1) - sorted_V < self.ask.top_p
        kept_V[0] = True
        chosen = torch.multinomial(sorted_V * kept_V, 1, generator=self._random)
        return int(ids_V[chosen])
