"""Names of files: which are litter of a desktop, how bytes become text, and which cannot be written."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from tasks.settings.errors import NodeError

FOLDERS = ("__MACOSX", ".AppleDouble", "@eaDir")
FILES = (".DS_Store", "Thumbs.db", "desktop.ini")
MANIFEST = "manifest.json"
LONGEST = 255
"""Bytes of one name, on all file systems that matter here."""
ENCODINGS = ("utf-8", "gb18030")
"""What a name without a declared encoding is tried as; GB18030 holds GBK and GB2312."""


class Names:
    """The files of an artifact, which can be written beside each other."""

    def __init__(self, files: Iterable[str] = ()):
        self.files: set[str] = set()
        self._folders: set[str] = set()
        for file in files:
            self.add("the source", file)

    def add(self, origin: str, path: str) -> None:
        """One more file; NodeError when it must not or cannot be written. `origin` is who lists it."""
        parts = path.split("/")
        if path.startswith("/") or not {"", ".", ".."}.isdisjoint(parts) or "\0" in path:
            raise NodeError(f"{origin} lists a file outside of itself: {path!r}")
        if parts[-1] == MANIFEST:
            raise NodeError(
                f"{origin} has a file {path}, a name that artifacts need themselves; exclude it in files:"
            )
        if longest := next((p for p in parts if len(p.encode("utf-8", "surrogateescape")) > LONGEST), ""):
            raise NodeError(
                f"{origin} has a name of more than {LONGEST} bytes, which no disk here takes: {longest[:60]}…"
            )
        if path in self.files:
            raise NodeError(f"{origin} holds {path}, and so does another file or archive of the source")
        if path in self._folders:
            raise NodeError(f"{origin} holds {path} both as a file and as a folder")
        while (path_above := "/".join(parts[:-1])) and path_above not in self._folders:
            if path_above in self.files:
                raise NodeError(f"{origin} holds {path_above} both as a file and as a folder")
            self._folders.add(path_above)
            parts = parts[:-1]
        self.files.add(path)


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
