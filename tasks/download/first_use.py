"""Files that come without a digest: the first download is trusted, every later one must bring the same bytes.

What arrived is noted below <artifacts>/.cache, one JSON file a source: {url: {sha256, size}}.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tasks.download.listing import RemoteFile
from tasks.settings.errors import NodeError
from tasks.settings.files import write_json


def pinned(files: Sequence[RemoteFile], notes: Path) -> list[RemoteFile]:
    """The files, with the noted digest where they have none of their own. NodeError if one changed its size."""
    seen = _read(notes)
    return [_pinned(f, seen[f.url], notes) if not f.expected and f.url in seen else f for f in files]


def note(notes: Path, arrived: Mapping[str, Mapping[str, Any]]) -> None:
    """Remember {url: {sha256, size}} of first downloads."""
    if not arrived:
        return
    write_json(notes, {**_read(notes), **arrived})


def _pinned(file: RemoteFile, first: Mapping[str, Any], notes: Path) -> RemoteFile:
    by = f"its first download (remove {notes} to trust a new version)"
    if file.size != first["size"]:
        raise NodeError(f"{file.url} has {file.size:,} bytes, but {first['size']:,} by {by}")
    return replace(file, sha256=first["sha256"], etag="", mark="", by=by)


def _read(notes: Path) -> dict[str, dict[str, Any]]:
    try:
        return json.loads(notes.read_text("utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:  # trust is not to be lost silently
        raise NodeError(f"{notes} is damaged ({error}); remove it to trust the next download anew") from error
