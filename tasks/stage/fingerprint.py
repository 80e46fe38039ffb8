"""What makes two runs of a node the same: a canonical encoding of its config, code and inputs.

Identity holds what gives the output its meaning and nothing else. Paths, hosts, worker counts and
log levels live in `config.runtime`, which never gets here; a `Path` in a config slice is an error.
"""

from __future__ import annotations

import ast
import hashlib
import json
import math
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from tasks.settings.paths import ROOT

SCHEMA = 1

# Python 3.11 counts the depth of its parser per interpreter: two threads that parse at once can fail with
# "AST constructor recursion depth mismatch"
_parsing = threading.Lock()


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


def code_digest(modules: Iterable[str]) -> str:
    """Digest of the syntax trees of modules and packages, found below the repository root.

    Comments, docstrings and formatting do not count. Modules are read, not imported: planning
    must not cost an import of torch. Call it first where no other thread runs: see `_parsing`.
    """
    files = sorted({path for module in modules for path in _files(module)})
    return digest([[str(path.relative_to(ROOT)), _tree_digest(path)] for path in files])


def _files(module: str) -> list[Path]:
    base = ROOT.joinpath(*module.split("."))
    if base.is_dir():
        # recipes and templates beside the code decide results just as code does
        return [
            p for p in base.rglob("*") if p.suffix in {".py", ".yaml", ".j2"} and "__pycache__" not in p.parts
        ]
    file = base.with_suffix(".py")
    if not file.is_file():
        raise FileNotFoundError(f"a node declares code {module!r}, but there is no {file.relative_to(ROOT)}")
    return [file]


@cache
def _tree_digest(path: Path) -> str:
    source = path.read_text("utf-8")
    if path.suffix != ".py":
        return hashlib.sha256(source.encode()).hexdigest()
    with _parsing:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef) and body:
            first = body[0]
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = body[1:] or [ast.Pass()]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()
