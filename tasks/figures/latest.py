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
from pathlib import Path
from typing import Any

from tasks.settings.files import replacing, write_json


def publish_latest(
    artifacts_root: Path, profile: str, report_artifact: Path, stages: list[dict[str, Any]]
) -> Path:
    """Point the profile's folder at this report; returns that folder."""
    folder = Path(artifacts_root).resolve() / "latest" / profile
    folder.mkdir(parents=True, exist_ok=True)
    report_artifact = Path(report_artifact).resolve()
    numbers = json.loads((report_artifact / "summary.json").read_text("utf-8"))
    write_json(folder / "summary.json", {"stages": stages, **numbers})
    link(report_artifact / "report.html", folder / "report.html")
    return folder


def link(target: Path, name: Path) -> None:
    """Make `name` a relative link to `target`, in one step."""
    with replacing(name) as aside:
        try:
            aside.symlink_to(os.path.relpath(Path(target).resolve(), name.parent.resolve()))
        except OSError:  # a file system without links
            shutil.copyfile(target, aside)
