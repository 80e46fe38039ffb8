"""Glob patterns."""

import pytest

from tasks.download.patterns import matching


@pytest.mark.parametrize(
    ("path", "pattern", "yes"),
    [
        ("a.json", "*.json", True),
        ("d/a.json", "*.json", False),
        ("d/a.json", "**/*.json", True),
        ("a.json", "**/*.json", True),
        ("d/e/a.json", "d/**", True),
        ("x/e/a.json", "d/**", False),
        ("ARC-Easy/train.json", "ARC-*/train.json", True),
        ("ARC-Easy/test.json", "ARC-*/train.json", False),
        ("a+b(1).json", "a+b(?).json", True),
        ("anything/at/all", "**", True),
    ],
)
def test_matching(path, pattern, yes):
    assert matching(path, [pattern]) is yes


def test_any_of_several():
    assert matching("b", ["a", "b"])
    assert not matching("c", ["a", "b"])
