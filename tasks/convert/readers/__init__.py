"""One small module per source schema; the module's name is the reader's name in a profile.

A reader says which files it reads, how raw values come out of them and what becomes of one value.
To add a schema: write a module with a `READER` here, and name it in the profile's `reader:`.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from tasks.convert.formats import JSON_SUFFIXES, Items, Span, any_items, json_items, table_items


class Options(BaseModel):
    """Base of a reader's options (`options:` of a source); a typo is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class Reader:
    """How one schema is read."""

    convert: Callable[[dict[str, Any], Any, str], dict[str, Any]]
    """(raw object, options, file) -> record without id, source and language; raises Malformed
    or Unwanted."""
    makes: Literal["pretrain", "sft", "preference", "benchmark"] = "pretrain"
    """What its output is for. `pretrain`: texts without a reply; `sft`: dialogues, which can be pre-trained on, too."""
    items: Callable[..., Items] = json_items
    """(file, most bytes of a record, span or None) -> raw values; without spans only the first two."""
    items_of: Callable[[Any], Callable[..., Items]] | None = None
    """options -> such a function, where they decide how a file is read."""
    suffixes: tuple[str, ...] = JSON_SUFFIXES
    options: type[Options] = Options
    place: Callable[[str], tuple[str, str] | None] | None = None
    """Benchmarks: file -> (subject, split), or None for a file that holds no questions."""

    @property
    def by_spans(self) -> bool:
        """Whether a large file of JSON lines can be read in parts."""
        return self.items_of is not None or self.items in (json_items, any_items, table_items)

    def reading(self, options: Any) -> Callable[[Path, int, Span | None], Items]:
        """The function that reads a file, or a span of one, with these options."""
        read = self.items_of(options) if self.items_of else self.items
        return read if self.by_spans else lambda path, limit, span: read(path, limit)

    def suits(self, use: str) -> bool:
        """Whether a source with this use can have this reader."""
        return use == self.makes or (self.makes, use) == ("sft", "pretrain")


def names() -> list[str]:
    """The readers that exist; a module with a leading underscore is a helper."""
    return sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_"))


@cache
def load(name: str) -> Reader:
    """The reader of this name. Raises KeyError when there is none."""
    if name not in names():
        raise KeyError(name)
    return importlib.import_module(f"{__name__}.{name}").READER
