"""`make prune`: what can go from the artifact store, and removing it.

Kept is what the newest run of every profile and study used (`latest/**/run.json`), all that it was made from, and
whatever is younger than the given days. The rest goes, with what half-made work and pieces of work have not been touched
for as long. Nothing that somebody is writing goes: its lock is held.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import re
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.stage.store import MANIFEST
from tasks.work.partitions import LOCK

FINISHED = re.compile(r".+-[0-9a-f]{16}")
ASIDE = ".pruned"
LATEST, PIECES, PARTIAL, OLD = "latest", ".partitions", ".partial", ".old"


@dataclass(frozen=True)
class Item:
    """One folder that can go."""

    kind: str
    """`artifact`, `half-made`, `pieces` (of data, and of answers; found again by key) or `left over` (of a crash in a removal)."""
    path: Path
    size: int
    """Bytes on the disk that only this folder holds: hard-linked files count where their last link goes."""


def candidates(root: Path, days: float, now: float | None = None) -> list[Item]:
    """What can go from a store, sorted by kind and path; nothing is touched. A store without a newest run keeps all
    its artifacts: nothing says there what is needed."""
    limit = (time.time() if now is None else now) - days * 86_400
    needed = _needed(root)
    items: list[Item] = []
    for stage in sorted(path for path in root.glob("*") if path.is_dir() and path.name != LATEST):
        for path in sorted(path for path in stage.iterdir() if path.is_dir()):
            kind = _kind(path)
            if kind == "artifact" and (not needed or path in needed):
                continue
            if kind == "pieces":
                pieces = [piece for piece in sorted(path.iterdir()) if piece.is_dir()]
                items += [_item(kind, piece) for piece in pieces if _old(piece, limit)]
            elif kind and _old(path, limit) and not _held(path):
                items.append(_item(kind, path))
    return sorted(items, key=lambda item: (item.kind, item.path))


def remove(items: list[Item]) -> Iterator[Item]:
    """Remove them one by one, each out of its name first, so that a crash leaves nothing that looks finished; those
    that went."""
    for item in items:
        with _writing(item.path) as mine:
            if not mine or not item.path.exists():
                continue
            aside = item.path.with_name(item.path.name + ASIDE)
            if item.path.name.endswith(ASIDE):
                aside = item.path
            else:
                item.path.rename(aside)
            shutil.rmtree(aside)
            if item.kind in ("artifact", "half-made"):
                base = item.path.name.removesuffix(PARTIAL)
                whole = item.path.with_name(base)
                if not whole.exists() and not whole.with_name(base + PARTIAL).exists():
                    whole.with_name(base + ".run.json").unlink(missing_ok=True)
        yield item


def _needed(root: Path) -> set[Path]:
    """The folders of all artifacts that newest runs used, and of all that these were made from."""
    manifests: dict[Path, dict[str, Any]] = {}
    for file in root.glob(f"*/*/{MANIFEST}"):
        with contextlib.suppress(OSError, ValueError):
            manifests[file.parent] = json.loads(file.read_text("utf-8"))
    by_run = {manifest.get("run_id"): path for path, manifest in manifests.items()}
    by_fingerprint = {manifest.get("fingerprint"): path for path, manifest in manifests.items()}
    waiting = [by_run[run] for run in _runs(root) if run in by_run]
    needed: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path in needed:
            continue
        needed.add(path)
        inputs = manifests[path].get("inputs", {}).values()
        continued = manifests[path].get("identity", {}).get("external", {}).values()
        names = [item["fingerprint"] for item in inputs] + [
            name for name in continued if isinstance(name, str)
        ]
        waiting += [by_fingerprint[name] for name in names if name in by_fingerprint]
    return needed


def _runs(root: Path) -> Iterator[str]:
    """MLflow run ids of the nodes of every newest run."""
    for file in (root / LATEST).rglob("run.json"):
        run = json.loads(file.read_text("utf-8"))
        for stage in run.get("stages", []):
            yield from (node["run_id"] for node in stage.get("nodes", []) if node.get("run_id"))


def _kind(path: Path) -> str:
    if path.name == PIECES:
        return "pieces"
    if path.name.endswith((OLD, ASIDE)):
        return "left over"
    if path.name.endswith(PARTIAL):
        return "half-made"
    return "artifact" if FINISHED.fullmatch(path.name) and (path / MANIFEST).is_file() else ""


def _old(path: Path, limit: float) -> bool:
    """Whether nothing in a folder was changed since; a piece that is used again is touched by its links' count only."""
    newest = max((entry.stat().st_mtime for entry in path.iterdir()), default=0.0)
    return max(newest, path.stat().st_mtime) < limit


def _item(kind: str, path: Path) -> Item:
    sizes = [file.stat() for file in path.rglob("*") if file.is_file() and not file.is_symlink()]
    return Item(kind, path, sum(each.st_size for each in sizes if each.st_nlink == 1))


def _lock(path: Path) -> Path:
    if path.parent.name == PIECES:
        return path / LOCK
    name = path.name.removesuffix(ASIDE).removesuffix(OLD).removesuffix(PARTIAL)
    return path.with_name(name + LOCK)


def _held(path: Path) -> bool:
    with _writing(path) as mine:
        return not mine


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[bool]:
    """Hold the folder's lock for a while; False if somebody else does."""
    lock = _lock(path)
    if not lock.exists():
        yield True
        return
    with open(lock, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True
