"""Talking with a model, line by line: history, streaming, and nothing that needs a terminal.

A tuned model is asked in its chat template and remembers the dialogue. A base model has learned no turns: it gets each
line as the beginning of a text, which it continues.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

import torch
from torch import nn

from model.chat_template import DOCUMENT_END, TURN_END

HELP = "/reset forgets the dialogue, /quit ends (so does Ctrl-D), /help says this"
STOPS = (TURN_END, DOCUMENT_END)


class Dialogue:
    """A model, its tokenizer, and what has been said."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: Any,
        *,
        template: bool = True,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ):
        """`template` False: a base model. Temperature 0 takes the likeliest token."""
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens = max_new_tokens
        self.sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            self.sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        self.turns: list[dict[str, str]] = []
        torch.manual_seed(seed)

    def reset(self) -> None:
        self.turns = []

    def reply(self, text: str) -> Iterator[str]:
        """The answer, in pieces as they are made; the dialogue grows when it is complete."""
        said: list[str] = []
        for piece in self._stream(self._prompt(text)):
            said.append(piece)
            yield piece
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(said)}]

    def _prompt(self, text: str) -> torch.Tensor:
        """Token ids [1, T]; the oldest turns go when the dialogue outgrows the model."""
        limit = self.model.config.max_position_embeddings - self.max_new_tokens
        if not self.template:
            ids = self.tokenizer.encode(text, add_special_tokens=False)
            return torch.tensor([ids[-limit:]], device=self.model.device)
        while True:
            turns = [*self.turns, {"role": "user", "content": text}]
            ids = self.tokenizer.apply_chat_template(
                turns, add_generation_prompt=True, return_tensors="pt", return_dict=True
            )["input_ids"]
            if ids.shape[1] <= limit or not self.turns:
                return ids.to(self.model.device)
            self.turns = self.turns[2:]

    def _stream(self, ids: torch.Tensor) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        known = self.tokenizer.get_vocab()
        stops = [known[token] for token in STOPS if token in known]
        settings = {**self.sampling, "eos_token_id": stops or None, "pad_token_id": stops[-1] if stops else 0}
        failed: list[BaseException] = []

        def work() -> None:
            try:
                self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=self.max_new_tokens,
                    streamer=streamer,
                    **settings,
                )
            except BaseException as error:  # noqa: BLE001  (raised again in the caller's thread)
                failed.append(error)
                streamer.end()

        thread = Thread(target=work, daemon=True)
        thread.start()
        yield from streamer
        thread.join()
        if failed:
            raise failed[0]


def converse(dialogue: Dialogue, lines: Iterable[str], out: TextIO, prompt: str = "") -> None:
    """Answer every line until they end or /quit comes. `prompt` is written before each, for a person to type behind."""
    out.write(prompt)
    out.flush()
    for line in lines:
        text = line.strip()
        if text == "/quit":
            break
        if text == "/reset":
            dialogue.reset()
            out.write("(forgotten)\n")
        elif text.startswith("/"):
            out.write(f"({HELP})\n")
        elif text:
            for piece in dialogue.reply(text):
                out.write(piece)
                out.flush()
            out.write("\n")
        out.write(prompt)
        out.flush()


def open_dialogue(folder: str | Path, device: str = "auto", **settings: Any) -> Dialogue:
    """The exported model in a folder, ready to talk; `settings` as Dialogue takes them."""
    from transformers import AutoTokenizer

    from model.scoring import load, resolve_device

    lm = load(
        folder, resolve_device(device)
    )  # first: it makes the folder's model type known, so that none is asked for
    return Dialogue(lm, AutoTokenizer.from_pretrained(str(folder)), **settings)
