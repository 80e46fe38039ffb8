"""`artifacts/latest/<profile>/`: where a person and a script find the newest report of a profile.

summary.json there is the artifact's with `stages` added, because the states of a flow run are known
only when it has ended and are fresh also when the report itself was reused. report.html is a
relative link into the artifact (a copy where links cannot be made). Both appear by rename, so that
a reader sees the old or the new one.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tasks.settings.files import replacing, write_json


def publish_latest(folder: Path, report: Path, stages: Sequence[Mapping[str, Any]]) -> None:
    """Point a profile's folder at this report artifact; `stages` are those of the flow run that has ended."""
    numbers = json.loads((report / "summary.json").read_text("utf-8"))
    write_json(folder / "summary.json", {"stages": stages, **numbers})
    link(report / "report.html", folder / "report.html")


def link(target: Path, name: Path) -> None:
    """Make `name` a relative link to `target`, in one step."""
    with replacing(name) as aside:
        try:
            aside.symlink_to(os.path.relpath(Path(target).resolve(), name.parent.resolve()))
        except OSError:  # a file system without links
            shutil.copyfile(target, aside)
