"""The export folder: loaded here by its type, and far from this repository by its own code."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.support import engine_helpers as tiny

ROOT = Path(__file__).parents[3]
SCORE = """
import json, sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, remote = sys.argv[1], sys.argv[2] == "remote"
if not remote:
    import model.steel
assert remote or "model.steel" in sys.modules
trust = {"trust_remote_code": True} if remote else {}
lm = AutoModelForCausalLM.from_pretrained(folder, **trust).eval()
tokenizer = AutoTokenizer.from_pretrained(folder, **trust)
ids = tokenizer.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True,
                                    return_tensors="pt", return_dict=True)["input_ids"]
with torch.no_grad():
    logits = lm(ids).logits[0, -1].double()
reply = lm.generate(ids, max_new_tokens=5, do_sample=False)[0, ids.shape[1]:].tolist()
ours = [name for name in sys.modules if name.split(".")[0] in ("model", "kernels", "tasks")]
print(json.dumps({"class": type(lm).__module__, "ids": ids[0].tolist(), "sum": logits.sum().item(),
                  "eos": lm.generation_config.eos_token_id, "pad": lm.generation_config.pad_token_id,
                  "reply": reply, "ours": bool(ours)}))
"""


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    work = tmp_path_factory.mktemp("export")
    data = {"files": [tiny.shard(work / "a.arrow", 8)]}
    tokenizer = tiny.byte_tokenizer(work / "tokenizer")
    assert tiny.engine(tiny.settings(work, data=data, steps=2, tokenizer_dir=str(tokenizer))) == 0
    return work


def load(folder: Path, way: str, tmp_path: Path) -> dict:
    environment = {**os.environ, "HF_MODULES_CACHE": str(tmp_path / "modules"), "HF_HUB_OFFLINE": "1"}
    environment["PYTHONPATH"] = str(ROOT) if way == "registered" else ""
    done = subprocess.run(
        [sys.executable, "-c", SCORE, str(folder), way],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_the_export_loads_by_type_and_by_its_own_code(exported, tmp_path):
    moved = shutil.copytree(exported / "export", tmp_path / "elsewhere")
    remote, registered = (load(moved, way, tmp_path) for way in ("remote", "registered"))
    assert remote.pop("class").startswith("transformers_modules.")
    assert registered.pop("class") == "model.steel.modeling"
    assert (remote.pop("ours"), registered.pop("ours")) == (False, True)
    assert remote == registered
    assert remote["eos"] == [258, 256]
    assert remote["pad"] == 256
    assert bytes(i for i in remote["ids"] if i < 256)  # the template was applied to real tokens


def test_the_config_carries_the_tokenizers_ids(exported):
    config = json.loads((exported / "export" / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (256, 258, 256)
    assert config["auto_map"]["AutoModelForCausalLM"] == "modeling.SteelForCausalLM"
    assert (exported / "export" / "chat_template.jinja").is_file()


def test_bfloat16_and_tied_weights(exported, tmp_path):
    values = tiny.settings(
        tmp_path,
        data={"files": [{"path": str(exported / "a.arrow")}]},
        steps=1,
        export_dtype="bfloat16",
        model={**tiny.MODEL, "tie_word_embeddings": True, "embedding_multiplier": 5.0},
    )
    assert tiny.engine(values) == 0
    from model.steel import SteelForCausalLM

    lm = SteelForCausalLM.from_pretrained(tmp_path / "export")
    assert lm.dtype == torch.bfloat16
    assert lm.lm_head.weight is lm.model.embed_tokens.weight
    assert lm.config.embedding_multiplier == 5.0


def test_going_on_from_an_export_starts_from_its_weights(exported, tmp_path):
    values = tiny.settings(
        tmp_path,
        objective="sft",
        data={"files": [{"path": str(exported / "a.arrow")}]},
        steps=1,
        optim={"lr": 1e-30},
        init_from=str(exported / "export"),
    )
    assert tiny.engine(values) == 0
    before = tiny.weights(exported)
    for name, weight in tiny.weights(tmp_path).items():
        assert np.array_equal(weight, before[name]), name
