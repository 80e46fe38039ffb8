"""`artifacts/latest/<profile>/`: where a person and a script find the newest report of a profile.

summary.json there is the artifact's with `stages` and `exports` added: the states of a flow run are known
only when it has ended, and a report waits for no export. report.html is a
relative link into the artifact (a copy where links cannot be made). Both appear by rename, so that
a reader sees the old or the new one. `models/<base|sft|dpo|rl>` and `exports/<form>` are links to the
Hugging Face folders of the last run.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from model.export.forms import certified
from tasks.figures import history
from tasks.figures.history import Nodes
from tasks.settings.files import replacing, write_json


def publish_latest(folder: Path, report: Path, stages: Sequence[Mapping[str, Any]]) -> None:
    """Point a profile's folder at this report artifact; `stages` are those of the flow run that has ended.

    `exports` are those that `publish_models` has linked.
    """
    numbers = json.loads((report / "summary.json").read_text("utf-8"))
    write_json(folder / "summary.json", {"stages": stages, **numbers, "exports": list(_exports(folder))})
    link(report / "report.html", folder / "report.html")


def _exports(folder: Path) -> Iterator[dict[str, Any]]:
    """Form, place in `folder`, and the largest difference of a logit to the trained model, by the certificate."""
    for export in sorted((folder / "exports").glob("*")):
        place = Path(export.read_text("utf-8").strip()) if export.is_file() else export
        certificate = json.loads((place / "parity.json").read_text("utf-8"))
        worst = max(one["max_logit_difference"] for one in certified(certificate).values())
        yield {"form": export.name, "path": f"exports/{export.name}", "max_logit_difference": worst}


def publish_models(folder: Path, nodes: Nodes) -> None:
    """Point models/ and exports/ at what this run's nodes hold. What a whole run does not have goes; a run that ended
    earlier leaves the others."""
    models = {name: path for name, path in history.exports(nodes).items() if ":" not in name}
    forms = {
        name.partition(":")[2]: nodes[name].path / "export" for name in nodes if name.startswith("export:")
    }
    for group, targets in (("models", models), ("exports", forms)):
        for old in (folder / group).glob("*"):
            if "report" in nodes and old.name not in targets:
                old.unlink()
        for name, target in targets.items():
            link(target, folder / group / name)


def link(target: Path, name: Path) -> None:
    """Make `name` a relative link to the file or folder `target`, in one step.

    On a file system without links a file is copied, and of a folder `name` is a file that says where it is.
    """
    with replacing(name) as aside:
        try:
            aside.symlink_to(os.path.relpath(Path(target).resolve(), name.parent.resolve()))
        except OSError:
            if target.is_dir():
                aside.write_text(f"{target}\n", "utf-8")
            else:
                shutil.copyfile(target, aside)
