"""A whole training on the kernels, in the interpreter, beside one on the definitions."""

from __future__ import annotations

import numpy as np
import pytest

from tests.support import engine_helpers as tiny


@pytest.mark.slow
@pytest.mark.parametrize("ffn", ["token", "prefix", "dense"])
def test_a_training_on_kernels_is_one_on_the_definitions(ffn, tmp_path):
    data = {"files": [tiny.shard(tmp_path / "a.arrow", 12, masked=True)]}
    geometry = {**tiny.MODEL, "hidden_size": 64, "ffn": ffn}
    optim = {"lr": 3e-3, "warmup_steps": 2, "z_loss": 1e-3}
    for setting in ("on", "off"):
        run = tiny.settings(
            tmp_path / setting, data=data, kernels=setting, model=geometry, optim=optim, steps=3, log_every=1
        )
        assert tiny.engine(run) == 0
    on, off = (tiny.steps(tmp_path / setting) for setting in ("on", "off"))
    for a, b in zip(on, off, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-5)
        assert a["grad_norm"] == pytest.approx(b["grad_norm"], rel=2e-4)
    plain = tiny.weights(tmp_path / "off")
    for name, weight in tiny.weights(tmp_path / "on").items():
        # Adam's first steps are +-lr whatever a gradient's size: tiny gradients may differ in sign
        assert np.mean(np.abs(weight - plain[name])) < 2e-4, name
