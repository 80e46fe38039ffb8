"""A dialogue as ids, so that nothing a person wrote becomes a special token.

Where the folder has Steel's chat format, the ids are those that training made (`render_chat`). Any other template is
rendered as text, with a mark inside every special token's string that stands in a message; then the text is cut at the
special tokens that the template wrote itself, and the marks are taken out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.chat_template import CHAT_TEMPLATE, MARKED_CHAT_TEMPLATE, render_chat
from model.tokenizer import TextTokenizer
from serve.errors import ApiError

MARK = "\ufdd0"
"""A code point that is no character and stands in no text."""


class Template:
    """The chat format of a folder; `text` is None where it has none."""

    def __init__(self, folder: Path, tokenizer: TextTokenizer):
        self.tokenizer = tokenizer
        self.settings = _settings(folder)
        template = self.settings.get("chat_template")
        if (folder / "chat_template.jinja").is_file():
            template = (folder / "chat_template.jinja").read_text("utf-8")
        self.text: str | None = template if isinstance(template, str) else None
        self._own = self.text in (CHAT_TEMPLATE, MARKED_CHAT_TEMPLATE)
        self._specials = [token for token in tokenizer.added if tokenizer.special_id(token) is not None]

    def ids(self, turns: Sequence[dict[str, str]]) -> list[int]:
        """Of the dialogue and the beginning of the reply. ApiError where the template refuses it."""
        if self.text is None:
            raise ApiError("this model has no chat template: use /v1/completions", param="model")
        if self._own:
            return render_chat(self.tokenizer, turns, generation_prompt=True)[0]
        marked = [{**turn, "content": self._disarmed(turn["content"])} for turn in turns]
        return self._cut(self._rendered(marked))

    def _disarmed(self, text: str) -> str:
        text = text.replace(MARK, "")
        for token in self._specials:
            text = text.replace(token, f"{token[0]}{MARK}{token[1:]}")
        return text

    def _rendered(self, turns: list[dict[str, str]]) -> str:
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        names = ("bos_token", "eos_token", "pad_token", "unk_token")
        given = {name: _content(self.settings.get(name)) for name in names}
        try:
            texts, _ = render_jinja_template(
                conversations=[turns], chat_template=self.text, add_generation_prompt=True, **given
            )
        except TemplateError as error:
            raise ApiError(f"the chat template refuses these messages: {error}", param="messages") from None
        return texts[0]

    def _cut(self, text: str) -> list[int]:
        ids: list[int] = []
        tokens = sorted(self._specials, key=len, reverse=True)
        pattern = "|".join(re.escape(token) for token in tokens)
        for part in re.split(f"({pattern})", text) if pattern else [text]:
            number = self.tokenizer.special_id(part)
            ids += self.tokenizer.encode(part.replace(MARK, "")) if number is None else [number]
        return ids


def _settings(folder: Path) -> dict[str, Any]:
    path = folder / "tokenizer_config.json"
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _content(token: Any) -> str:
    """A token of tokenizer_config.json as text."""
    return token.get("content", "") if isinstance(token, dict) else token or ""
