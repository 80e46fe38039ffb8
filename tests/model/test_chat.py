"""A dialogue remembers, streams what generate would give, and ends when asked."""

import io
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from flows import cli
from model.chat import Dialogue, converse, open_dialogue
from model.training.export import write_export
from tasks.inspect import models
from tasks.settings.errors import NodeError
from tasks.settings.files import write_json
from tasks.stage.node import Artifact
from tasks.stage.store import Store
from tests.support import engine_helpers as tiny
from tests.support.tiny import byte_tokenizer, steel

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    lm = steel(vocab_size=tiny.VOCAB)
    weights = {name: p.detach() for name, p in lm.named_parameters()}
    write_export(folder / "export", lm.config, weights, tiny.byte_tokenizer(folder / "tokenizer"))
    return folder / "export"


def dialogue(**settings) -> Dialogue:
    return Dialogue(steel(), byte_tokenizer(), **{"max_new_tokens": 12, **settings})


def greedy(d: Dialogue, turns: list[dict[str, str]]) -> str:
    ids = d.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    stops = [d.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>")]
    out = d.model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=12,
        eos_token_id=stops,
        pad_token_id=stops[-1],
    )
    return d.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)


def test_the_pieces_are_what_generate_gives_and_the_dialogue_grows():
    d, turns = dialogue(), []
    for text in ("hello", "and then?"):
        turns.append({"role": "user", "content": text})
        expected = greedy(d, turns)
        assert "".join(d.reply(text)) == expected
        turns.append({"role": "assistant", "content": expected})
    assert d.turns == turns
    d.reset()
    assert "".join(d.reply("hello")) == turns[1]["content"]


def test_sampling_follows_the_seed():
    said = ["".join(dialogue(temperature=1.5, top_p=0.9, seed=s).reply("hello")) for s in (1, 1, 2)]
    assert said[0] == said[1] != said[2]


def test_the_oldest_turns_go_when_the_model_is_full():
    d = dialogue()
    d.model.config.max_position_embeddings = 150
    for _ in range(6):
        "".join(d.reply("x" * 20))
    assert 2 <= len(d.turns) <= 6


def test_a_fault_in_generation_is_not_swallowed(monkeypatch):
    d = dialogue()
    monkeypatch.setattr(d.model, "generate", lambda **_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        list(d.reply("hello"))
    assert d.turns == []


def test_commands():
    d, out = dialogue(), io.StringIO()
    converse(d, ["hello\n", "\n", "/reset\n", "/what\n", "/quit\n", "never\n"], out, prompt="> ")
    written = out.getvalue()
    assert "(forgotten)" in written
    assert "/quit ends" in written
    assert d.turns == []
    assert written.count("> ") == 5


@pytest.mark.parametrize("model", ["chat", "plain"])
def test_lines_from_a_pipe_are_answered_one_by_one(export, monkeypatch, capsys, model):
    monkeypatch.setattr("sys.stdin", io.StringIO("hello\n/reset\nhello\n"))
    flags = ["--plain"] if model == "plain" else []
    assert cli.main(["chat", "--model", str(export), "--max-new-tokens", "6", *flags]) == 0
    said = capsys.readouterr()
    first, _, second = said.out.partition("(forgotten)\n")
    assert first == second != ""
    assert str(export) in said.err
    expected = open_dialogue(export, template=model == "chat", max_new_tokens=6)
    assert first == "".join(expected.reply("hello")) + "\n"


def test_a_pipe_into_a_process_of_its_own(export):
    """Nothing is loaded there yet, so nothing may ask whether to trust the folder's code and eat a line."""
    command = [sys.executable, "-m", "flows.cli", "chat", "--model", str(export), "--max-new-tokens", "6"]
    done = subprocess.run(
        command,
        input="hello\n/reset\nhello\n/quit\nnever\n",
        capture_output=True,
        text=True,
        timeout=170,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stderr
    first, _, second = done.stdout.partition("(forgotten)\n")
    assert first == second == "".join(open_dialogue(export, max_new_tokens=6).reply("hello")) + "\n"


def test_a_model_that_is_not_there_is_one_clear_line(tmp_path, capsys):
    where = ["--set", f"runtime.artifacts={tmp_path}"]
    assert cli.main(["chat", *where]) == 2
    assert "no trained model here: `make run` trains one" in capsys.readouterr().err
    assert cli.main(["chat", "--model", "sft:nowhere", *where]) == 2
    assert "no model 'sft:nowhere'" in capsys.readouterr().err


def test_the_last_run_is_read_without_a_server(tmp_path):
    store = Store(tmp_path)
    assert models.last_run(store, "demo") == {}
    for n, name in enumerate(
        [f"pretrain/pretrain-{1:016x}", f"pretrain/pretrain-{2:016x}", f"sft/a-{1:016x}"]
    ):
        manifest = {"run_id": f"run{n}", "digest": "d", "fingerprint": "f", "files": []}
        write_json(tmp_path / name / "manifest.json", manifest)
    nodes = [{"name": "pretrain", "run_id": "run1"}]
    stages = [
        {"name": "pretrain", "nodes": nodes},
        {"name": "sft", "nodes": [{"name": "sft:a", "run_id": ""}]},
    ]
    write_json(tmp_path / "latest" / "demo" / "run.json", {"stages": [{"name": "download"}, *stages]})
    found = models.last_run(store, "demo")
    assert {name: artifact.path.name for name, artifact in found.items()} == {
        "pretrain": f"pretrain-{2:016x}"
    }


def test_the_furthest_model_is_taken_unless_another_is_named(tmp_path):
    nodes = {}
    for name in ("pretrain", "sft:a", "sft:b", "sft:select", "dpo:train"):
        nodes[name] = Artifact(name, tmp_path / name, "", "", {})
        (tmp_path / name / "export").mkdir(parents=True)
    (tmp_path / "sft:select" / "choice.json").write_text(json.dumps({"variant": "b"}), "utf-8")
    assert models.find("", "demo", nodes) == ("dpo", tmp_path / "dpo:train" / "export")
    del nodes["dpo:train"]
    assert models.find("", "demo", nodes) == ("sft", tmp_path / "sft:b" / "export")
    assert models.find("sft:a", "demo", nodes)[1] == tmp_path / "sft:a" / "export"
    assert models.find("base", "demo", nodes)[1] == tmp_path / "pretrain" / "export"
    with pytest.raises(NodeError, match="it has sft, sft:a, sft:b, base"):
        models.find("dpo", "demo", nodes)
    with pytest.raises(NodeError, match="no trained model here"):
        models.find("", "demo", {})
