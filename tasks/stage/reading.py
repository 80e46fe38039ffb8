"""Reading a module of ours without importing it: what its top-level names are, and what the code behind each names."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from tasks.settings.paths import ROOT

OURS = ("tasks", "model", "kernels")
ALL = "*"
"""In the place of a name: everything in the module."""
_PURE = {"dataclass", "cache", "lru_cache", "contextmanager", "total_ordering", "overload", "final"}
"""Decorators that leave nothing behind anywhere else."""

# Python 3.11 counts the depth of its parser per interpreter: two threads that parse at once can fail with
# "AST constructor recursion depth mismatch"
_parsing = threading.Lock()


@dataclass(frozen=True)
class Target:
    """What an import binds a name to."""

    module: str
    name: str | None = None
    """None: the module itself, whose attributes are looked at where it is used."""


@dataclass
class Uses:
    """What a piece of code names."""

    names: set[str] = field(default_factory=set)
    """Used as they stand."""
    attributes: set[tuple[str, str]] = field(default_factory=set)
    """(name, attribute), for `name.attribute`."""
    imports: dict[str, list[Target]] = field(default_factory=dict)
    strings: set[str] = field(default_factory=set)
    packages: set[str] = field(default_factory=set)
    """Whose modules are imported by a computed name."""


@dataclass
class Module:
    name: str
    path: Path
    tree: ast.Module
    defined: dict[str, list[ast.AST]] = field(default_factory=dict)
    """Top-level name -> the statements that bind it."""
    imports: dict[str, list[Target]] = field(default_factory=dict)
    effects: list[ast.AST] = field(default_factory=list)
    """Statements that do something when the module is imported."""
    read: dict[int, Uses] = field(default_factory=dict)

    def uses(self, statement: ast.AST) -> Uses:
        """What a top-level statement names; read once."""
        if id(statement) not in self.read:
            reader = _Reader(self)
            reader.visit(statement)
            self.read[id(statement)] = reader.uses
        return self.read[id(statement)]


@cache
def file_of(module: str) -> Path | None:
    """The file of a module or of a package's __init__, if there is one below the repository's root."""
    base = ROOT.joinpath(*module.split("."))
    candidates = (base / "__init__.py", base.with_suffix(".py")) if module else ()
    return next((path for path in candidates if path.is_file()), None)


def members(module: str) -> Iterator[str]:
    """The module itself and, of a package, every module below."""
    base = ROOT.joinpath(*module.split("."))
    if base.is_dir():
        for path in sorted(base.rglob("*.py")):
            parts = path.relative_to(ROOT).with_suffix("").parts
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    elif file_of(module):
        yield module


@cache
def read(module: str) -> Module | None:
    """What a module holds, read once; None if there is no such module of ours."""
    path = file_of(module)
    if path is None:
        return None
    content = Module(module, path, parse(path))
    _sort(content, content.tree.body)
    return content


def parse(path: Path) -> ast.Module:
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


def beside(path: Path, strings: set[str]) -> set[Path]:
    """The data files that strings name: a file beside the module, or all in a folder beside it that is no package."""
    data: set[Path] = set()
    for name in strings & listed(path.parent):
        item = path.parent / name
        if item.is_dir():
            data |= {below for below in item.rglob("*") if below.is_file()}
        else:
            data.add(item)
    return data


@cache
def listed(folder: Path) -> frozenset[str]:
    """Names in a folder that are no code."""
    items = [item for item in folder.iterdir() if item.suffix != ".py" and item.name != "__pycache__"]
    return frozenset(item.name for item in items if not (item / "__init__.py").exists())


def _sort(module: Module, statements: Iterable[ast.stmt]) -> None:
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


def _assigned(module: Module, statement: ast.stmt, targets: Iterable[ast.expr]) -> None:
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


def _bind(module: Module, statement: ast.Import | ast.ImportFrom, names: dict[str, list[Target]]) -> None:
    """Note what an import statement binds, as far as it is ours."""
    if isinstance(statement, ast.Import):
        for item in statement.names:
            if item.name.partition(".")[0] in OURS:
                target = Target(item.name, None if item.asname or "." not in item.name else ALL)
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
        target = Target(below) if file_of(below) else Target(source, item.name)
        names.setdefault(item.asname or item.name, []).append(target)


class _Reader(ast.NodeVisitor):
    """Collects what a statement names."""

    def __init__(self, module: Module):
        self.module, self.uses = module, Uses()

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
