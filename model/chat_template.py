"""How a dialogue becomes tokens: ChatML, the format of Qwen's chat models, as pieces and as a Jinja template.

    <|im_start|>role NEWLINE content <|im_end|> NEWLINE         for every turn

A dialogue that does not begin with a system turn is given SYSTEM as one.

Steel renders by pieces: either one special token or a text that is encoded without any (model.tokenizer). So a message
that contains the *string* `<|im_end|>` cannot end its turn, and the targets of fine-tuning are spans by construction,
never found by searching ids. Training, chat, generation, the report and evaluation use `render_chat`. The template is
for other programs: for plain content its ids are the same.

The reply is a piece of its own: it is encoded as it will be generated, after the prompt `<|im_start|>assistant\\n`,
also where its first characters would merge with that line break.

This file lies outside model/steel, whose import brings torch: planning a run must not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple, Protocol

After = Literal["", "special", "text"]
"""What stands before a text in the same rendering, for tokenizers that put a space before some texts."""

DOCUMENT_END = "<|endoftext|>"
TURN_START = "<|im_start|>"
TURN_END = "<|im_end|>"

SYSTEM = "You are a helpful assistant."

MARKED_CHAT_TEMPLATE = (
    "{% if messages[0]['role'] != 'system' %}"
    "{{ '" + TURN_START + "system\\n" + SYSTEM + TURN_END + "\\n' }}"
    "{% endif %}"
    "{% for message in messages %}"
    "{{ '" + TURN_START + "' + message['role'] + '\\n' }}"
    "{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '" + TURN_END + "' }}{% endgeneration %}{{ '\\n' }}"
    "{% else %}{{ message['content'] + '" + TURN_END + "\\n' }}{% endif %}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '" + TURN_START + "assistant\\n' }}{% endif %}"
)
"""With `{% generation %}` around what a model is trained to say: the reply and the token that ends it. Only
transformers knows this tag (return_assistant_tokens_mask, TRL's assistant_only_loss); others fail on it."""

CHAT_TEMPLATE = MARKED_CHAT_TEMPLATE.replace("{% generation %}", "").replace("{% endgeneration %}", "")
"""The same text in plain Jinja, for every program."""


class Refused(ValueError):
    """A dialogue that a chat format has no form for, such as one whose roles its template refuses."""


class Piece(NamedTuple):
    """A special token, or a text without any."""

    text: str
    special: bool = False
    target: bool = False
    """Part of an assistant's reply, its <|im_end|> included."""
    after: After = ""


class Format(Protocol):
    """model.chat_format.ChatFormat, of which rendering needs this."""

    def pieces(
        self, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
    ) -> Iterator[Piece]: ...

    def reply(
        self, messages: Sequence[Mapping[str, Any]], content: str
    ) -> tuple[list[Piece], list[Piece], list[Piece]]: ...


class TextEncoder(Protocol):
    """What rendering needs; model.tokenizer.TextTokenizer and tasks.tokenize.encode.Encoder have it."""

    begin: list[int]
    """Ids before a plain text: the token by which the model knows its beginning, if it has one."""

    @property
    def chat(self) -> Format: ...

    def encode(self, text: str, after: After = "") -> Sequence[int]: ...

    def special_id(self, token: str) -> int | None: ...


def chat_pieces(messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False) -> Iterator[Piece]:
    """The pieces of a dialogue; without a system message it begins with the default one.

    A reply with `loss: False` is no target.
    """
    messages = list(messages)
    if not messages or messages[0]["role"] != "system":
        messages.insert(0, {"role": "system", "content": SYSTEM})
    for message in messages:
        role, content = message["role"], message["content"]
        yield Piece(TURN_START, special=True)
        if role == "assistant":
            target = message.get("loss", True)
            yield Piece("assistant\n")
            yield Piece(content, target=target)
            yield Piece(TURN_END, special=True, target=target)
        else:
            yield Piece(f"{role}\n{content}")
            yield Piece(TURN_END, special=True)
        yield Piece("\n")
    if generation_prompt:
        yield Piece(TURN_START, special=True)
        yield Piece("assistant\n")


def render_chat(
    encoder: TextEncoder, messages: Iterable[Mapping[str, Any]], *, generation_prompt: bool = False
) -> tuple[list[int], list[int]]:
    """Token ids of a dialogue, and for each 1 if it is a target of fine-tuning (replies), else 0.

    Raises Refused where the format has no form for the dialogue, ValueError where the tokenizer lacks a special token.
    """
    ids: list[int] = []
    mask: list[int] = []
    for piece in encoder.chat.pieces(messages, generation_prompt=generation_prompt):
        found = _ids(encoder, [piece])
        ids.extend(found)
        mask.extend([int(piece.target)] * len(found))
    return ids, mask


def reply_ids(
    encoder: TextEncoder, messages: Sequence[Mapping[str, Any]], content: str, *, end: bool = True
) -> list[int]:
    """Token ids of a reply, as they follow the prompt that `render_chat` makes of the messages.

    `end` False: without what ends the reply.
    """
    said, _, whole = encoder.chat.reply(messages, content)
    return _ids(encoder, whole if end else said)


def unmarked(template: str) -> str:
    """A template without `generation`, transformers' mark of a reply: it makes no text, and plain Jinja lacks it."""
    for mark, same in (("generation", "if true"), ("endgeneration", "endif")):
        template = re.sub(rf"{{%([-+]?)\s*{mark}\s*([-+]?)%}}", rf"{{%\1 {same} \2%}}", template)
    return template


def _ids(encoder: TextEncoder, pieces: Iterable[Piece]) -> list[int]:
    ids: list[int] = []
    for piece in pieces:
        if piece.special:
            ids.append(_special(encoder, piece.text))
        else:
            ids.extend(
                int(i)
                for i in (
                    encoder.encode(piece.text, piece.after) if piece.after else encoder.encode(piece.text)
                )
            )
    return ids


def _special(encoder: TextEncoder, token: str) -> int:
    number = encoder.special_id(token)
    if number is None:
        raise ValueError(f"the tokenizer has no token {token}: this model cannot chat")
    return number
