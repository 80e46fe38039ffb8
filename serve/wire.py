"""Requests as they come: checked field by field, and what is not supported refused by name.

A field that would change the answer and is not supported is refused, unless it has the value that changes nothing.
Fields that concern the service and not the answer (`user`, `metadata`, …) are ignored.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.errors import ApiError

IGNORED = frozenset(
    {
        "user",
        "metadata",
        "store",
        "service_tier",
        "safety_identifier",
        "prompt_cache_key",
        "parallel_tool_calls",
    }
)
WITHOUT_EFFECT: dict[str, tuple[Any, ...]] = {
    "presence_penalty": (0,), "frequency_penalty": (0,), "repetition_penalty": (1,), "logit_bias": ({},),
    "tools": ([],), "functions": ([],), "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},),
    "modalities": (["text"],), "best_of": (1,), "suffix": ("",), "top_k": (0, -1), "min_p": (0,),
}  # fmt: skip
"""Fields that are not supported -> values with which they do nothing."""
MAX_ROWS = 128
"""Answers of one request: prompts times n."""

Share = Annotated[float, Field(ge=0, le=1)]
Stops = str | Annotated[list[str], Field(max_length=4)]
Id = Annotated[int, Field(ge=0)]


class Sent(BaseModel):
    model_config = ConfigDict(extra="forbid")

    model: str = ""
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] = 1.0
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    seed: int | None = None
    stop: Stops = []
    n: Annotated[int, Field(ge=1, le=MAX_ROWS)] = 1
    stream: bool = False
    stream_options: dict[Literal["include_usage", "include_obfuscation"], bool] = {}

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class TextPart(BaseModel):
    model_config = ConfigDict(extra="forbid")

    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="forbid")

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[TextPart]

    @property
    def turn(self) -> dict[str, str]:
        """Role and text; a developer is a system."""
        text = self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)
        return {"role": "system" if self.role == "developer" else self.role, "content": text}


class ChatRequest(Sent):
    """POST /v1/chat/completions."""

    messages: Annotated[list[Message], Field(min_length=1)]
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    logprobs: bool = False
    top_logprobs: Annotated[int, Field(ge=0, le=20)] = 0


class CompletionRequest(Sent):
    """POST /v1/completions."""

    prompt: str | list[str] | list[Id] | list[list[Id]]
    max_tokens: Annotated[int, Field(ge=0)] = 16
    logprobs: Annotated[int, Field(ge=0, le=20)] | None = None
    echo: bool = False

    @property
    def prompts(self) -> list[str | list[int]]:
        """One text or list of ids an answer."""
        if isinstance(self.prompt, str):
            return [self.prompt]
        if self.prompt and isinstance(self.prompt[0], int):
            return [self.prompt]  # type: ignore[list-item]
        return list(self.prompt)  # type: ignore[arg-type]


class TokenizeRequest(BaseModel):
    """POST /tokenize: special tokens are made from text only if it is asked for."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    prompt: str
    add_special_tokens: bool = False


class DetokenizeRequest(BaseModel):
    """POST /detokenize."""

    model_config = ConfigDict(extra="forbid")

    model: str = ""
    tokens: list[Id]


Request = ChatRequest | CompletionRequest | TokenizeRequest | DetokenizeRequest


def parse(kind: type[Any], body: Any) -> Any:
    """The request, or ApiError 400 that names the field."""
    if not isinstance(body, Mapping):
        raise ApiError("the body must be a JSON object")
    kept = {}
    for name, value in body.items():
        if name in IGNORED or value is None:
            continue
        if name in WITHOUT_EFFECT and name not in kind.model_fields:
            if value in WITHOUT_EFFECT[name]:
                continue
            raise ApiError(f"{name} is not supported here", param=name, code="unsupported_parameter")
        kept[name] = value
    try:
        return kind.model_validate(kept)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        name = str(first["loc"][0]) if first["loc"] else None
        if first["type"] == "extra_forbidden":
            raise ApiError(
                f"{place} is not supported here", param=place, code="unsupported_parameter"
            ) from None
        raise ApiError(f"{place}: {first['msg']}", param=name) from None
