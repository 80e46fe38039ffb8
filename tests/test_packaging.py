"""pyproject.toml says what each package is for; requirements*.txt and the lock say which version is installed."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name

from flows.preflight import PYTHONS

ROOT = Path(__file__).parents[1]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def group(name: str) -> set[str]:
    """All packages of a dependency group, those of the groups in it included."""
    packages: set[str] = set()
    for item in PYPROJECT["dependency-groups"][name]:
        packages |= group(item["include-group"]) if isinstance(item, dict) else {canonicalize_name(item)}
    return packages


def required(name: str) -> dict[str, Requirement]:
    lines = [line.partition(" #")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()]
    parsed = [Requirement(line) for line in lines if line and not line.startswith("#")]
    return {canonicalize_name(each.name): each for each in parsed}


@pytest.mark.parametrize(
    ("file", "groups"),
    [
        ("requirements.txt", ("run", "dev", "bench")),
        ("requirements-peers.txt", ("peers",)),
        ("requirements-weights.txt", ("weights",)),
        ("requirements-docs.txt", ("docs",)),
        ("requirements-gpu.txt", ("gpu",)),
    ],
)
def test_a_file_holds_the_packages_of_its_groups(file, groups):
    assert set(required(file)) == set().union(*(group(name) for name in groups))


def test_no_package_is_in_two_groups():
    names = [
        canonicalize_name(n) for g in PYPROJECT["dependency-groups"].values() for n in g if isinstance(n, str)
    ]
    assert len(names) == len(set(names))


def test_what_is_installed_is_pinned_and_in_the_lock():
    lock = required("requirements.lock")
    for name, requirement in required("requirements.txt").items():
        assert str(requirement.specifier).startswith("=="), name
        if name in lock:
            assert lock[name].specifier == requirement.specifier, name
    assert all(str(each.specifier).startswith("==") for each in lock.values())


def test_the_range_of_pythons_is_the_same_everywhere():
    range_ = SpecifierSet(PYPROJECT["project"]["requires-python"])
    assert [p for p in ((3, n) for n in range(9, 16)) if range_.contains(f"{p[0]}.{p[1]}.9")] == list(PYTHONS)
    setup = (ROOT / "deployments/setup.sh").read_text("utf-8")
    assert "(3, 11, 5) <= sys.version_info[:3] < (3, 13)" in setup
    assert set(re.findall(r"python(3\.\d+)", setup)) == {f"{major}.{minor}" for major, minor in PYTHONS}


def test_the_version_is_that_of_the_changelog():
    newest = re.search(r"^## (\S+), \d", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert newest
    assert newest[1] == PYPROJECT["project"]["version"]
