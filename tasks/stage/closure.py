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
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from pathlib import Path
from typing import Any

from tasks.settings.paths import ROOT
from tasks.stage.uncounted import closed

OURS = ("tasks", "model", "kernels")
ALL = "*"
"""In the place of a name: everything in the module."""
_DOTTED = re.compile(rf"({'|'.join(OURS)})(\.\w+)+")
_Place = tuple[str, str]
"""(module, name in it); the name is "" for the import of the module alone."""
_PURE = {"dataclass", "cache", "lru_cache", "contextmanager", "total_ordering", "overload"}
"""Decorators that leave nothing behind anywhere else."""

# Python 3.11 counts the depth of its parser per interpreter: two threads that parse at once can fail with
# "AST constructor recursion depth mismatch"
_parsing = threading.Lock()


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
    start = _root(body)
    _existing(start[0])
    return _closure(ROOT, start, tuple(extra))


@cache
def _closure(root: Path, start: _Place, extra: tuple[str, ...]) -> Closure:
    todo = [start]
    for item in extra:
        members = list(_members(item))
        if not members:
            raise FileNotFoundError(
                f"a node declares code {item!r}, but there is no such module below {root}"
            )
        todo += [(member, ALL) for member in members]
    seen: set[_Place] = set()
    data: set[Path] = set()
    while todo:
        place = todo.pop()
        if place not in seen:
            seen.add(place)
            places, files = _edges(root, *place)
            todo += places - seen
            data |= files
    return Closure(frozenset(module for module, name in seen if _counts(root, module, name)), frozenset(data))


def _counts(root: Path, module: str, name: str) -> bool:
    """A module counts when something in it is reached, or when its import alone does something."""
    path = _file_of(root, module)
    return path is not None and (name != "" or bool(_module(module, path).effects))


def file_of(module: str) -> Path | None:
    """The file of a module or of a package's __init__, if there is one below the repository's root."""
    return _file_of(ROOT, module)


def tree_of(module: str) -> ast.Module:
    """The syntax tree of a module, without the docstrings; not to be changed. FileNotFoundError if there is none."""
    return _module(module, _existing(module)).tree


def _existing(module: str) -> Path:
    path = file_of(module)
    if path is None:
        raise FileNotFoundError(f"there is no module {module!r} below {ROOT}")
    return path


def forget() -> None:
    """Read every file anew from here on (tests change files)."""
    for cached in (_file_of, _module, _edges, _closure, _listed):
        cached.cache_clear()


def _parse(path: Path) -> ast.Module:
    """The syntax tree of a file, without the docstrings."""
    source = path.read_text("utf-8")
    with _parsing:
        tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            match node.body:
                case [ast.Expr(value=ast.Constant(value=str())), *rest]:
                    node.body = rest or [ast.Pass()]
    return tree


def _root(body: Callable[..., Any]) -> tuple[str, str]:
    """(module, top-level name) in which a callable is defined."""
    if isinstance(body, partial):
        return _root(body.func)
    named = body if hasattr(body, "__qualname__") else type(body)
    return named.__module__, named.__qualname__.partition(".")[0]


@cache
def _file_of(root: Path, module: str) -> Path | None:
    base = root.joinpath(*module.split("."))
    candidates = (base / "__init__.py", base.with_suffix(".py"))
    return next((path for path in candidates if path.is_file()), None)


def _members(module: str) -> Iterator[str]:
    """The module itself and, of a package, every module below."""
    base = ROOT.joinpath(*module.split("."))
    if base.is_dir():
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    elif file_of(module):
        yield module


# ------------------------------------------------------------------------------- one module
@dataclass(frozen=True)
class _Target:
    """What an import binds a name to."""

    module: str
    name: str | None = None
    """None: the module itself, whose attributes are looked at where it is used."""


@dataclass
class _Uses:
    """What a piece of code names."""

    names: set[str] = field(default_factory=set)
    """Used as they stand."""
    attributes: set[tuple[str, str]] = field(default_factory=set)
    """(name, attribute), for `name.attribute`."""
    imports: dict[str, list[_Target]] = field(default_factory=dict)
    strings: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    """Whose modules are imported by a computed name."""


@dataclass
class _Module:
    name: str
    path: Path
    tree: ast.Module
    defined: dict[str, list[ast.AST]] = field(default_factory=dict)
    """Top-level name -> the statements that bind it."""
    imports: dict[str, list[_Target]] = field(default_factory=dict)
    effects: list[ast.AST] = field(default_factory=list)
    """Statements that do something when the module is imported."""
    read: dict[int, _Uses] = field(default_factory=dict)

    def uses(self, statement: ast.AST) -> _Uses:
        """What a top-level statement names; read once."""
        if id(statement) not in self.read:
            reader = _Reader(self)
            reader.visit(statement)
            self.read[id(statement)] = reader.uses
        return self.read[id(statement)]


@cache
def _module(name: str, path: Path) -> _Module:
    module = _Module(name, path, _parse(path))
    _sort(module, module.tree.body)
    return module


def _sort(module: _Module, statements: Iterable[ast.stmt]) -> None:
    """Put each top-level statement where it belongs; what is inside `if`, `try` and `with` is top-level too."""
    for statement in statements:
        match statement:
            case ast.Import() | ast.ImportFrom():
                _bind(module, statement, module.imports)
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                module.defined.setdefault(statement.name, []).append(statement)
                if any(_decorator(item) not in _PURE for item in statement.decorator_list):
                    module.effects.append(statement)
            case ast.Assign(targets=targets):
                _assigned(module, statement, targets)
            case ast.AnnAssign(target=target) | ast.AugAssign(target=target):
                _assigned(module, statement, [target])
            case ast.If(test=test, body=body, orelse=orelse):
                if "__name__" in _names_in(test):  # runs only as a program
                    module.defined["__main__"] = [statement]
                    continue
                if not _type_checking(test):
                    if any(isinstance(node, ast.Call) for node in ast.walk(test)):
                        module.effects.append(test)
                    _sort(module, body)
                _sort(module, orelse)
            case ast.Try(body=body, handlers=handlers, orelse=orelse, finalbody=final):
                inner = [line for handler in handlers for line in handler.body]
                _sort(module, [*body, *inner, *orelse, *final])
            case ast.Expr(value=ast.Constant()) | ast.Pass():
                pass
            case _:
                module.effects.append(statement)


def _assigned(module: _Module, statement: ast.stmt, targets: Iterable[ast.expr]) -> None:
    names = [
        node
        for target in targets
        for node in ([target] if isinstance(target, ast.Name) else ast.walk(target))
    ]
    plain = all(isinstance(target, ast.Name | ast.Tuple | ast.List) for target in targets)
    for node in names:
        if isinstance(node, ast.Name) and plain:
            module.defined.setdefault(node.id, []).append(statement)
    if not plain:  # `table["x"] = f`, `Class.method = f`
        module.effects.append(statement)


def _names_in(tree: ast.AST) -> set[str]:
    return {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}


def _decorator(node: ast.expr) -> str:
    node = node.func if isinstance(node, ast.Call) else node
    return node.attr if isinstance(node, ast.Attribute) else getattr(node, "id", "")


def _type_checking(test: ast.expr) -> bool:
    return getattr(test, "id", getattr(test, "attr", "")) == "TYPE_CHECKING"


def _bind(module: _Module, statement: ast.Import | ast.ImportFrom, names: dict[str, list[_Target]]) -> None:
    """Note what an import statement binds, as far as it is ours."""
    if isinstance(statement, ast.Import):
        for item in statement.names:
            if item.name.partition(".")[0] in OURS:
                target = _Target(item.name, None if item.asname or "." not in item.name else ALL)
                names.setdefault(item.asname or item.name.partition(".")[0], []).append(target)
        return
    source = statement.module or ""
    if statement.level:
        package = module.name if module.path.name == "__init__.py" else module.name.rpartition(".")[0]
        above = package.split(".")[: len(package.split(".")) - statement.level + 1]
        source = ".".join([*above, *filter(None, [source])])
    if source.partition(".")[0] not in OURS:
        return
    for item in statement.names:
        if item.name == "*":
            raise ValueError(f"{module.path}: `from {source} import *` cannot be followed")
        below = f"{source}.{item.name}"
        target = _Target(below) if file_of(below) else _Target(source, item.name)
        names.setdefault(item.asname or item.name, []).append(target)


class _Reader(ast.NodeVisitor):
    """Collects what a statement names."""

    def __init__(self, module: _Module):
        self.module, self.uses = module, _Uses()

    def visit_If(self, node: ast.If) -> None:
        if not _type_checking(node.test):
            self.generic_visit(node)
            return
        for statement in node.orelse:
            self.visit(statement)

    def visit_Import(self, node: ast.Import) -> None:
        _bind(self.module, node, self.uses.imports)

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        _bind(self.module, node, self.uses.imports)

    def visit_Name(self, node: ast.Name) -> None:
        self.uses.names.add(node.id)

    def visit_Attribute(self, node: ast.Attribute) -> None:
        if isinstance(node.value, ast.Name):
            self.uses.attributes.add((node.value.id, node.attr))
        else:
            self.visit(node.value)

    def visit_Constant(self, node: ast.Constant) -> None:
        if isinstance(node.value, str) and len(node.value) < 100:
            self.uses.strings.add(node.value)

    def visit_Call(self, node: ast.Call) -> None:
        if _decorator(node) in ("import_module", "__import__"):
            self._computed(node)
        self.generic_visit(node)

    def _computed(self, node: ast.Call) -> None:
        match node.args[:1]:
            case [ast.Constant()]:
                pass  # a string like any other
            case [ast.JoinedStr(values=[ast.FormattedValue(value=ast.Name(id="__name__")), *_])]:
                self.uses.packages.add(self.module.name)
            case _:
                raise ValueError(
                    f"{self.module.path}:{node.lineno}: an import by this name cannot be followed"
                )


# ----------------------------------------------------------------------------------- edges
@cache
def _edges(root: Path, module: str, name: str) -> tuple[frozenset[_Place], frozenset[Path]]:
    """Where a name of a module leads, in one step: (places, data files)."""
    path = _file_of(root, module)
    if path is None or closed(module):  # a folder without __init__.py holds nothing itself
        return frozenset(), frozenset()
    content, uses = _module(module, path), []
    places: set[_Place] = {(module, "")} if name else {(module.rpartition(".")[0], "")}
    if not name:  # imported: with the packages it is in, and with whatever it imports itself
        places |= {(target.module, "") for targets in content.imports.values() for target in targets}
        uses = content.effects
    elif name == ALL:
        places |= {(module, each) for each in (*content.defined, *content.imports)}
    elif name in content.defined or name in content.imports:
        places |= {(target.module, target.name or ALL) for target in content.imports.get(name, ())}
        uses = content.defined.get(name, [])
    else:  # made by something that runs: whatever is there
        places.add((module, ALL))
    data: set[Path] = set()
    for statement in uses:
        named = content.uses(statement)
        places |= set(_places(content, named))
        if "__file__" in named.names:
            data |= _beside(path, named.strings)
    return frozenset(places), frozenset(data)


def _places(module: _Module, uses: _Uses) -> Iterator[_Place]:
    for name, attribute in (*((name, ALL) for name in uses.names), *uses.attributes):
        targets = uses.imports.get(name) or module.imports.get(name, [])
        yield from ((target.module, target.name or attribute) for target in targets)
        if name in module.defined:
            yield module.name, name
    yield from ((target.module, "") for targets in uses.imports.values() for target in targets)
    yield from ((member, ALL) for package in uses.packages for member in _members(package))
    yield from ((text, ALL) for text in uses.strings if _DOTTED.fullmatch(text) and file_of(text))


def _beside(path: Path, strings: set[str]) -> set[Path]:
    """The data files that strings name: a file beside the module, or all in a folder beside it that is no package."""
    data: set[Path] = set()
    for name in strings & _listed(path.parent):
        item = path.parent / name
        if item.is_dir():
            data |= {below for below in item.rglob("*") if below.is_file()}
        else:
            data.add(item)
    return data


@cache
def _listed(folder: Path) -> frozenset[str]:
    """Names in a folder that are no code."""
    items = [item for item in folder.iterdir() if item.suffix != ".py" and item.name != "__pycache__"]
    return frozenset(item.name for item in items if not (item / "__init__.py").exists())
