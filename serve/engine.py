"""One model and the thread that owns it: prompts come in by a queue, and rows are decoded together.

Between two steps of decoding at most one piece of a waiting prompt is computed. Rows whose client has left are dropped
before each piece and each step.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from model.scoring import load, resolve_device
from model.tokenizer import TextTokenizer
from serve.batch import Batch, Prefill, batchable
from serve.rows import Ask, Event, Row
from serve.text import Writer

log = logging.getLogger("steel.serve")
PIECE = 512
"""Tokens of a prompt that are computed at once."""


class Busy(RuntimeError):
    """The queue is full."""


@dataclass(frozen=True)
class Limits:
    """What one engine takes."""

    slots: int = 16
    """Rows in decoding at a time."""
    queue: int = 256
    """Rows that wait, at most."""
    max_new_tokens: int = 4096


class Engine:
    """Starts its thread at once, which loads the model; `ready` waits for that."""

    def __init__(self, folder: Path, limits: Limits | None = None, device: str = "auto"):
        self.folder, self.limits = Path(folder), limits or Limits()
        self.tokenizer = TextTokenizer.open(folder)
        self.known = 1 + max(self.tokenizer.whole.get_vocab(with_added_tokens=True).values())
        self.model: Any = None
        self.slots = 1
        self.steps = 0
        """Forward passes so far: pieces of prompts, and steps of all rows together."""
        self._device = device
        self._asked: queue.Queue[Row | None] = queue.Queue()
        self._waiting: deque[Row] = deque()
        self._batch: Batch
        self._prefill: Prefill | None = None
        self._count = 0
        self._lock = threading.Lock()
        self._loaded = threading.Event()
        self._failure: Exception | None = None
        self._thread = threading.Thread(target=self._run, name=f"engine of {self.folder.name}", daemon=True)
        self._thread.start()

    def ready(self) -> None:
        """Wait until the model is loaded; raises what went wrong."""
        self._loaded.wait()
        if self._failure is not None:
            raise self._failure

    @property
    def context(self) -> int:
        return self.model.config.max_position_embeddings

    @property
    def ends(self) -> frozenset[int]:
        """Ids that end an answer: those of the model's settings, and the ends of its tokenizer's chat format."""
        given: set[int] = set()
        for config in (self.model.config, getattr(self.model, "generation_config", None)):
            ids = getattr(config, "eos_token_id", None)
            given |= set(ids) if isinstance(ids, list) else set() if ids is None else {ids}
        return frozenset(given | set(self.tokenizer.stops))

    @property
    def load(self) -> int:
        """Rows that wait or are computed."""
        return self._count

    def submit(self, asks: list[Ask], tell: Callable[[int, Event], None]) -> list[Row]:
        """Queue a row for each; `tell(index, event)` is called in the engine's thread. Raises Busy, and then takes
        none of them."""
        with self._lock:
            if self._count + len(asks) > self.limits.slots + self.limits.queue:
                raise Busy(f"{self._count} answers wait or are being made")
            self._count += len(asks)
        rows = []
        for index, ask in enumerate(asks):
            writer = Writer(self.tokenizer.whole, ask.stop)
            rows.append(Row(ask, partial(tell, index), writer, self.ends))
        for row in rows:
            self._asked.put(row)
        return rows

    def stop(self) -> None:
        """End the thread; what waits is told so."""
        self._asked.put(None)
        self._thread.join()

    # ------------------------------------------------------------------------- the thread
    def _run(self) -> None:
        try:
            self.model = load(self.folder, resolve_device(self._device))
            self.slots = self.limits.slots if batchable(self.model) else 1
        except Exception as error:  # noqa: BLE001  (raised again by ready)
            self._failure = error
            self._loaded.set()
            return
        self._loaded.set()
        self._batch = Batch(self.model)
        while self._receive(block=not (self._batch.rows or self._prefill)):
            try:
                self._waiting = deque(self._present(self._waiting))
                self._prompt()
                self._decode()
            except Exception as error:
                log.exception("the engine of %s failed", self.folder)
                self._fail(type(error).__name__)
        self._waiting.extend(row for row in iter(self._next, None) if row is not None)
        self._fail("the server stops")

    def _next(self) -> Row | None:
        try:
            return self._asked.get_nowait()
        except queue.Empty:
            return None

    def _fail(self, why: str) -> None:
        """Tell all rows, and begin with none."""
        rows = [*self._batch.rows, *([self._prefill.row] if self._prefill else []), *self._waiting]
        self._batch, self._prefill, self._waiting = Batch(self.model), None, deque()
        for row in rows:
            if not row.over:
                row.fail(why)
        self._release(len(rows))

    def _receive(self, block: bool) -> bool:
        """Take what was asked; False when the engine is to stop."""
        block = block and not self._waiting
        while True:
            try:
                row = self._asked.get(block=block)
            except queue.Empty:
                return True
            if row is None:
                return False
            self._waiting.append(row)
            block = False

    def _present(self, rows: Any) -> list[Row]:
        """Those whose clients are there; the others are counted off."""
        here = [row for row in rows if not row.gone.is_set()]
        self._release(len(rows) - len(here))
        return here

    def _release(self, rows: int) -> None:
        with self._lock:
            self._count -= rows

    @torch.inference_mode()
    def _prompt(self) -> None:
        """A piece of a prompt; its row joins the batch after the last one."""
        if self._prefill is not None and self._prefill.row.gone.is_set():
            self._prefill = None
            self._release(1)
        if self._prefill is None:
            if not self._waiting or len(self._batch.rows) >= self.slots:
                return
            whole = self.slots == 1  # of such a model a prompt's pieces may not add up to it
            self._prefill = Prefill(self.model, self._waiting.popleft(), 1 << 30 if whole else PIECE)
        self.steps += 1
        logits_V = self._prefill.step()
        if logits_V is None:
            return
        row, cache = self._prefill.row, self._prefill.cache
        if row.ask.max_tokens == 0:
            row.finish("length")
        else:
            row.take(logits_V, int(logits_V[: self.known].argmax()), self.known)
        self._prefill = None
        if row.over:
            self._release(1)
        else:
            self._batch.join(row, cache)

    @torch.inference_mode()
    def _decode(self) -> None:
        self._drop()
        if not self._batch.rows:
            return
        self.steps += 1
        logits_BV = self._batch.step()
        best = logits_BV[:, : self.known].argmax(-1).tolist()
        for row, logits_V, number in zip(self._batch.rows, logits_BV, best, strict=True):
            row.take(logits_V, number, self.known)
        self._drop()

    def _drop(self) -> None:
        """Rows that are over, or whose client has left."""
        kept = [i for i, row in enumerate(self._batch.rows) if not (row.over or row.gone.is_set())]
        gone = len(self._batch.rows) - len(kept)
        self._batch.keep(kept)
        self._release(gone)
