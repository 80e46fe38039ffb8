"""The local sources of a run, looked at before it: their first records are read, files of no reader are named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tasks.download import local
from tasks.download.names import few
from tasks.inspect.preview import first_records, idle_files, place
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError

FIRST_RECORDS = 20
"""Records of each source that are read."""


def complaints(config: SteelRun, root: Path) -> Iterator[str]:
    """Why a source would bring nothing: a field of another name is known now, not at minute ten.

    Relative folders start at `root`. A folder that is not there is another check's complaint.
    """
    for name in _here(config, root):
        try:
            folder, files = place(config, name)
            records = first_records(
                name, config.sources[name], folder, FIRST_RECORDS, files, config.convert.max_chars
            )
        except NodeError as error:
            yield str(error)
            continue
        if records and not any(record.record for record in records):
            first = records[0]
            reason = f"{first.reason}{f' ({first.detail})' if first.detail else ''}"
            yield (
                f"sources.{name}: none of its first {len(records)} records can be read: {reason}, first at {first.at}; "
                f"`make preview SOURCE={name}` shows them"
            )


def warnings(config: SteelRun, root: Path) -> Iterator[str]:
    """The files that no reader reads, of sources without a complaint."""
    for name in _here(config, root):
        try:
            idle = idle_files(config, name, place(config, name)[1])
        except NodeError:
            continue  # its complaint says why
        if idle:
            reader = config.sources[name].reader
            yield f"sources.{name}: {len(idle):,} files are not for its reader {reader}: {few(idle, 5)}"


def _here(config: SteelRun, root: Path) -> Iterator[str]:
    """The sources whose raw files lie in a folder that is there, not packed."""
    for name, source in config.sources.items():
        base = getattr(config.runtime.folders, source.below or local.BELOW[source.use])
        packed = source.hub != "folder" or source.unpack
        if base and not packed and (root / base / source.dataset).exists():
            yield name
