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
