"""The shell commands of README, CONTRIBUTING and docs: the cheap ones run, the others parse and name what exists."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml
from markdown_it import MarkdownIt

from tests.support.links import ROOT, pages

PARSER = MarkdownIt("commonmark").enable("table")
PLACEHOLDER = re.compile(r"<[a-z]+>|…")
OPTIONAL = re.compile(r"[\[\]](?![^']*')")
"""Brackets around what may be left out, not those of a quoted value."""
PROGRAMS = ("make", "python", "torchrun", "prefect", "pytest", "source", "rm", ".")
CHEAP = ("make status", "make sources")
SLOW_MODULES = ("model.training.run",)
"""Run by torchrun alone: they take a configuration, and have no options."""


@cache
def commands() -> list[str]:
    """Every command, from blocks of shell and from code within sentences, without its comment."""
    texts = []
    for page in pages():
        for token in PARSER.parse(page.read_text("utf-8")):
            if token.type == "fence" and token.info == "sh":
                texts += token.content.splitlines()
            texts += [part.content for part in token.children or () if part.type == "code_inline"]
    found = dict.fromkeys(_plain(text) for text in texts)
    return [text for text in found if text.partition(" ")[0] in PROGRAMS and " " in text]


def _plain(text: str) -> str:
    return OPTIONAL.sub("", PLACEHOLDER.sub("X", re.sub(r"\s+#.*", "", text))).strip()


def of(program: str) -> list[list[str]]:
    return [words for text in commands() if (words := shlex.split(text))[0] == program]


def modules() -> list[str]:
    """What is named after `-m` of python or torchrun."""
    named = {w[w.index("-m") + 1] for program in ("python", "torchrun") for w in of(program) if "-m" in w}
    return sorted(named)


def make(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run make; `.venv` is taken as it is."""
    command = ["make", "-o", ".venv/.installed", *words]
    env = {**os.environ, **environment}
    return subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=300)


def test_there_are_commands_of_every_kind():
    assert {text.partition(" ")[0] for text in commands()} >= {"make", "python", "torchrun", "prefect"}
    assert len(commands()) > 40


@pytest.mark.parametrize("text", commands())
def test_it_parses(text):
    done = subprocess.run(["bash", "-n", "-c", text], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("words", of("make"), ids=" ".join)
def test_make_knows_its_target_and_its_variables(words):
    words = words[: words.index("<")] if "<" in words else words
    known = set(re.findall(r"^([A-Z_]+) *\?=", (ROOT / "Makefile").read_text(), re.M))
    assert {word.partition("=")[0] for word in words[2:]} <= known
    done = make("-n", *words[1:])
    named = (
        len(words) == 2 and " wants " in done.stderr
    )  # a target that is only named, and says what it needs
    assert done.returncode == 0 or named, done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("module", modules())
def test_a_module_says_how_it_is_used(module):
    if module not in SLOW_MODULES:
        done = subprocess.run(
            [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True, timeout=300
        )
        assert "usage" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


WITH_MODULE = [words for program in ("python", "torchrun") for words in of(program) if "-m" in words]


@pytest.mark.parametrize("words", WITH_MODULE, ids=" ".join)
def test_options_are_those_of_the_module(words):
    """Each `--option` behind the module is in its text."""
    module = words[words.index("-m") + 1]
    options = {word for word in words[words.index("-m") + 2 :] if word.startswith("--")}
    text = (ROOT / (module.replace(".", "/") + ".py")).read_text("utf-8")
    text += (ROOT / "bench/common.py").read_text("utf-8") if module.startswith("bench.") else ""
    assert [option for option in options if f'"{option}"' not in text] == []


@cache
def deployments() -> dict[str, set[str]]:
    """`<flow>/<deployment>` of prefect.yaml, the flow's name as Prefect has it -> its parameters."""
    from prefect.utilities.importtools import import_object

    listed = yaml.safe_load((ROOT / "prefect.yaml").read_text("utf-8"))["deployments"]
    flows = {each["entrypoint"]: import_object(str(ROOT / each["entrypoint"])) for each in listed}
    of_each = ((flows[each["entrypoint"]], each["name"]) for each in listed)
    return {f"{flow.name}/{name}": set(flow.parameters.properties) for flow, name in of_each}


@pytest.mark.parametrize("words", of("prefect"), ids=" ".join)
def test_prefect_commands(words):
    if words[1:] == ["deployment", "run"]:
        return  # only named
    if words[1:3] == ["deployment", "run"]:
        assert words[3] in deployments()
        for name, value in (w.split("=", 1) for w in words[4:] if "=" in w):
            assert name in deployments()[words[3]]
            json.loads(value) if value[0] in "[{" else None
    elif words[1:3] == ["work-pool", "create"]:
        template = ROOT / words[words.index("--base-job-template") + 1]
        assert {"job_configuration", "variables"} <= json.loads(template.read_text("utf-8")).keys()
    else:
        assert words[1:3] == ["flow-run", "retry"]


def test_paths_of_other_commands_exist():
    for words in of("pytest"):
        assert all((ROOT / word).exists() for word in words[1:] if "/" in word)


@pytest.mark.parametrize("text", [t for t in commands() if t.startswith(CHEAP)])
def test_the_cheap_ones_run(text, tmp_path):
    done = make(*shlex.split(text)[1:], STEEL_STATE=str(tmp_path))
    assert done.returncode == 0, done.stderr


def test_the_list_of_targets():
    done = make("help")
    targets = set(re.findall(r"^  make ([a-z-]+)", done.stdout, re.M))
    assert targets == set(re.search(r"^\.PHONY: (.*)$", Path(ROOT / "Makefile").read_text(), re.M)[1].split())
