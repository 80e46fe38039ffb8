"""Which state of the code a run was made with: the commit and the version, for people to read.

Neither is part of a fingerprint: the syntax trees of a node's own modules are (tasks.stage.closure).
"""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

from tasks.settings.paths import ROOT

VARIABLE = "STEEL_COMMIT"
"""Says the commit where there is no git checkout, such as in an image."""


def commit(root: Path = ROOT) -> str:
    """The checked out commit, with `-dirty` behind it if tracked files differ; else $STEEL_COMMIT; else ""."""
    top = _git(root, "rev-parse", "--show-toplevel", "HEAD").splitlines()
    if (
        len(top) == 2 and Path(top[0]).resolve() == root.resolve()
    ):  # not a repository that holds a copy of ours
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        return top[1] + ("-dirty" if changed else "")
    return os.environ.get(VARIABLE, "")


def version(root: Path = ROOT) -> str:
    """The project's version, as pyproject.toml has it; "" if it has none."""
    try:
        project = tomllib.loads((root / "pyproject.toml").read_text("utf-8")).get("project", {})
    except FileNotFoundError:
        return ""
    return str(project.get("version", ""))


def _git(root: Path, *arguments: str) -> str:
    """What git prints; "" where there is no git or no repository that it may read."""
    command = ["git", "--no-optional-locks", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
