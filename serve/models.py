"""The models of one server: loaded when they are first asked for, each with an engine of its own."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve.dialogue import Template
from serve.engine import Engine, Limits
from serve.errors import ApiError


@dataclass(frozen=True)
class Offer:
    """A model under the name that clients use."""

    folder: Path
    chat: bool = True
    """False: a base model, which continues texts and knows no turns."""


class Served:
    """A loaded model: its engine and its chat format."""

    def __init__(self, name: str, offer: Offer, limits: Limits, device: str):
        self.name = name
        self.engine = Engine(offer.folder, limits, device)
        self.template = Template(offer.folder, self.engine.tokenizer)
        self.chat = offer.chat and self.template.text is not None
        self.engine.ready()


class Models:
    """All models by name; the first one answers requests that name none."""

    def __init__(self, offers: Mapping[str, Offer], limits: Limits | None = None, device: str = "auto"):
        self.offers, self.limits, self.device = dict(offers), limits or Limits(), device
        self.began = int(time.time())
        self._loaded: dict[str, Served] = {}
        self._locks = {name: threading.Lock() for name in self.offers}

    def get(self, name: str = "") -> Served:
        """Loads it if need be; ApiError 404 for a name that is not offered. Blocks: call it in a thread."""
        name = name or next(iter(self.offers))
        if name not in self.offers:
            known = ", ".join(self.offers)
            raise ApiError(
                f"there is no model {name!r} here, but {known}",
                status=404,
                param="model",
                code="model_not_found",
            )
        with self._locks[name]:
            if name not in self._loaded:
                self._loaded[name] = Served(name, self.offers[name], self.limits, self.device)
            return self._loaded[name]

    def entry(self, name: str) -> dict[str, Any]:
        """Of GET /v1/models; `chat` and `folder` are Steel's own."""
        offer = self.offers[name]
        base = {"id": name, "object": "model", "created": self.began, "owned_by": "steel"}
        return base | {"chat": offer.chat, "folder": offer.folder.parent.name or offer.folder.name}

    def stop(self) -> None:
        for served in self._loaded.values():
            served.engine.stop()
