"""A checkpoint of any kind, step and number of ranks becomes the export that the training would have made."""

import filecmp
import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from model.training.checkpoint import DamagedError
from model.training.config import ConfigError, from_dict
from model.training.convert import convert, main
from tests.support import engine_helpers as tiny
from tests.support.families import MODELS


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return {"files": [tiny.shard(tmp_path_factory.mktemp("shards") / "a.arrow", 12)]}


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return str(tiny.byte_tokenizer(tmp_path_factory.mktemp("tokenizer")))


def same(one: Path, other: Path) -> None:
    """The same files with the same bytes."""
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in other.iterdir())
    assert filecmp.cmpfiles(one, other, names, shallow=False)[0] == names


@pytest.mark.parametrize(
    ("model", "more"),
    [
        (tiny.MODEL, {}),
        ({**tiny.MODEL, "ffn": "dense", "tie_word_embeddings": True}, {"export_dtype": "bfloat16"}),
        (MODELS["qwen2-tied"], {}),
        ({**MODELS["gemma2"], "attn_logit_softcapping": None, "final_logit_softcapping": None}, {}),
        *(pytest.param(MODELS[name], {}, marks=pytest.mark.slow) for name in MODELS if name != "qwen2-tied"),
    ],
    ids=lambda value: value.get("model_type", value.get("ffn", "")),
)
def test_the_last_checkpoint_becomes_the_export(model, more, data, tokenizer, tmp_path):
    values = tiny.settings(
        tmp_path / "run", data=data, steps=2, model=model, tokenizer_dir=tokenizer, keep_final=True, **more
    )
    assert tiny.engine(values) == 0
    convert(tmp_path / "run/checkpoints/step-000002", tmp_path / "converted")
    same(tmp_path / "run/export", tmp_path / "converted")


def test_a_continued_model_keeps_its_tokens(data, tokenizer, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    model = MODELS["llama"]
    assert tiny.engine(tiny.settings(first, data=data, steps=1, model=model, tokenizer_dir=tokenizer)) == 0
    config = json.loads((first / "export/config.json").read_text())
    (first / "export/config.json").write_text(json.dumps({**config, "eos_token_id": 200}))
    values = tiny.settings(second, data=data, steps=2, init_from=str(first / "export"), keep_final=True)
    assert tiny.engine(values) == 0
    convert(second / "checkpoints/step-000002", tmp_path / "converted")
    same(second / "export", tmp_path / "converted")
    shutil.rmtree(first)
    with pytest.raises(ConfigError, match="is not in .*first/export any more"):
        convert(second / "checkpoints/step-000002", tmp_path / "again")


@pytest.mark.slow
def test_exports_at_chosen_steps_are_those_of_shorter_runs(data, tokenizer, tmp_path):
    """Beside the training, whose own bytes they leave as they are; their checkpoints stay until then."""
    settings = {"data": data, "tokenizer_dir": tokenizer, "optim": {"lr": 3e-3, "schedule": "constant"}}
    some = {"export_steps": [1, 5], "export_every": 4, "keep_checkpoints": 1, "save_every": 2}
    assert tiny.engine(tiny.settings(tmp_path / "run", steps=6, **some, **settings)) == 0
    assert sorted(p.name for p in (tmp_path / "run/exports").iterdir()) == [
        "step-000001", "step-000004", "step-000005",
    ]  # fmt: skip
    for steps, folder in ((4, "exports/step-000004"), (6, "export")):
        short = tmp_path / f"short-{steps}"
        assert tiny.engine(tiny.settings(short, steps=steps, **settings)) == 0
        same(short / "export", tmp_path / "run" / folder)


@pytest.mark.slow
def test_what_was_due_is_made_after_a_stop(data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=6, save_every=2, keep_checkpoints=1)
    assert tiny.engine(values, tiny.StopAt(4)) == 75
    assert not (tmp_path / "exports").exists()
    assert tiny.engine({**values, "export_steps": [4]}) == 0
    assert (tmp_path / "exports/step-000004/config.json").is_file()


def test_one_is_made_beside_the_training(data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=4, export_steps=[2], keep_checkpoints=1, save_every=1)
    assert tiny.engine(values) == 0
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["step-000002"]
    assert (tmp_path / "exports/step-000002/model.safetensors").is_file()


def test_a_stop_while_exports_are_made_ends_them_with_the_model_written(data, tmp_path):
    values = tiny.settings(tmp_path, data=data, steps=2, export_steps=[1], save_every=1)
    assert tiny.engine(values, tiny.StopAt(2)) == 75  # after both steps
    assert (tmp_path / "export/config.json").is_file()
    assert not (tmp_path / "exports/step-000001").exists()
    assert tiny.engine(values) == 0
    assert (tmp_path / "exports/step-000001/config.json").is_file()


@pytest.mark.slow
def test_an_export_that_fails_costs_the_training_nothing(data, tmp_path, caplog):
    (tmp_path / "exports").write_text("no folder can be made here")
    assert tiny.engine(tiny.settings(tmp_path, data=data, export_steps=[2])) == 0
    assert "step 2 was not exported" in caplog.text
    assert (tmp_path / "export/config.json").is_file()


def test_damage_and_nonsense_are_one_line(data, tmp_path, capsys):
    assert tiny.engine(tiny.settings(tmp_path / "run", data=data, steps=2, keep_final=True)) == 0
    checkpoint = tmp_path / "run/checkpoints/step-000002"
    assert main([str(tmp_path / "nowhere"), str(tmp_path / "out")]) == 2
    assert "there is no checkpoint" in capsys.readouterr().err
    file = next(checkpoint.glob("__0_*"))
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(DamagedError, match="has changed since it was written"):
        convert(checkpoint, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="export_steps must be at least 1"):
        from_dict(tiny.settings(tmp_path, data=data, export_steps=[0]))


@pytest.mark.slow
def test_two_ranks_one_export(data, tokenizer, tmp_path):
    values = tiny.settings(
        tmp_path / "run", data=data, keep_final=True, export_steps=[3], tokenizer_dir=tokenizer
    )
    assert tiny.start(values, 2).wait(300) == 0, (tmp_path / "run/log").read_text()
    convert(tmp_path / "run/checkpoints/step-000006", tmp_path / "converted")
    same(tmp_path / "run/export", tmp_path / "converted")
    assert (tmp_path / "run/exports/step-000003/model.safetensors").is_file()


@pytest.mark.slow
def test_a_killed_training_leaves_no_half_export_and_no_process(data, tmp_path):
    values = tiny.settings(
        tmp_path, data=data, steps=100_000, save_every=50_000, export_steps=[2], log_every=1
    )
    running = tiny.start(values, 1)
    children = []
    end = time.monotonic() + 120
    while not children and time.monotonic() < end:
        children = _converters(tmp_path)
        time.sleep(0.01)
    assert children, (tmp_path / "log").read_text()
    children[0].parent().kill()
    running.wait(60)
    end = time.monotonic() + 20
    while _converters(tmp_path) and time.monotonic() < end:
        time.sleep(0.1)
    assert not _converters(tmp_path)
    assert not (tmp_path / "exports/step-000002").exists()
    assert tiny.engine({**values, "steps": 4, "save_every": 2}) == 0
    assert [p.name for p in (tmp_path / "exports").iterdir()] == ["step-000002"]


def _converters(work: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "model.training.convert" in line and str(work) in line:
            found.append(process)
    return found


@pytest.mark.slow
def test_as_a_command(data, tmp_path):
    assert tiny.engine(tiny.settings(tmp_path / "run", data=data, steps=2, keep_final=True)) == 0
    paths = [str(tmp_path / "run/checkpoints/step-000002"), str(tmp_path / "out")]
    done = subprocess.run(
        [sys.executable, "-m", "model.training.convert", *paths, "--dtype", "bfloat16"],
        cwd=tiny.ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "out/config.json").read_text())["dtype"] == "bfloat16"


def test_no_folder_is_replaced_that_is_no_export(data, tmp_path, capsys):
    assert tiny.engine(tiny.settings(tmp_path / "run", data=data, steps=2, keep_final=True)) == 0
    checkpoint = tmp_path / "run/checkpoints/step-000002"
    mixed, half = tmp_path / "mixed", tmp_path / "half"
    shutil.copytree(tmp_path / "run/export", mixed)
    (mixed / "thesis.txt").write_text("years of work")
    half.mkdir()
    (half / "package.json").write_text("{}")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    refused = {
        checkpoint: "which is read",
        checkpoint / "inside": "which is read",
        tmp_path / "run": "which is read",
        tmp_path / "half/../run": "which is read",
        mixed: "thesis.txt, which is of no export",
        half: "no earlier export",
        tmp_path / "file": "is no folder",
    }
    for target, why in refused.items():
        assert main([str(checkpoint), str(target)]) == 2
        line = capsys.readouterr().err
        assert why in line
        assert line.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before
    (tmp_path / "empty").mkdir()
    for target in (tmp_path / "empty", tmp_path / "run/export"):  # the second: an earlier export
        convert(checkpoint, target)
    same(tmp_path / "empty", tmp_path / "run/export")


def test_the_model_that_the_run_began_with_is_not_replaced(data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert tiny.engine(tiny.settings(first, data=data, steps=1)) == 0
    values = tiny.settings(second, data=data, steps=2, init_from=str(first / "export"), keep_final=True)
    assert tiny.engine(values) == 0
    with pytest.raises(ConfigError, match="which is read"):
        convert(second / "checkpoints/step-000002", first / "export")
