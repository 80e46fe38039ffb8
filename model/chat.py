"""Talking with a model, line by line: history, streaming, and nothing that needs a terminal.

A tuned model is asked in its chat format and remembers the dialogue. A base model has learned no turns: it gets each
line as the beginning of a text, which it continues.

Prompt and answer share the model's context. Room for an answer is kept: `max_new_tokens`, but half of the context at
most. A dialogue that outgrows the rest forgets its oldest turns, and says so; a line that does not fit by itself is
not answered. An answer ends where the context does.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any, TextIO

import torch
from torch import nn

from model.chat_template import render_chat
from model.scoring import NoRoom
from model.tokenizer import TextTokenizer

HELP = "/reset forgets the dialogue, /quit ends (so does Ctrl-D), /help says this"


class Dialogue:
    """A model, its tokenizer, and what has been said."""

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TextTokenizer,
        *,
        template: bool = True,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_new_tokens: int = 256,
        seed: int = 0,
    ):
        """`template` False: a base model. Temperature 0 takes the likeliest token."""
        if max_new_tokens < 1:
            raise ValueError(f"an answer has 1 token or more, not {max_new_tokens}")
        self.model, self.tokenizer, self.template = model, tokenizer, template
        self.max_new_tokens = max_new_tokens
        self.sampling: dict[str, Any] = {"do_sample": False}
        if temperature > 0:
            self.sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p}
        self.turns: list[dict[str, str]] = []
        self.forgotten = 0
        """Turns that were left out for the newest answer."""
        self.full = False
        """The newest answer was cut where the context ends."""
        torch.manual_seed(seed)

    @property
    def context(self) -> int:
        """Tokens of prompt and answer together."""
        return self.model.config.max_position_embeddings

    @property
    def room(self) -> int:
        """Tokens that a prompt may have, so that an answer fits behind it."""
        return self.context - min(self.max_new_tokens, self.context // 2)

    def reset(self) -> None:
        self.turns = []

    def reply(self, text: str) -> Iterator[str]:
        """The answer, in pieces as they are made; the dialogue grows when it is complete.

        Raises NoRoom, before anything is made, for a text that does not fit.
        """
        return self._answer(text, self._prompt(text))

    def _answer(self, text: str, ids: torch.Tensor) -> Iterator[str]:
        said: list[str] = []
        for piece in self._stream(ids):
            said.append(piece)
            yield piece
        self.turns += [{"role": "user", "content": text}, {"role": "assistant", "content": "".join(said)}]

    def _prompt(self, text: str) -> torch.Tensor:
        """Token ids [1, T], T at most `room`; the oldest turns go, a question and its answer at a time."""
        self.forgotten = 0
        while True:
            kept = self.turns[self.forgotten :] if self.template else []
            ids = self._ids([*kept, {"role": "user", "content": text}])
            if len(ids) <= self.room:
                self.turns = self.turns[self.forgotten :]
                return torch.tensor([ids], device=self.model.device)
            if not kept:
                self.forgotten = 0
                raise NoRoom(
                    f"this line makes {len(ids):,} tokens, at most {self.room:,} leave room for an answer in the "
                    f"model's context of {self.context:,}: shorten it"
                )
            self.forgotten += 2

    def _ids(self, turns: list[dict[str, str]]) -> list[int]:
        if not self.template:
            return [*self.tokenizer.begin, *self.tokenizer.encode(turns[-1]["content"])]
        return render_chat(self.tokenizer, turns, generation_prompt=True)[0]

    def _stream(self, ids: torch.Tensor) -> Iterator[str]:
        from transformers import TextIteratorStreamer

        streamer = TextIteratorStreamer(self.tokenizer, skip_prompt=True, skip_special_tokens=True)
        stops = self.tokenizer.stops
        settings = {**self.sampling, "eos_token_id": stops or None, "pad_token_id": stops[-1] if stops else 0}
        failed: list[BaseException] = []

        def work() -> None:
            try:
                made = self.model.generate(
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    max_new_tokens=min(self.max_new_tokens, self.context - ids.shape[1]),
                    streamer=streamer,
                    **settings,
                )
                self.full = made.shape[1] >= self.context and int(made[0, -1]) not in stops
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
            _answer(dialogue, text, out)
        out.write(prompt)
        out.flush()


def _answer(dialogue: Dialogue, text: str, out: TextIO) -> None:
    try:
        pieces = dialogue.reply(text)
    except NoRoom as error:
        out.write(f"({error})\n")
        return
    if dialogue.forgotten:
        out.write(f"(the context is full: the oldest {dialogue.forgotten} turns are forgotten)\n")
    for piece in pieces:
        out.write(piece)
        out.flush()
    out.write("\n")
    if dialogue.full:
        out.write(f"(the answer is cut: prompt and answer fill the context of {dialogue.context:,} tokens)\n")


def open_dialogue(folder: str | Path, device: str = "auto", **settings: Any) -> Dialogue:
    """The exported model in a folder, ready to talk; `settings` as Dialogue takes them."""
    from model.scoring import load, resolve_device

    tokenizer = TextTokenizer.open(folder)
    return Dialogue(load(folder, resolve_device(device)), tokenizer, **settings)
