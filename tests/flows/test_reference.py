"""The page of all parameters says what the code says."""

from __future__ import annotations

import re

import pytest

from flows import reference
from tasks.settings.config import SteelRun


def test_the_committed_page_is_the_generated_one():
    assert reference.PAGE.read_text("utf-8") == reference.page(), "python -m flows.reference"


def test_every_field_of_the_settings_is_on_the_page():
    named = set(re.findall(r"^\| `([^`]+)` \| ", reference.page(), re.M))
    missing = [name for name in SteelRun.model_fields if name not in named]
    assert missing == []
    assert {
        "pretrain.optim.lr",
        "sources.<name>.urls[].sha256",
        "dpo.on_policy.mixture.<name>.reward",
        "runtime.nproc",
    } <= named


def test_no_parameter_is_without_a_meaning():
    empty = re.findall(r"^\| `[^`]+` \| .* \| .* \|  \|$", reference.page(), re.M)
    assert empty == []


def test_an_old_page_is_noticed(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(reference, "ROOT", tmp_path)
    monkeypatch.setattr(reference, "PAGE", tmp_path / "reference.md")
    monkeypatch.setattr(reference, "page", lambda: "new\n")
    assert reference.main(["--check"]) == 1
    assert "reference.md is old" in capsys.readouterr().err
    assert reference.main([]) == 0
    assert reference.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("annotation", "words"),
    [(int | None, "integer or null"), (list[str], "list of text"), (dict[str, float], "name → number")],
)
def test_types_in_words(annotation, words):
    assert reference._type(annotation) == words
