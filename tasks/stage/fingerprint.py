"""What makes two runs of a node the same: a canonical encoding of its config, code and inputs.

Identity holds what gives the output its meaning and nothing else. Paths, hosts, worker counts and
log levels live in `config.runtime`, which never gets here; a `Path` in a config slice is an error.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any

from pydantic import BaseModel

from tasks.settings.paths import ROOT
from tasks.stage.closure import closure, root_of, tree_of
from tasks.stage.code_memo import remembered
from tasks.stage.uncounted import uncounted

SCHEMA = 1


def canonical(value: Any) -> Any:
    """`value` as plain JSON data, or TypeError: identity must not depend on a `repr`."""
    if isinstance(value, BaseModel):
        return {name: canonical(getattr(value, name)) for name in type(value).model_fields}
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"a key of a config slice must be a string, not {key!r}")
        return {key: canonical(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [canonical(item) for item in value]
    if isinstance(value, float):
        if not math.isfinite(value):
            raise TypeError(f"{value!r} has no canonical form")
        return value
    if value is None or isinstance(value, bool | int | str):
        return value
    raise TypeError(f"{type(value).__name__} cannot be part of a fingerprint: {value!r}")


def encode(value: Any) -> str:
    """Canonical JSON text: sorted keys, no spaces."""
    return json.dumps(canonical(value), sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any) -> str:
    """sha256 (hex) of the canonical JSON text."""
    return hashlib.sha256(encode(value).encode()).hexdigest()


def code_digest(body: Callable[..., Any], extra: Iterable[str] = ()) -> str:
    """Digest of the code that decides what a function makes: the syntax trees of the modules it reaches
    (tasks.stage.closure), less those that do not change a result (tasks.stage.uncounted), and their data files.

    `extra` are modules or packages that it uses in a way that cannot be seen. Comments, docstrings and formatting do
    not count. Modules are read, not imported: planning must not cost an import of torch.
    """
    extra = tuple(extra)
    name = ":".join(root_of(body))
    return remembered(" ".join((name, *extra)), lambda: _code_digest(body, extra))


def _code_digest(body: Callable[..., Any], extra: Iterable[str]) -> str:
    reached = closure(body, extra)
    trees = [[name, _tree_digest(name)] for name in sorted(reached.modules) if not uncounted(name)]
    # templates and recipes beside the code decide results just as code does
    data = sorted((path.relative_to(ROOT).as_posix(), path) for path in reached.data)
    return digest([trees, [[name, hashlib.sha256(path.read_bytes()).hexdigest()] for name, path in data]])


@cache
def _tree_digest(module: str) -> str:
    return hashlib.sha256(ast.dump(tree_of(module)).encode()).hexdigest()
