"""Data sets that lie in a local folder: which files, their digests, and taking them over.

Digests decide whether a download has to be redone, so they are asked for at every start; they are
remembered by (path, size, time of change) and hashed again only when one of these differs.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.download.patterns import matching
from tasks.settings.config import Folders
from tasks.settings.errors import NodeError
from tasks.settings.files import link_or_copy, write_json

SETTING = {"sources": "SOURCES", "posttrain": "POSTTRAIN", "benchmarks": "BENCHMARKS"}
BELOW = {"pretrain": "sources", "sft": "posttrain", "preference": "posttrain", "benchmark": "benchmarks"}
LINK_SIZE = 64 << 20
"""From this size on a file is hard-linked; a smaller one is copied, out of reach of later edits."""

_lock = threading.Lock()


def folder_of(name: str, dataset: str, below: str, folders: Folders, manual: str = "") -> Path:
    """The source's folder. NodeError, naming the setting, when it is not set or not there.

    `manual` says how a person gets the files, where no program may.
    """
    root = getattr(folders, below)
    setting = f"{SETTING[below]}= (runtime.folders.{below})"
    how = f". It is fetched by hand: {manual}" if manual else ""
    if root is None:
        raise NodeError(
            f"source {name} lies in a local folder: set {setting} to the folder that holds {dataset}{how}"
        )
    if not Path(root).is_dir():
        raise NodeError(f"there is no folder {root}, which {setting} names")
    folder = Path(root) / dataset
    if not folder.is_dir():
        raise NodeError(f"source {name} is not there: no folder {folder} below {setting}{how}")
    return folder


def memo(artifacts: Path, name: str) -> Path:
    """Where the digests of a source's files are remembered."""
    return Path(artifacts) / ".cache" / f"digests-{name}.json"


def list_files(name: str, folder: Path, patterns: Sequence[str]) -> list[str]:
    """Relative paths of the matching files, sorted; hidden ones are left out. NodeError when none."""
    found = []
    for where, folders, files in os.walk(folder):
        folders[:] = [f for f in folders if not f.startswith(".")]
        base = Path(where).relative_to(folder)
        found += [(base / file).as_posix() for file in files if not file.startswith(".")]
    chosen = sorted(path for path in found if matching(path, patterns))
    if not chosen:
        raise NodeError(
            f"source {name}: none of the {len(found)} files in {folder} matches files: {', '.join(patterns)}"
        )
    return chosen


def digests(folder: Path, files: Sequence[str], memo: Path) -> dict[str, str]:
    """sha256 of each file; `memo` is the JSON file in which they are remembered."""
    with _lock:
        known = _read(memo)
        fresh, result = {}, {}
        for file in files:
            path = (folder / file).resolve()
            state = path.stat()
            old = known.get(str(path))
            if not old or old[:2] != [state.st_size, state.st_mtime_ns]:
                old = [state.st_size, state.st_mtime_ns, _sha256(path)]
            fresh[str(path)] = old
            result[file] = old[2]
        if fresh != known:
            write_json(memo, fresh)
    return result


def take(
    folder: Path,
    expected: Mapping[str, str],
    out: Path,
    progress: Callable[[float, str], None],
) -> None:
    """Copy or hard-link the files into `out`, and check that they still have the expected digests."""
    for index, (file, digest) in enumerate(expected.items()):
        progress(index / len(expected), file)
        origin, target = (folder / file).resolve(), out / file
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        if origin.stat().st_size < LINK_SIZE:
            shutil.copyfile(origin, target)
        else:
            link_or_copy(origin, target)
        if _sha256(target) != digest:
            target.unlink()
            raise NodeError(f"{origin} changed while it was being read; run again")


def _sha256(path: Path) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _read(memo: Path) -> dict[str, list]:
    try:
        return json.loads(memo.read_text("utf-8"))
    except (FileNotFoundError, ValueError):  # never hashed yet, or a half-written memo: hash again
        return {}
