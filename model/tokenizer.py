"""A tokenizer folder as Steel reads it: one rule from text to ids, and no state.

The rule: text is text. No added token is made from a text, whether it is special (`<|im_end|>`) or not (`<think>`,
`<|fim_prefix|>`). So a web page, a question or a line typed in chat cannot end a document or begin a turn. Added tokens
come by name alone (`special_id`). Training, chat, generation, the report and evaluation all encode by this rule.

State is what a tokenizer.json has beside its vocabulary and rules: the truncation and padding of transformers' last
call, the dropout of a BPE training, a post-processor that adds tokens. It is switched off, and every change is named.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.chat_template import DOCUMENT_END, TURN_END, TURN_START

FILE = "tokenizer.json"
CHAT_TOKENS = {DOCUMENT_END, TURN_START, TURN_END}

CALL_FIELDS = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")
"""Arguments of a call that transformers saves in tokenizer_config.json."""
ADDING_FIELDS = ("add_bos_token", "add_eos_token", "split_special_tokens")
"""True: tokens are added to every text, or a chat template's special tokens are split into text."""


class TextTokenizer:
    """Text to ids by the rule above; special tokens by name; ids to text."""

    def __init__(self, tree: dict[str, Any], where: str = FILE) -> None:
        """`tree`: a parsed tokenizer.json. Raises ValueError where it cannot keep the rule."""
        self.changes = switch_off(tree)
        """What was switched off."""
        added = tree.get("added_tokens") or []
        self._rest = {"added_tokens": added, "post_processor": tree.get("post_processor")}
        self.text_json = _dump({**tree, "added_tokens": [], "post_processor": None})
        """The tokenizer.json of the tokenizer without added tokens, which encodes texts."""
        try:
            self.text: Any = Tokenizer.from_str(self.text_json)
        except Exception as error:  # tokenizers raises bare Exceptions
            raise ValueError(f"{where} cannot be read: {error}") from error
        entries = self.text.get_vocab()
        self._ids = {token["content"]: entries.get(token["content"], token["id"]) for token in added}
        self.vocab_size = len(entries.keys() | self._ids.keys())
        special = {token["content"] for token in added if token.get("special")}
        self._refuse_special_from_text(special | (self._ids.keys() & CHAT_TOKENS), where)

    @classmethod
    def open(cls, folder: Path | str) -> TextTokenizer:
        """The tokenizer in a folder. Raises ValueError in one line."""
        return cls(read_tree(folder), str(Path(folder) / FILE))

    def encode(self, text: str) -> list[int]:
        """The ids of one text."""
        return self.text.encode(text, add_special_tokens=False).ids

    def special_id(self, token: str) -> int | None:
        """The id of an added token, None where there is none of that name."""
        return self._ids.get(token)

    @property
    def added(self) -> list[str]:
        """The names of all added tokens."""
        return list(self._ids)

    def decode(self, ids: Sequence[int], skip_special_tokens: bool = False) -> str:
        """The text of ids; transformers' streamers call it, too."""
        return self.whole.decode(list(ids), skip_special_tokens=skip_special_tokens)

    @cached_property
    def whole(self) -> Any:
        """The tokenizer with its added tokens, which decodes; it would make special tokens from text."""
        return Tokenizer.from_str(_dump({**json.loads(self.text_json), **self._rest}))

    def _refuse_special_from_text(self, special: set[str], where: str) -> None:
        """A vocabulary may hold a special token's string as an ordinary entry: then a text could give its id."""
        for token in sorted(special):
            for text in (token, f" {token}", f"a{token}b", f"{token}\n"):
                if self._ids[token] in self.encode(text):
                    raise ValueError(f"{where} makes the special token {token} from text: it cannot be used")


def read_tree(folder: Path | str) -> dict[str, Any]:
    """The parsed tokenizer.json of a folder. Raises ValueError."""
    file = Path(folder) / FILE
    if not file.is_file():
        raise ValueError(f"there is no {file}")
    try:
        tree = json.loads(file.read_text("utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(tree, dict):
        raise ValueError(f"{file} is no tokenizer: a JSON object is needed")
    return tree


def write_tree(folder: Path | str, tree: dict[str, Any]) -> None:
    """Write tokenizer.json as tokenizers would."""
    (Path(folder) / FILE).write_text(json.dumps(tree, ensure_ascii=False, indent=2), "utf-8")


def switch_off(tree: dict[str, Any]) -> list[str]:
    """Remove the state of a parsed tokenizer.json in place; what was removed, a line each."""
    changes = []
    for name in ("truncation", "padding"):
        if tree.get(name) is not None:
            changes.append(f"its {name} is switched off ({_dump(tree[name])})")
            tree[name] = None
    model = tree.get("model")
    if isinstance(model, dict) and model.get("dropout"):
        changes.append(f"its BPE dropout is switched off ({model['dropout']}: random tokens)")
        model["dropout"] = None
    kept = _without_additions(tree.get("post_processor"))
    if kept != tree.get("post_processor"):
        changes.append("its post-processor is switched off (it adds tokens to every text)")
        tree["post_processor"] = kept
    return changes


def switch_off_settings(settings: dict[str, Any]) -> list[str]:
    """The same for a parsed tokenizer_config.json."""
    changes = []
    for name in CALL_FIELDS:
        if settings.pop(name, None) is not None:
            changes.append(f"its {name} is removed (tokenizer_config.json)")
    for name in ADDING_FIELDS:
        if settings.get(name):
            changes.append(f"its {name} is switched off (tokenizer_config.json)")
            settings[name] = False
    return changes


def _without_additions(processor: dict[str, Any] | None) -> dict[str, Any] | None:
    """A post-processor without the parts that add tokens; None where nothing is left."""
    match processor:
        case None | {"type": "ByteLevel"}:
            return processor
        case {"type": "Sequence", "processors": [*parts]}:
            kept = [part for part in map(_without_additions, parts) if part is not None]
            return {**processor, "processors": kept} if kept else None
        case {"type": "TemplateProcessing", "single": [*single], "pair": [*pair]}:
            return None if any("SpecialToken" in part for part in (*single, *pair)) else processor
    return None


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
