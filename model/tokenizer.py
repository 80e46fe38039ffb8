"""A tokenizer folder as Steel reads it: one rule from text to ids, and no state.

The rule: text is text. No added token is made from a text, whether it is special (`<|im_end|>`) or not (`<think>`,
`<|fim_prefix|>`). So a web page, a question or a line typed in chat cannot end a document or begin a turn. Added tokens
come by name alone (`special_id`). Training, chat, generation, the report and evaluation all encode by this rule.

State is what a tokenizer.json has beside its vocabulary and rules: the truncation and padding of transformers' last
call, the dropout of a BPE training, a post-processor that adds tokens. It is switched off, and every change is named.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from model.chat_format import STEEL, ChatFormat, chat_format, default_template
from model.chat_template import DOCUMENT_END, TURN_END, TURN_START, After

FILE = "tokenizer.json"
SETTINGS, TEMPLATE = "tokenizer_config.json", "chat_template.jinja"
CHAT_TOKENS = {DOCUMENT_END, TURN_START, TURN_END}

CALL_FIELDS = ("max_length", "stride", "truncation_strategy", "pad_to_multiple_of")
"""Arguments of a call that transformers saves in tokenizer_config.json."""
ADDING_FIELDS = ("add_bos_token", "add_eos_token", "split_special_tokens")
"""True: tokens are added to every text, or a chat template's special tokens are split into text."""


class TextTokenizer:
    """Text to ids by the rule above; special tokens by name; ids to text."""

    def __init__(self, tree: dict[str, Any], where: str = FILE, chat: ChatFormat = STEEL) -> None:
        """`tree`: a parsed tokenizer.json. Raises ValueError where it cannot keep the rule."""
        self.chat = chat
        """How dialogues become tokens."""
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
        inside, self.spaced = without_prefix(tree)
        """Whether a text behind a special token begins with a space of the tokenizer's, as one at the beginning does."""
        self.inside_json = (
            None if inside is None else _dump({**inside, "added_tokens": [], "post_processor": None})
        )
        """The tokenizer of a text that goes on behind another; None: the same."""
        self.inside: Any = None if self.inside_json is None else Tokenizer.from_str(self.inside_json)
        start = None if chat.document_start is None else self._ids.get(chat.document_start)
        model = tree.get("model") or {}
        unknown = model.get("unk_token") or model.get("unk_id")
        self.unknown: int | None = entries.get(unknown) if isinstance(unknown, str) else unknown
        """The id of its token for what it has no tokens for, if there is one."""
        self.begin: list[int] = [] if start is None else [start]
        """Ids before a plain text."""
        self._refuse_special_from_text(special | (self._ids.keys() & CHAT_TOKENS), where)

    @classmethod
    def open(cls, folder: Path | str) -> TextTokenizer:
        """The tokenizer in a folder. Raises ValueError in one line."""
        tree = read_tree(folder)
        return cls(tree, str(Path(folder) / FILE), format_of(folder, tree))

    def encode(self, text: str, after: After = "") -> list[int]:
        """The ids of one text, at the beginning or behind another piece."""
        encoder = self.inside if self.is_inside(after) else self.text
        return encoder.encode(text, add_special_tokens=False).ids

    def is_inside(self, after: After) -> bool:
        """Whether a text there is encoded by `inside`."""
        return self.inside is not None and (after == "text" or (after == "special" and not self.spaced))

    @property
    def stops(self) -> list[int]:
        """Ids that end what a model says: a turn's end, a document's end."""
        ends = (self.special_id(token) for token in (self.chat.turn_end, self.chat.document_end))
        return list(dict.fromkeys(i for i in ends if i is not None))

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


def format_of(folder: Path | str, tree: dict[str, Any]) -> ChatFormat:
    """The chat format of a folder whose tokenizer.json is `tree`. Raises ValueError where a file is no JSON."""
    file, own = Path(folder) / SETTINGS, Path(folder) / TEMPLATE
    settings = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    if not isinstance(settings, dict):
        raise ValueError(f"{file}: an object is needed")
    template = own.read_text("utf-8") if own.is_file() else default_template(settings.get("chat_template"))
    return chat_format(
        settings, template, tree.get("added_tokens") or [], without_prefix(tree)[0] is not None
    )


def without_prefix(tree: dict[str, Any]) -> tuple[dict[str, Any] | None, bool]:
    """(the same tokenizer without the space before a text, None where there is none; whether a text behind a special
    token has that space, too)."""
    inside, spaced = copy.deepcopy({"n": tree.get("normalizer"), "p": tree.get("pre_tokenizer")}), True
    inside["n"] = _without_prepend(inside["n"])
    pre = inside["p"]
    for part in (pre or {}).get("pretokenizers", [pre]) if pre else []:
        if part["type"] == "Metaspace":
            scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
            spaced = spaced and scheme != "first"
            part.pop("add_prefix_space", None)
            part["prepend_scheme"] = "never" if scheme != "never" else part.get("prepend_scheme", "never")
        elif part["type"] == "ByteLevel" and part.get("add_prefix_space"):
            part["add_prefix_space"] = False
    parts = {"normalizer": inside["n"], "pre_tokenizer": pre}
    same = all(_spelled(tree.get(name)) == _spelled(value) for name, value in parts.items())
    return (None if same else {**tree, **parts}), spaced


def _without_prepend(normalizer: dict[str, Any] | None) -> dict[str, Any] | None:
    match normalizer:
        case {"type": "Prepend"}:
            return None
        case {"type": "Sequence", "normalizers": [*parts]}:
            kept = [part for part in map(_without_prepend, parts) if part is not None]
            return {**normalizer, "normalizers": kept}
    return normalizer


def _spelled(part: Any) -> Any:
    """Metaspace has had two names for its rule."""
    if isinstance(part, dict) and part.get("type") == "Metaspace":
        scheme = part.get("prepend_scheme", "always" if part.get("add_prefix_space", True) else "never")
        return {**{k: v for k, v in part.items() if k != "add_prefix_space"}, "prepend_scheme": scheme}
    if isinstance(part, dict) and "pretokenizers" in part:
        return {**part, "pretokenizers": [_spelled(p) for p in part["pretokenizers"]]}
    return part


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
