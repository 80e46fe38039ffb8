"""Data sets that lie in a local folder: which files, their digests, and taking them over.

Digests decide whether a download has to be redone, so they are asked for at every start; they are
remembered by (path, size, time of change) and hashed again only when one of these differs.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tasks.download.names import few, readable
from tasks.download.patterns import matching
from tasks.download.walk import Walk
from tasks.settings.config import Folders
from tasks.settings.errors import NodeError
from tasks.settings.files import link_or_copy, read_memo, write_text

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


def list_files(
    name: str, folder: Path, patterns: Sequence[str], say: Callable[[str], None] = lambda line: None
) -> dict[str, str]:
    """The matching files, sorted: path in the artifact -> path below the folder as the disk has it.

    Hidden files and those of a desktop are left out; linked folders are followed. A name that is no UTF-8 is
    decoded (names.readable). `say` is told of what is left out beside these. NodeError when nothing matches, for a
    link to nothing, and for a folder or file that cannot be read.
    """
    walked = Walk(name, folder)
    shown: dict[str, str] = {}
    for path in sorted(walked.files):
        if matching(as_text := readable(path), patterns):
            if as_text in shown:
                raise NodeError(
                    f"source {name}: two files are called {as_text}, in different encodings; rename one"
                )
            shown[as_text] = path
    if not shown:
        there = few(sorted(map(readable, walked.files))) or "no file"
        raise NodeError(
            f"source {name}: none of the {len(walked.files)} files in {folder} matches files: {', '.join(patterns)}; "
            f"there are: {there}{''.join(f'; {line}' for line in walked.left_out[:3])}"
        )
    for line in walked.left_out:
        say(line)
    return _once(shown, walked, say)


def _once(shown: dict[str, str], walked: Walk, say: Callable[[str], None]) -> dict[str, str]:
    """Without the paths by which a link leads to a file that is read anyway."""
    first: dict[tuple[int, int], str] = {}
    found, again = {}, []
    for as_text, path in sorted(shown.items(), key=lambda pair: (pair[1] in walked.linked, pair[0])):
        key = walked.keys[path]
        if path in walked.linked and key in first:
            again.append(f"{as_text} (is {first[key]})")
            continue
        found[as_text] = path
        first.setdefault(key, as_text)
    if again:
        say(f"left out, because links lead to one file twice: {few(again)}")
    return dict(sorted(found.items()))


def digests(folder: Path, files: Mapping[str, str], memo: Path) -> dict[str, str]:
    """sha256 of each file that list_files gave; `memo` is the JSON file in which they are remembered."""
    with _lock:
        known = read_memo(memo)
        fresh, result = {}, {}
        for file, path_below in files.items():
            path = (folder / path_below).resolve()
            state = path.stat()
            old = known.get(str(path))
            if not old or old[:2] != [state.st_size, state.st_mtime_ns]:
                old = [state.st_size, state.st_mtime_ns, _sha256(path)]
            fresh[str(path)] = old
            result[file] = old[2]
        if fresh != known:
            write_text(memo, json.dumps(fresh, indent=1))  # in ASCII: a path may be no UTF-8
    return result


def take(
    folder: Path,
    files: Mapping[str, str],
    expected: Mapping[str, str],
    out: Path,
    progress: Callable[[float, str], None],
) -> None:
    """Copy or hard-link the files into `out`, and check that they still have the expected digests."""
    for index, (file, digest) in enumerate(expected.items()):
        progress(index / len(expected), file)
        origin, target = (folder / files[file]).resolve(), out / file
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
