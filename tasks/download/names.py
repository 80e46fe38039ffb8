"""Names of files: which are litter of a desktop, how bytes become text, and which cannot be written."""

from __future__ import annotations

import os
from collections.abc import Sequence

FOLDERS = ("__MACOSX", ".AppleDouble", "@eaDir")
FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
LONGEST = 255
"""Bytes of one name, on all file systems that matter here."""
ENCODINGS = ("utf-8", "gb18030")
"""What a name without a declared encoding is tried as; GB18030 holds GBK and GB2312."""


def is_litter(path: str) -> bool:
    """Whether a desktop made this file for itself: what macOS and Windows put beside the data."""
    *folders, name = path.rstrip("/").split("/")
    return name.startswith("._") or name in FILES or any(folder in FOLDERS for folder in (*folders, name))


def decoded(raw: Sequence[bytes], last: str = "") -> list[str]:
    """Names from bytes, all by the same encoding: the first of ENCODINGS that fits all of them, else `last`
    (a codec that knows every byte; "": bytes that are no UTF-8 are written as \\xNN)."""
    for encoding in ENCODINGS:
        try:
            return [name.decode(encoding) for name in raw]
        except UnicodeDecodeError:
            continue
    return [name.decode(last) if last else name.decode("utf-8", "backslashreplace") for name in raw]


def readable(path: str) -> str:
    """A path as Python has it from the disk, with names that are no UTF-8 decoded (GBK, else \\xNN)."""
    try:
        path.encode("utf-8")
    except UnicodeEncodeError:
        return decoded([os.fsencode(path)])[0]
    return path


def few(names: Sequence[str], most: int = 8, total: int = 0) -> str:
    """The first of `total` names (0: those given are all), for a message of one line."""
    total = total or len(names)
    shown = [_one_line(name) for name in names[:most]]
    more = [f"and {total - len(shown):,} more"] if total > len(shown) else []
    return ", ".join([*shown, *more])


def _one_line(name: str) -> str:
    return name if name.isprintable() else repr(name)
