"""Any causal language model that transformers can load, with its own tokenizer and chat template, from a path.

A path is a folder (config.json, *.safetensors, tokenizer) or a GGUF file. Code that lies in a folder is not run and
pickled weights are not read. How the model may then be asked is settled by trial (model.scores.network).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.chat_template import DOCUMENT_END, SYSTEM, TURN_END, TURN_START, render_chat
from model.place import ModelError, place
from model.tokenizer import TextTokenizer

TRIED = "a b 中"
HELLO = ({"role": "system", "content": SYSTEM}, {"role": "user", "content": TRIED})
Messages = Sequence[Mapping[str, Any]]


@dataclass
class Opened:
    """A model ready to be asked."""

    model: nn.Module
    tokenizer: OwnTokenizer
    path: Path


class OwnTokenizer(TextTokenizer):
    """A model's own tokenizer under Steel's rule (text makes no special token), its BOS, ends and chat template."""

    def __init__(self, theirs: Any, where: str = "") -> None:
        """`theirs`: a fast tokenizer of transformers."""
        if not getattr(theirs, "is_fast", False):
            raise ModelError(f"{where}: its tokenizer has no fast form (tokenizer.json)")
        try:
            super().__init__(json.loads(theirs.backend_tokenizer.to_str()), where)
        except ValueError as error:
            raise ModelError(f"{where}: {error}") from error
        self.theirs = theirs
        """transformers' own, for programs that want it."""
        self.prefix_ids = self._prefix()
        """What the tokenizer puts before a text: its BOS, or nothing."""
        self.stop_ids: list[int] = []
        """Tokens that end a reply."""

    def _prefix(self) -> list[int]:
        bare = self.theirs(TRIED, add_special_tokens=False)["input_ids"]
        whole = self.theirs(TRIED)["input_ids"]
        at = next((k for k in range(len(whole)) if whole[k : k + len(bare)] == bare), 0)
        return list(whole[:at])

    @property
    def template(self) -> str:
        """`steel`: ChatML by pieces; `own`: the tokenizer's own template; `none`: there is none."""
        if not self.theirs.chat_template:
            return "none"
        return "steel" if self._is_chatml else "own"

    @cached_property
    def _is_chatml(self) -> bool:
        if any(self.special_id(token) is None for token in (TURN_START, TURN_END)):
            return False
        tried = (HELLO, HELLO[1:])  # without a system turn the template may have another than Steel's
        return all(self._rendered(x) == render_chat(self, x, generation_prompt=True)[0] for x in tried)

    def chat_ids(self, messages: Messages) -> list[int]:
        """A dialogue, open for the assistant's reply. Without a template the texts stand behind each other, plainly."""
        if self.template == "none":
            text = "\n\n".join(m["content"] for m in messages if m["content"] != SYSTEM)
            return [*self.prefix_ids, *self.encode(text)]
        if self.template == "steel":
            return render_chat(self, messages, generation_prompt=True)[0]
        return self._rendered(messages)

    def _rendered(self, messages: Messages) -> list[int]:
        """By the tokenizer's own template. A message that has a special token's string is encoded by itself."""
        if not any(token in m["content"] for m in messages for token in self._ids):
            return list(self.theirs(self._text(messages), add_special_tokens=False)["input_ids"])
        marks = [chr(0xE000 + k) for k in range(len(messages))]
        rest = self._text([{**m, "content": mark} for m, mark in zip(messages, marks, strict=True)])
        ids: list[int] = []
        for mark, message in zip(marks, messages, strict=True):
            before, found, rest = rest.partition(mark)
            ids += self.theirs(before, add_special_tokens=False)["input_ids"]
            ids += self.encode(message["content"]) if found else []
        return ids + list(self.theirs(rest, add_special_tokens=False)["input_ids"])

    def _text(self, messages: Messages) -> str:
        from jinja2 import TemplateError

        try:
            return self.theirs.apply_chat_template(list(messages), tokenize=False, add_generation_prompt=True)
        except TemplateError:  # no system turns: it goes before the user's text
            first, *others = messages
            if first["role"] != "system" or not others:
                raise
            joined = {**others[0], "content": f"{first['content']}\n\n{others[0]['content']}"}
            return self.theirs.apply_chat_template(
                [joined, *others[1:]], tokenize=False, add_generation_prompt=True
            )


def open_model(path: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> Opened:
    """The model and its tokenizer; fp32 on a CPU, bf16 on a GPU unless said otherwise. Raises ModelError."""
    from transformers import AutoModelForCausalLM

    from model.scoring import prepare_transformers

    path = Path(path)
    folder, more = place(path)
    prepare_transformers()
    tokenizer = open_tokenizer(path)
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    try:
        model = AutoModelForCausalLM.from_pretrained(
            str(folder),
            dtype=dtype,
            trust_remote_code=False,
            local_files_only=True,
            use_safetensors=True,
            **more,
        )
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, AttributeError) as error:
        raise ModelError(f"{path}: {_first_line(error)}") from error
    model = model.to(device).eval()
    rows = model.get_input_embeddings().weight.shape[0]
    if tokenizer.vocab_size > rows:
        raise ModelError(f"{path}: its tokenizer has {tokenizer.vocab_size:,} tokens, the model {rows:,}")
    tokenizer.stop_ids = _ends(model, tokenizer)
    return Opened(model, tokenizer, path)


def open_tokenizer(path: str | Path) -> OwnTokenizer:
    """The tokenizer of a path alone."""
    from transformers import AutoTokenizer

    folder, more = place(Path(path))
    try:
        theirs = AutoTokenizer.from_pretrained(
            str(folder), trust_remote_code=False, local_files_only=True, **more
        )
    except (ValueError, OSError, KeyError, ImportError, RuntimeError, AttributeError, TypeError) as error:
        raise ModelError(f"{path}: its tokenizer cannot be read: {_first_line(error)}") from error
    return OwnTokenizer(theirs, str(path))


def _ends(model: Any, tokenizer: OwnTokenizer) -> list[int]:
    """End tokens: those of the generation settings, and the ends of Steel's format where the tokenizer has them."""
    named = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    listed = named if isinstance(named, list) else [named]
    listed = [*listed, tokenizer.theirs.eos_token_id, *map(tokenizer.special_id, (TURN_END, DOCUMENT_END))]
    return list(dict.fromkeys(i for i in listed if i is not None))


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:300] or type(error).__name__
