"""What lies in a folder after a download, and archives made on the spot."""

from __future__ import annotations

import hashlib
import io
import zipfile

from tasks.download.listing import RemoteFile
from tasks.world.hub import git_blob_sha1


def content(out):
    return {p.relative_to(out).as_posix(): p.read_bytes() for p in out.rglob("*") if p.is_file()}


def part(out, path, body):
    """Where the part of a file with this content lies."""
    lfs = len(body) >= 100_000 or path.endswith(".parquet")
    digest = hashlib.sha256(body).hexdigest() if lfs else git_blob_sha1(body)
    return out / f"{path}.{RemoteFile(path, len(body), '', digest).version}.part"


def zipped(files):
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for path, body in files.items():
            archive.writestr(path, body)
    return sink.getvalue()


def no_sleep(seconds):
    pass
