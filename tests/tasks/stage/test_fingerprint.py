"""Identity: what changes a fingerprint, what does not, and what is refused."""

import math
from pathlib import Path

import pytest

from tasks.settings.config import Clean, Optim
from tasks.stage import fingerprint


def test_encoding_is_independent_of_order_and_container():
    assert fingerprint.encode({"b": 1, "a": (1, 2)}) == fingerprint.encode({"a": [1, 2], "b": 1})


def test_models_are_encoded_by_value():
    assert fingerprint.digest(Optim()) == fingerprint.digest(Optim(lr=3e-4))
    assert fingerprint.digest(Optim()) != fingerprint.digest(Optim(lr=1e-4))
    assert fingerprint.digest(Clean()) == fingerprint.digest(Clean().model_dump())


@pytest.mark.parametrize("value", [Path("/data"), object(), math.nan, {1: 2}, {"f": print}])
def test_what_has_no_stable_form_is_refused(value):
    with pytest.raises(TypeError):
        fingerprint.encode({"x": value})


@pytest.fixture
def module(tmp_path, monkeypatch):
    monkeypatch.setattr(fingerprint, "ROOT", tmp_path)
    fingerprint._tree_digest.cache_clear()

    def write(text: str) -> str:
        (tmp_path / "room.py").write_text(text)
        fingerprint._tree_digest.cache_clear()
        return fingerprint.code_digest(["room"])

    yield write
    fingerprint._tree_digest.cache_clear()


def test_comments_docstrings_and_layout_are_not_code(module):
    plain = module("def f(x):\n    return x + 1\n")
    assert plain == module(
        '"""Doc."""\n\n\ndef f(x):\n    """More."""\n    # why\n    return (x +\n            1)\n'
    )
    assert plain != module("def f(x):\n    return x + 2\n")


def test_a_package_counts_whole_and_a_missing_one_is_an_error(tmp_path, module):
    room = tmp_path / "rooms"
    room.mkdir()
    (room / "a.py").write_text("x = 1\n")
    before = fingerprint.code_digest(["rooms"])
    (room / "recipe.yaml").write_text("op: 1\n")
    assert fingerprint.code_digest(["rooms"]) != before
    with pytest.raises(FileNotFoundError):
        fingerprint.code_digest(["nowhere"])
