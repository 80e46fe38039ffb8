"""The names in a zip archive. Only newer programs say how they are encoded; Chinese Windows writes GBK.

Python takes an undeclared name for cp437, so the bytes are not lost.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Sequence
from zipfile import ZipInfo

from tasks.download.names import decoded

UTF8 = 0x800
"""Flag of an entry: its name is UTF-8."""
UNICODE_PATH = 0x7075
"""Extra field of Info-ZIP with the name in UTF-8, beside one in the system's own encoding."""
DOS = 0
OLD = "cp437"


def names_of(infos: Sequence[ZipInfo]) -> list[str]:
    """The paths of the entries, with forward slashes."""
    raw = [_bytes(info) for info in infos]
    unknown = [at for at, info in enumerate(infos) if not info.flag_bits & UTF8]
    guessed = dict(zip(unknown, decoded([raw[at] for at in unknown], last=OLD), strict=True))
    found = [guessed.get(at, info.orig_filename) for at, info in enumerate(infos)]
    for at in unknown:
        found[at] = _unicode_path(infos[at].extra, raw[at]) or found[at]
    if not any("/" in name for name in found):  # some programs of Windows write its own sign
        found = [
            n.replace("\\", "/") if i.create_system == DOS else n for n, i in zip(found, infos, strict=True)
        ]
    return found


def _bytes(info: ZipInfo) -> bytes:
    return info.orig_filename.encode("utf-8" if info.flag_bits & UTF8 else OLD, "surrogateescape")


def _unicode_path(extra: bytes, name: bytes) -> str:
    """The name in the extra field, if it belongs to the entry's own name; else ""."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        value, extra = extra[4 : 4 + size], extra[4 + size :]
        if kind == UNICODE_PATH and len(value) > 5 and value[1:5] == struct.pack("<I", zlib.crc32(name)):
            return value[5:].decode("utf-8", "replace")
    return ""
