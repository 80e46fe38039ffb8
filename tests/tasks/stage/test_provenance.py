"""The commit and the version that manifests carry."""

from __future__ import annotations

import subprocess

import pytest

from tasks.stage import provenance


@pytest.fixture(autouse=True)
def no_variable(monkeypatch):
    monkeypatch.delenv(provenance.VARIABLE, raising=False)


def git(root, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
    command = ["git", "-C", str(root), *identity, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path):
    root = tmp_path / "checkout"
    root.mkdir()
    (root / "file").write_text("a")
    git(root, "init", "-q")
    git(root, "add", ".")
    git(root, "commit", "-q", "-m", "one")
    return root


def test_a_checkout_says_its_commit_and_whether_it_was_changed(checkout, monkeypatch):
    head = git(checkout, "rev-parse", "HEAD")
    monkeypatch.setenv(provenance.VARIABLE, "other")
    assert provenance.commit(checkout) == head
    (checkout / "new").write_text("not tracked")
    assert provenance.commit(checkout) == head
    (checkout / "file").write_text("b")
    assert provenance.commit(checkout) == f"{head}-dirty"


def test_elsewhere_the_variable_says_it(tmp_path, checkout, monkeypatch):
    inside = checkout / "copy"  # somebody else's repository that holds a copy
    inside.mkdir()
    for root in (tmp_path, inside, tmp_path / "none"):
        assert provenance.commit(root) == ""
    monkeypatch.setenv(provenance.VARIABLE, "abc123")
    assert provenance.commit(tmp_path) == "abc123"
    monkeypatch.setenv("PATH", "")  # no git at all
    assert provenance.commit(checkout) == "abc123"


@pytest.mark.parametrize(
    ("text", "version"),
    [('[project]\nversion = "1.2.3"\n', "1.2.3"), ("[project]\n", ""), ("[tool.x]\n", ""), (None, "")],
)
def test_the_version_is_that_of_pyproject(tmp_path, text, version):
    if text is not None:
        (tmp_path / "pyproject.toml").write_text(text)
    assert provenance.version(tmp_path) == version
