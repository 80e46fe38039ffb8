"""The engine trains every kind of FFN, and refuses one that leaks unless asked."""

import numpy as np
import pytest

from model.steel import SteelForCausalLM
from model.training.config import ConfigError
from tests.support import engine_helpers as tiny


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {"files": [tiny.shard(folder / "a.arrow", 30)]}


def geometry(ffn: str) -> dict:
    return {**tiny.MODEL, "ffn": ffn, "merge_segment": 4, "allow_future_leakage": True}


@pytest.mark.parametrize("ffn", ["dense", "prefix", "merge", "paper", "released"])
def test_a_kind_learns_and_goes_on_where_it_was_stopped(ffn, data, tmp_path):
    stopped = tiny.settings(tmp_path / "stopped", data=data, model=geometry(ffn))
    assert tiny.engine(stopped, tiny.StopAt(3)) == 75
    assert tiny.engine(stopped) == 0
    assert tiny.engine(tiny.settings(tmp_path / "plain", data=data, model=geometry(ffn))) == 0
    lines = tiny.metrics(tmp_path / "plain")
    assert lines[0]["loss"] > lines[-2]["loss"]
    expected = tiny.weights(tmp_path / "plain")
    for name, weight in tiny.weights(tmp_path / "stopped").items():
        assert np.array_equal(weight, expected[name]), name
    loaded = SteelForCausalLM.from_pretrained(tmp_path / "plain" / "export")
    assert (loaded.config.ffn, loaded.config.merge_segment) == (ffn, 4)


@pytest.mark.parametrize("ffn", ["paper", "released"])
def test_a_leak_that_nobody_asked_for_is_refused_in_one_line(ffn, data, tmp_path, capsys):
    asked_for = tiny.settings(tmp_path / "asked", data=data, model=geometry(ffn), steps=1)
    assert tiny.engine(asked_for) == 0
    export = tmp_path / "asked" / "export"
    settings = (export / "config.json").read_text("utf-8")
    (export / "config.json").write_text(
        settings.replace('"allow_future_leakage": true', '"allow_future_leakage": false'), "utf-8"
    )
    for start in ({"model": {**tiny.MODEL, "ffn": ffn}}, {"init_from": str(export)}):
        with pytest.raises(ConfigError, match="allow_future_leakage") as error:
            tiny.engine(tiny.settings(tmp_path / "refused", data=data, **start))
        assert "\n" not in str(error.value)
