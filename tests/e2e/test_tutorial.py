"""docs/tutorial.md, word for word: each of its commands in a clone, in their order, and what the text says of them.

The clone has this environment's .venv; an installation of its own would cost minutes and prove nothing new.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench.common import without_servers
from flows.settings import ROOT
from tasks.settings.config import DATA_STAGES, STAGES

VENV = Path(sys.prefix)
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.skipif(not (VENV / ".installed").exists(), reason="make setup has not made this .venv"),
]

BLOCK = re.compile(r"^```(sh|yaml)\n(.*?)^```", re.MULTILINE | re.DOTALL)
PLACE = re.compile(r"Write this to `([^`]+)`:\s*\Z")
OWN_DATA = "/tmp/mine"


@dataclass
class Reader:
    """Somebody who types what the tutorial says."""

    folder: Path
    data: Path

    def types(self, block: str, answers: str = "", code: int = 0) -> str:
        """A block in a new shell; returns what it shows."""
        done = subprocess.run(
            ["bash", "-ec", block.replace(OWN_DATA, str(self.data))],
            cwd=self.folder, env=without_servers(), input=answers, capture_output=True, text=True, timeout=1800,
        )  # fmt: skip
        print(f"$ {block}\n{done.stdout}{done.stderr}")
        assert (done.returncode != 0) == (code != 0), (block, done.stdout, done.stderr)
        assert "Traceback" not in done.stdout + done.stderr
        return done.stdout + done.stderr

    def states(self, profile: str = "smoke") -> dict[str, str]:
        run = json.loads((self.folder / "artifacts/latest" / profile / "run.json").read_text("utf-8"))
        return {stage["name"]: stage["state"] for stage in run["stages"]}


@pytest.fixture
def reader(tmp_path):
    folder = tmp_path / "steel"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(folder)], check=True)
    (folder / ".venv").symlink_to(VENV)
    for file in (*folder.glob("requirements*"), folder / "deployments/setup.sh"):
        os.utime(file, (0, 0))  # older than the installation
    reader = Reader(folder, tmp_path / "mine")
    yield reader
    reader.types("make down CANCEL=1")


def test_every_command_does_what_the_text_says(reader):
    text = (reader.folder / "docs/tutorial.md").read_text("utf-8")
    blocks = []
    for found in BLOCK.finditer(text):
        place = PLACE.search(text[: found.start()])
        assert (found[1] == "yaml") == bool(place)
        blocks.append((place[1] if place else "", found[2]))
    begins = [
        "make run PROFILE=smoke\n", "ls artifacts", "make run PROFILE=smoke\n", "make plan", "make run PROFILE=smoke SET",
        "make check", "make run PROFILE=smoke FORCE", "mkdir", "extends", "make preview", "make trace", "make chat", "make down",
    ]  # fmt: skip
    assert [block.startswith(begin) for (_, block), begin in zip(blocks, begins, strict=True)] == [True] * 13
    (first, look, again, plan, change, misspelt, force, own, profile, read, trace, chat, down) = blocks

    said = reader.types(first[1])
    assert "password" in said
    assert reader.states() == dict.fromkeys(STAGES, "Completed")
    assert (reader.folder / "artifacts/latest/smoke/report.html").is_file()
    assert (reader.folder / ".steel/auth").is_file()

    assert "report.html" in reader.types(look[1])

    reader.types(again[1])
    assert reader.states() == dict.fromkeys(STAGES, "Cached")

    said = reader.types(plan[1])
    for stage in STAGES[: STAGES.index("dpo")]:
        assert re.search(rf"^skip +{stage} ", said, re.MULTILINE)
    assert re.search(r"^run +dpo:", said, re.MULTILINE)
    assert reader.states() == dict.fromkeys(STAGES, "Cached"), "nothing ran"

    reader.types(change[1])
    states = reader.states()
    assert (states["sft"], states["dpo"]) == ("Cached", "Completed")
    assert "betta" in reader.types(misspelt[1], code=2)

    reader.types(force[1])
    assert reader.states() == {**dict.fromkeys(STAGES, "Cached"), "sft": "Completed"}

    reader.types(own[1])
    assert len((reader.data / "pages/a.jsonl").read_text("utf-8").splitlines()) == 40
    (reader.folder / profile[0]).write_text(profile[1], "utf-8")
    assert "茶叶" in reader.types(read[1])
    run = json.loads((reader.folder / "artifacts/latest/mine/run.json").read_text("utf-8"))
    nodes = {node["name"]: node["state"] for stage in run["stages"] for node in stage["nodes"]}
    assert nodes["convert:pages"] == "Completed"
    assert nodes["convert:skypile"] == "Cached"
    assert [stage["name"] for stage in run["stages"]] == list(DATA_STAGES)

    assert "登记簿" in reader.types(trace[1])
    reader.types(chat[1], answers="你好\n/quit\n")
    reader.types(down[1])
    assert "down" in reader.types("make status || true")
