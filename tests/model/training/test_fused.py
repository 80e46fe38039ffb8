"""Which operators a training takes. That the kernels compute the same is shown in tests/kernels."""

import pytest
import torch

from kernels import launch
from model.steel.ops import PLAIN
from model.training import fused
from model.training.config import ConfigError
from model.training.objectives import target_rows
from tests.support import engine_helpers as tiny

CPU, CUDA = torch.device("cpu"), torch.device("cuda")


def test_on_a_cpu_a_training_is_the_same_with_auto_and_off(tmp_path):
    data = {"files": [tiny.shard(tmp_path / "a.arrow", 30, masked=True)]}
    for setting in ("auto", "off"):
        assert tiny.engine(tiny.settings(tmp_path / setting, data=data, kernels=setting, steps=3)) == 0
    auto, off = (tiny.weights(tmp_path / setting) for setting in ("auto", "off"))
    assert all((auto[name] == off[name]).all() for name in off)


@pytest.mark.parametrize(
    ("setting", "device", "has_triton", "taken"),
    [
        ("off", CUDA, True, PLAIN),
        ("auto", CUDA, True, fused.FUSED),
        ("auto", CUDA, False, PLAIN),
        ("on", CUDA, True, fused.FUSED),
        ("auto", CPU, True, PLAIN),
    ],
)
def test_the_choice(setting, device, has_triton, taken, monkeypatch):
    monkeypatch.setattr(launch, "triton", object() if has_triton else None)
    assert fused.operators(setting, device) is taken


def test_what_is_asked_for_and_missing_is_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(launch, "INTERPRETED", False)
    with pytest.raises(ConfigError, match="needs a CUDA device"):
        fused.operators("on", CPU)
    monkeypatch.setattr(launch, "triton", None)
    with pytest.raises(ConfigError, match="pip install triton"):
        fused.operators("on", CUDA)
    data = {"files": [tiny.shard(tmp_path / "a.arrow", 8)]}
    with pytest.raises(ConfigError, match="kernels: fast is unknown. Choose one of auto, off, on"):
        tiny.engine(tiny.settings(tmp_path / "run", data=data, kernels="fast"))


def test_counted_beforehand_the_rows_are_the_same():
    labels = torch.tensor([-100, 3, 4, -100, -100, 5])
    assert torch.equal(target_rows(labels, 3), target_rows(labels, None))
    assert target_rows(labels[:1], 0).numel() == 0
