"""What `make sources` prints: the registry's or a profile's data sets, and what of each is here.

Nothing is asked of a network or a server; what is here is seen from the artifact store and the local folders.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from tasks.download import huggingface, local, modelscope, web
from tasks.download import node as download
from tasks.download.disk import free
from tasks.download.fetch import human
from tasks.settings.config import Source, SteelRun
from tasks.settings.errors import NodeError
from tasks.stage.fingerprint import encode
from tasks.stage.node import Node
from tasks.stage.store import Store

USES = {
    "pretrain": "Pre-training",
    "sft": "Fine-tuning",
    "preference": "Preference pairs",
    "benchmark": "Benchmarks",
}
HEAD = ("name", "hub", "data set", "size", "licence", "access", "present")
WIDEST = 48
"""Characters of a cell; a longer one is cut, a data set's id in its middle."""
TOKENS = {"huggingface": huggingface.VARIABLE, "modelscope": modelscope.VARIABLE}


@dataclass(frozen=True)
class Row:
    """One source."""

    name: str
    use: str
    hub: str
    dataset: str
    size: int | None
    """Bytes: of what is here, else about what there is to fetch."""
    licence: str
    access: str
    present: str
    here: bool

    def cells(self) -> tuple[str, ...]:
        size = "?" if self.size is None else ("" if self.here else "~ ") + human(self.size)
        return (
            self.name,
            self.hub,
            self.dataset,
            size,
            self.licence,
            self.access,
            self.present,
        )


def rows(config: SteelRun) -> list[Row]:
    """Every source of a configuration, in order."""
    nodes = {node.unit: node for node in download.nodes(config)}
    return [_row(config, nodes[name], source) for name, source in config.sources.items()]


def table(rows: Iterable[Row], artifacts: Path) -> list[str]:
    """Lines for a terminal: the sources by use, aligned, then what they need and what `artifacts` has room for."""
    rows = list(rows)
    cells = {row: tuple(_cut(cell) for cell in row.cells()) for row in rows}
    widths = [max(map(len, column)) for column in zip(HEAD, *cells.values(), strict=True)]
    widths[-1] = len(HEAD[-1])
    lines = []
    for use, title in USES.items():
        if mine := [row for row in rows if row.use == use]:
            lines += ["", title, _line(HEAD, widths), _line(["-" * w for w in widths], widths).rstrip()]
            lines += [_line(cells[row], widths) for row in mine]
    return [*lines[1:], "", *_footer(rows, artifacts)]


def _footer(rows: list[Row], artifacts: Path) -> Iterable[str]:
    away = [row for row in rows if not row.here]
    yield f"{len(rows) - len(away)} of {len(rows)} are here."
    # two sources of one data set share its files
    fetched = {(row.hub, row.dataset): row.size for row in away if row.hub not in ("folder", "demo")}
    if fetched:
        known = sum(size or 0 for size in fetched.values())
        unknown = sum(size is None for size in fetched.values())
        more = f", and {unknown} whose size no document gives" if unknown else ""
        yield f"To fetch: {len(fetched)} data sets, about {human(known)}{more}; {human(free(artifacts))} are free."
    if any(row.hub not in ("folder", "demo") for row in rows):
        yield "~ sizes, ids and licences are from documents; none was checked on a hub."


def _row(config: SteelRun, node: Node, source: Source) -> Row:
    present, size, here = _present(config, node, source)
    where = ", ".join(file.path or web.path_of(file.url) for file in source.urls)
    return Row(
        name=node.unit,
        use=source.use,
        hub=source.hub,
        dataset=source.dataset or where,
        size=size if here else source.size,
        licence=_licence(source),
        access=_access(source),
        present=present,
        here=here,
    )


def _licence(source: Source) -> str:
    if source.hub == "demo":
        return "Apache-2.0"  # made by this repository
    return source.licence or ("none stated" if source.entry else "not given")


def _access(source: Source) -> str:
    if source.hub == "folder":
        return "by hand" if source.manual else "folder"
    if not source.gated:
        return "open"
    variable = TOKENS[source.hub]
    has = huggingface.token() if source.hub == "huggingface" else modelscope.token()
    return "gated" if has else f"gated: {variable}?"


def _present(config: SteelRun, node: Node, source: Source) -> tuple[str, int | None, bool]:
    """(what is here, in words; its bytes; whether it is all here)."""
    store = Store(config.runtime.artifacts)
    mine, other = json.loads(encode(node.config)), False
    for manifest in (artifact.manifest for artifact in store.artifacts(node.name)):
        theirs = manifest["identity"].get("config", {})
        other = other or all(theirs.get(key) == mine[key] for key in ("hub", "dataset"))
        if theirs == mine:
            counts = manifest["counts"]
            return f"downloaded, {_files(counts['files'])}", counts["bytes"], True
    if source.hub == "folder":
        return _in_folder(config, node.unit, source)
    partly = sum(_size_below(folder) for folder in (store.root / node.stage).glob(f"{node.unit}-*.partial"))
    if partly:
        return f"begun, {human(partly)}", None, False
    if source.hub == "demo":
        return "made when run", None, False
    return "downloaded with other settings" if other else "missing", None, False


def _in_folder(config: SteelRun, name: str, source: Source) -> tuple[str, int | None, bool]:
    below = source.below or local.BELOW[source.use]
    try:
        folder = local.folder_of(name, source.dataset, below, config.runtime.folders)
        files = local.list_files(name, folder, source.files)
    except NodeError:
        unset = getattr(config.runtime.folders, below) is None
        return f"missing: {'set' if unset else 'not in'} {local.SETTING[below]}", None, False
    size = sum((folder / file).stat().st_size for file in files.values())
    return f"in its folder, {_files(len(files))}", size, True


def _size_below(folder: Path) -> int:
    return sum(os.path.getsize(p) for p in folder.rglob("*") if p.is_file())


def _files(count: int) -> str:
    return f"{count:,} {'file' if count == 1 else 'files'}"


def _cut(cell: str) -> str:
    half = WIDEST // 2
    return cell if len(cell) <= WIDEST else f"{cell[: half - 1]}…{cell[-half:]}"


def _line(cells: Iterable[str], widths: list[int]) -> str:
    right = HEAD.index("size")
    padded = [
        c.rjust(w) if i == right else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths, strict=True))
    ]
    return "  ".join(padded).rstrip()
