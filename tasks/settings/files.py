"""Files that appear whole: written aside under a hidden name, then renamed into place."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a free name in the folder of `path`; what was written there replaces `path` if the block ends well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    aside.unlink(missing_ok=True)
    try:
        yield aside
        aside.replace(path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise


def write_text(path: Path, text: str, *, private: bool = False) -> None:
    """Write UTF-8 text so that a reader sees the old file or the new one, also after a power cut.

    A `private` file may be read by its owner only, from its first byte on.
    """
    with replacing(path) as aside:
        handle = os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600 if private else 0o666)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())


def write_json(path: Path, value: Any) -> None:
    """Write a value as JSON, in the same way."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1))


def read_memo(path: Path) -> dict[str, Any]:
    """What an earlier run noted as JSON; {} where there is none yet, or a half-written one: it is made anew then."""
    try:
        return dict(json.loads(path.read_text("utf-8")))
    except (FileNotFoundError, ValueError):
        return {}


def link_or_copy(origin: Path, target: Path) -> None:
    """Have the file `origin` at `target` too: by a hard link where the file system can, else by a copy."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        os.link(origin, target)
    except OSError:  # another disk, or a file system without links
        shutil.copyfile(origin, target)
