"""Other architectures: packed training is exact, the export is the model, and what cannot be exact is refused."""

import json
from pathlib import Path

import pytest

from tests.support import engine_helpers as tiny
from tests.support.families import MODELS, loss_of_documents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "files": [tiny.shard(folder / "a.arrow", 12)],
        "val_files": [tiny.shard(folder / "v.arrow", 5, seed=2)],
    }


def settings(work: Path, data: dict, **more) -> dict:
    return tiny.settings(work, data=data, steps=3, log_every=1, **more)


def val_loss(work: Path) -> float:
    return [line["val_loss"] for line in tiny.metrics(work) if "val_loss" in line][-1]


@pytest.mark.parametrize("name", MODELS)
def test_packed_loss_is_that_of_each_document_alone(name, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert tiny.engine(settings(first, data, model=MODELS[name])) == 0
    lines = [line["loss"] for line in tiny.metrics(first) if "loss" in line]
    assert lines[-1] < lines[0]
    assert json.loads((first / "export/config.json").read_text())["model_type"] == MODELS[name]["model_type"]
    expected = loss_of_documents(first / "export", [Path(data["val_files"][0]["path"])])
    assert val_loss(first) == pytest.approx(expected, abs=1e-5)

    frozen = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    assert tiny.engine(settings(second, data, model=None, init_from=str(first / "export"), optim=frozen)) == 0
    assert val_loss(second) == pytest.approx(expected, abs=1e-5)
    assert (second / "export/model.safetensors").read_bytes() == (
        first / "export/model.safetensors"
    ).read_bytes()
