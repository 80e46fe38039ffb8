"""Which of our modules a function can reach: its import closure, found by reading, without importing anything.

The closure goes by names, not by whole files: from a function to the functions, classes and imports that it names,
in its own module and in others, also where they are imported inside a function. So a body reaches what it runs
and not what stands beside it: `nodes()` in the same file, or a tool that nothing imports. Every module reached has a
reason to count; which do not is said in tasks.stage.uncounted.

What is followed beside plain imports:
- a string that is the dotted name of one of our modules ("model.training.run", which torchrun is told to start);
- `import_module(f"{__name__}.{name}")`: every module of that package. Any other computed name is an error;
- a string beside `__file__` that names a file or folder of the module's own folder (`Path(__file__).parent /
  "templates"`): its files are data of the module.

Statements that do something when a module is imported (a call, a decorator that registers) always count with it.
`if TYPE_CHECKING` blocks never do. Where names alone cannot tell, more is reached, never less.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from tasks.stage import code_memo, reading
from tasks.stage.reading import ALL, OURS, Module, Uses, beside, file_of, members, read
from tasks.stage.uncounted import closed

_DOTTED = re.compile(rf"({'|'.join(OURS)})(\.\w+)+")
_Place = tuple[str, str]
"""(module, name in it); the name is "" for the import of the module alone."""


@dataclass(frozen=True)
class Closure:
    """What was reached."""

    modules: frozenset[str]
    data: frozenset[Path]
    """Files beside modules that they name."""


def closure(body: Callable[..., Any], extra: Iterable[str] = ()) -> Closure:
    """Modules and data files that a function (or the instance of a class, when called) reaches.

    `extra` are modules or packages that it uses in a way that cannot be seen; they count whole.
    ValueError on an import that cannot be followed; FileNotFoundError on a module that is not there.
    """
    start = root_of(body)
    tree_of(start[0])  # it is there
    return _closure(start, tuple(extra))


@cache
def _closure(start: _Place, extra: tuple[str, ...]) -> Closure:
    todo = [start]
    for item in extra:
        modules = list(members(item))
        if not modules:
            raise FileNotFoundError(
                f"a node declares code {item!r}, but there is no such module below {reading.ROOT}"
            )
        todo += [(member, ALL) for member in modules]
    seen: set[_Place] = set()
    data: set[Path] = set()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            places, files = _edges(*place)
            todo += places - seen
            data |= files
    return Closure(frozenset(module for module, name in seen if _counts(module, name)), frozenset(data))


def _counts(module: str, name: str) -> bool:
    """A module counts when something in it is reached, or when its import alone does something."""
    content = read(module)
    return content is not None and (name != "" or bool(content.effects))


def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module, without the docstrings; not to be changed. FileNotFoundError if there is none."""
    content = read(module)
    if content is None:
        raise FileNotFoundError(f"there is no module {module!r} below {reading.ROOT}")
    return content.tree


def forget() -> None:
    """Read every file anew from here on (tests change files)."""
    for cached in (reading.file_of, reading.read, reading.listed, _edges, _closure):
        cached.cache_clear()
    code_memo.forget()


def root_of(body: Callable[..., Any]) -> tuple[str, str]:
    """(module, top-level name) in which a callable is defined."""
    if isinstance(body, partial):
        return root_of(body.func)
    named = body if hasattr(body, "__qualname__") else type(body)
    return named.__module__, named.__qualname__.partition(".")[0]


@cache
def _edges(module: str, name: str) -> tuple[frozenset[_Place], frozenset[Path]]:
    """Where a name of a module leads, in one step: (places, data files)."""
    content, uses = read(module), []
    if content is None or closed(module):  # a folder without __init__.py holds nothing itself
        return frozenset(), frozenset()
    places: set[_Place] = {(module, "")} if name else {(module.rpartition(".")[0], "")}
    if not name:  # imported: with the packages it is in, and with whatever it imports itself
        places |= {(target.module, "") for targets in content.imports.values() for target in targets}
        uses = content.effects
    elif name == ALL:
        places |= {(module, each) for each in (*content.defined, *content.imports)}
    elif name in content.defined or name in content.imports:
        places |= {(target.module, target.name or ALL) for target in content.imports.get(name, ())}
        uses = content.defined.get(name, [])
    elif file_of(f"{module}.{name}"):
        places.add((f"{module}.{name}", ALL))
    else:  # made by something that runs: whatever is there
        places.add((module, ALL))
    data: set[Path] = set()
    for statement in uses:
        named = content.uses(statement)
        places |= set(_places(content, named))
        if "__file__" in named.names:
            data |= beside(content.path, named.strings)
    return frozenset(places), frozenset(data)


def _places(module: Module, uses: Uses) -> Iterator[_Place]:
    for name, attribute in (*((name, ALL) for name in uses.names), *uses.attributes):
        targets = uses.imports.get(name) or module.imports.get(name, [])
        yield from ((target.module, target.name or attribute) for target in targets)
        if name in module.defined:
            yield module.name, name
    yield from ((target.module, "") for targets in uses.imports.values() for target in targets)
    yield from ((member, ALL) for package in uses.packages for member in members(package))
    yield from ((text, ALL) for text in uses.strings if _DOTTED.fullmatch(text) and file_of(text))
