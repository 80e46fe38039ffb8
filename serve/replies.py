"""Answers in the shapes that OpenAI's clients read: chat and plain completions, whole or in pieces."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

from serve.rows import Event, Token


@dataclass
class Answer:
    """What has come of one row so far."""

    text: str = ""
    tokens: list[Token] = field(default_factory=list)
    prompt: list[Token] = field(default_factory=list)
    reason: str | None = None

    def add(self, event: Event) -> None:
        self.text += event.text
        self.tokens += event.tokens
        self.prompt += event.prompt
        self.reason = event.reason


class Shape:
    """One request's replies: all have the same id, time and model."""

    kind: str
    chunk_kind: str
    prefix: str

    def __init__(self, model: str, tokenizer: Any, ends: frozenset[int] = frozenset()):
        self.model, self.tokenizer, self.ends = model, tokenizer, ends
        self.id, self.created = f"{self.prefix}-{secrets.token_hex(12)}", int(time.time())

    def whole(self, answers: Sequence[Answer], prompt_tokens: int) -> dict[str, Any]:
        choices = [self.choice(index, answer) for index, answer in enumerate(answers)]
        made = sum(len(answer.tokens) for answer in answers)
        return self._reply(self.kind, choices) | {"usage": usage(prompt_tokens, made)}

    def chunk(self, choices: list[dict[str, Any]], **more: Any) -> dict[str, Any]:
        return self._reply(self.chunk_kind, choices) | more

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        raise NotImplementedError

    def begin(self, index: int) -> dict[str, Any] | None:
        """The first piece of an answer, if there is one before any text."""
        return None

    def piece(self, index: int, event: Event) -> list[dict[str, Any]]:
        """The pieces that an event makes; none if there is nothing to say."""
        raise NotImplementedError

    def shown(self, number: int) -> str:
        """A token as text."""
        return self.tokenizer.decode([number])

    def _reply(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        base = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return base | {"choices": choices}


class Chat(Shape):
    kind, chunk_kind, prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, *args: Any, logprobs: bool = False, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.logprobs = logprobs

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message = {"role": "assistant", "content": answer.text, "refusal": None}
        return {
            "index": index,
            "message": message,
            "logprobs": self._logprobs(answer.tokens),
            "finish_reason": answer.reason,
        }

    def begin(self, index: int) -> dict[str, Any]:
        return self._delta(index, {"role": "assistant", "content": ""})

    def piece(self, index: int, event: Event) -> list[dict[str, Any]]:
        pieces = []
        scored = self.logprobs and event.tokens
        if event.text or scored:
            pieces.append(self._delta(index, {"content": event.text}, self._logprobs(event.tokens)))
        if event.reason:
            pieces.append(self._delta(index, {}, reason=event.reason))
        return pieces

    @staticmethod
    def _delta(
        index: int, delta: dict[str, str], logprobs: dict[str, Any] | None = None, reason: str | None = None
    ) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self.logprobs:
            return None
        entries = []
        for token in tokens:
            if token.id not in self.ends and token.logprob is not None:
                top = [self._entry(number, value) for number, value in token.top]
                entries.append(self._entry(token.id, token.logprob) | {"top_logprobs": top})
        return {"content": entries, "refusal": None}

    def _entry(self, number: int, logprob: float) -> dict[str, Any]:
        text = self.shown(number)
        half = "\ufffd" in text  # of a character: its bytes are not known by its text
        return {"token": text, "logprob": logprob, "bytes": None if half else list(text.encode())}


class Completion(Shape):
    kind = chunk_kind = "text_completion"
    prefix = "cmpl"

    def __init__(self, *args: Any, logprobs: bool = False, prompts: Sequence[str] = (), **kwargs: Any):
        """`prompts`: the text of each answer's prompt, where it is to be repeated (echo)."""
        super().__init__(*args, **kwargs)
        self.logprobs, self.prompts = logprobs, prompts

    def choice(self, index: int, answer: Answer) -> dict[str, Any]:
        before = self.prompts[index] if self.prompts else ""
        tokens = [*answer.prompt, *answer.tokens]
        return self._choice(index, before + answer.text, tokens, answer.reason)

    def begin(self, index: int) -> dict[str, Any] | None:
        return self._choice(index, self.prompts[index], [], None) if self.prompts else None

    def piece(self, index: int, event: Event) -> list[dict[str, Any]]:
        tokens = [*event.prompt, *event.tokens]
        if not (event.text or event.reason or (self.logprobs and tokens)):
            return []
        return [self._choice(index, event.text, tokens, event.reason)]

    def _choice(self, index: int, text: str, tokens: Sequence[Token], reason: str | None) -> dict[str, Any]:
        logprobs = self._logprobs(tokens) if self.logprobs else None
        return {"index": index, "text": text, "logprobs": logprobs, "finish_reason": reason}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any]:
        texts = [self._key(token.id) for token in tokens]
        lengths = [len(self.shown(token.id)) for token in tokens]
        offsets = list(accumulate(lengths[:-1], initial=0)) if tokens else []
        return {
            "tokens": texts,
            "token_logprobs": [token.logprob for token in tokens],
            "top_logprobs": [
                {self._key(number): value for number, value in token.top} if token.top else None
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _key(self, number: int) -> str:
        """A token's text where that is one of its own: parts of characters all look alike."""
        text = self.shown(number)
        return text if text and "\ufffd" not in text else f"token_id:{number}"


def usage(prompt_tokens: int, completion_tokens: int) -> dict[str, int]:
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def frame(value: Any) -> str:
    """One server-sent event."""
    return f"data: {value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)}\n\n"
