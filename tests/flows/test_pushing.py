"""`make push` against a hub on loopback: what goes, what comes back, what is refused, and that no token is told."""

import json
import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows import cli, pushing
from model.export.write import write_form
from tests.support import exports
from tests.support.fake_run import FakeRun
from tests.support.model_hub import model_hub

TOKEN = "hf_SecretOfTheTest0123456789abcdef"
CARD = "---\nlibrary_name: transformers\nlicense: mit\n---\n\n# A model\n"


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """What a training leaves: a dense model that can leave as qwen2."""
    root = tmp_path_factory.mktemp("trained")
    tokenizer = exports.qwen_tokenizer(root / "tokenizer")
    return exports.export(root / "export", tokenizer, ffn="dense", expert="swiglu")


@pytest.fixture(scope="module")
def folder(trained, tmp_path_factory):
    """An export of it, with a card and something that is not to go."""
    made = tmp_path_factory.mktemp("made") / "qwen2"
    write_form(trained, made, "qwen2")
    (made / "README.md").write_text(CARD, "utf-8")
    (made / "notes.pkl").write_bytes(b"no")
    return made


@pytest.fixture
def hub(monkeypatch):
    with model_hub(TOKEN) as hub:
        monkeypatch.setattr(constants, "ENDPOINT", hub.endpoint)
        template = hub.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", template
        )  # made of the endpoint at import
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        for name in ("HF_HUB_OFFLINE", "HTTP_PROXY", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield hub


@pytest.fixture
def push(capsys, caplog):
    """Runs the command; (exit code, all that it said and logged)."""
    caplog.set_level(logging.DEBUG)

    def run(*arguments):
        caplog.clear()
        code = cli.main(["push", *map(str, arguments)])
        said = "".join(capsys.readouterr())
        assert TOKEN not in said + caplog.text
        return code, said

    return run


def test_what_was_pushed_is_what_comes_back_and_computes_the_same(push, hub, folder, tmp_path):
    code, said = push("--to", "hf:me/small", "--model", folder, "--apply")
    assert (code, said.splitlines()[-1].startswith("pushed ")) == (0, True), said
    repo = hub.repos["me/small"]
    assert repo.private
    sent = {path: body for path, body in repo.files.items() if path != ".gitattributes"}
    assert sent == {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "notes.pkl"}
    assert repo.large == {"model.safetensors"}
    assert len(repo.commits) == 2, "all of it is one commit"
    where = {"token": TOKEN, "cache_dir": tmp_path}
    ids = AutoTokenizer.from_pretrained("me/small", **where)(
        "法国的首都是哪里？", return_tensors="pt"
    ).input_ids
    there = AutoModelForCausalLM.from_pretrained("me/small", **where)
    with torch.no_grad():
        assert torch.equal(there(ids).logits, AutoModelForCausalLM.from_pretrained(folder)(ids).logits)

    hub.requests.clear()
    code, said = push("--to", "hf:me/small", "--model", folder, "--apply")
    assert code == 0
    assert "nothing to do" in said
    assert hub.wrote() == []
    code, said = push("--to", "hf:me/small", "--model", folder, "--apply", "--licence", "apache-2.0")
    assert "pushed 1 files" in said, "the card alone is another"
    assert repo.files["README.md"].decode() == CARD.replace("mit", "apache-2.0")


def test_a_dry_run_lists_what_would_go_and_asks_nobody(push, hub, folder, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    code, said = push("--to", "hf:me/small", "--model", folder)
    assert code == 0
    assert hub.requests == []
    assert "nothing was sent" in said
    assert f"to hf:me/small at {hub.endpoint}, branch main, private, licence mit" in said
    listed = {line.split()[2]: line.split()[:2] for line in said.splitlines() if len(line.split()) == 3}
    weights = folder / "model.safetensors"
    assert int(listed["model.safetensors"][0].replace(",", "")) == weights.stat().st_size
    digest = subprocess.run(["sha256sum", weights], capture_output=True, text=True, check=True).stdout[:64]
    assert listed["model.safetensors"][1] == digest
    assert "stays here: notes.pkl" in said


def test_public_is_asked_for(push, hub, folder):
    assert push("--to", "hf:me/open", "--model", folder, "--apply", "--public")[0] == 0
    assert not hub.repos["me/open"].private
    code, said = push("--to", "hf:me/open", "--model", folder, "--apply")
    assert code == 2
    assert "public already" in said
    hub.opens = True
    code, said = push("--to", "hf:me/hidden", "--model", folder, "--apply")
    assert (code, "was made public" in said) == (2, True), said
    assert set(hub.repos["me/hidden"].files) == {".gitattributes"}


@pytest.mark.parametrize(
    ("fault", "words", "code"),
    [
        ({"/preupload/": [500] * 20}, "push again", 1),
        ({"/commit/": [502] * 20}, "push again", 1),
        ({"/commit/": [0] * 20}, "broke off", 1),
        ({"/lfs/": [0] * 20}, "broke off", 1),
        ({"/api/whoami-v2": [500] * 20}, "refused", 1),
        ({"/commit/": [403]}, "may it write?", 2),
        ({"/commit/": [400]}, "refused", 2),
    ],
)
def test_a_server_that_fails_is_one_line_and_leaves_no_half_commit(push, hub, folder, fault, words, code):
    hub.faults, hub.echo_token = fault, True
    got, said = push("--to", "hf:me/broken", "--model", folder, "--apply")
    assert got == code, said
    assert words in said.splitlines()[-1]
    repo = hub.repos.get("me/broken")
    assert repo is None or set(repo.files) == {".gitattributes"}
    hub.faults = {}
    assert push("--to", "hf:me/broken", "--model", folder, "--apply")[0] == 0
    assert "model.safetensors" in hub.repos["me/broken"].files


def test_a_wrong_token_another_owner_and_none(push, hub, folder, monkeypatch):
    arguments = ("--model", folder, "--apply", "--to")
    code, said = push(*arguments, "hf:other/small")
    assert (code, "may it write?" in said) == (2, True), said
    monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
    code, said = push(*arguments, "hf:me/small")
    assert (code, "refused" in said) == (2, True), said
    assert "hf_wrong" not in said
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    code, said = push(*arguments, "hf:me/small")
    assert (code, "HF_TOKEN is not set" in said) == (2, True), said
    monkeypatch.setattr("huggingface_hub.get_token", lambda: TOKEN)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.example")
    code, said = push(*arguments, "hf:me/small")
    assert (code, "in the clear" in said) == (2, True), said
    assert hub.repos == {}


@pytest.mark.parametrize(
    "to",
    [
        "small",
        "hf:small",
        "hf:me/small/more",
        "hf:/small",
        "hf:me/",
        "s3:me/small",
        "hf:me/a b",
        "hf:../up",
        "",
    ],
)
def test_a_name_that_is_none(push, hub, folder, to):
    code, said = push("--to", to, "--model", folder)
    assert code == 2
    assert len(said.splitlines()) == 1
    assert "owner/name" in said


def test_folders_that_do_not_go(push, hub, folder, tmp_path):
    import shutil

    def refused(change, words, *more):
        copy = tmp_path / f"copy{len(list(tmp_path.iterdir()))}"
        shutil.copytree(folder, copy)
        change(copy)
        code, said = push("--to", "hf:me/small", "--model", copy, *more)
        assert (code, len(said.splitlines())) == (2, 1), said
        assert words in said

    config = json.loads((folder / "config.json").read_text())
    named = json.dumps(config | {"_name_or_path": "/home/me/secret/model"})
    refused(lambda at: (at / "config.json").write_text(named), "_name_or_path: /home/me/secret/model")
    refused(lambda at: (at / "optimizer.pt").write_bytes(b"x"), "checkpoint, not an export")
    refused(lambda at: (at / "README.md").unlink(), "no README.md")
    refused(lambda at: (at / "README.md").write_text("# A model\n"), "LICENCE=apache-2.0")
    refused(lambda at: (at / "README.md").write_text("---\na: [\n---\n"), "metadata cannot be read")
    refused(lambda at: (at / "README.md").write_bytes(b"\xff\xfe"), "metadata cannot be read")
    refused(lambda at: (at / "config.json").write_text("{"), "cannot be read")
    refused(lambda at: (at / "model.safetensors").unlink(), "no model in")
    refused(lambda at: (at / "model.safetensors").write_bytes(b""), "is empty")
    refused(lambda at: None, "no name that hubs know", "--licence", "My Licence")
    refused(lambda at: None, "goes as it is, as qwen2", "--form", "gguf")
    code, said = push("--to", "hf:me/small", "--model", tmp_path / "missing")
    assert (code, "there is no folder" in said) == (2, True), said
    assert hub.requests == []


def test_a_model_of_a_profile_in_a_form_that_is_made_for_it(push, hub, trained, tmp_path, monkeypatch):
    import shutil

    run = FakeRun(tmp_path / "run").build()
    for node in ("dpo:train", "pretrain"):
        shutil.rmtree(run.nodes[node].path / "export")
        shutil.copytree(trained, run.nodes[node].path / "export")
    monkeypatch.setattr("tasks.inspect.artifacts.newest", lambda *_: run.nodes)
    monkeypatch.setattr("tasks.inspect.models.last_run", lambda *_: {})
    arguments = ("--to", "hf:me/demo", "--licence", "apache-2.0", "--profile", "demo")
    code, said = push(*arguments, "--form", "gguf", "--apply")
    assert code == 0, said
    files = hub.repos["me/demo"].files
    assert {"model-F16.gguf", "parity.json", "Modelfile", "README.md"} <= set(files)
    card = files["README.md"].decode()
    assert "library_name: gguf" in card
    assert "license: apache-2.0" in card
    assert "## Scores of dpo" in card
    assert "nothing to do" in push(*arguments, "--form", "gguf", "--apply")[1]
    code, said = push(*arguments, "--model", "base")
    assert code == 0
    assert "base as steel" in said
    code, said = push(*arguments, "--form", "onnx")
    assert (code, "there is no form 'onnx'" in said) == (2, True)
    code, said = push(*arguments, "--form", "qwen2_moe")
    assert (code, "leaves as qwen2" in said) == (2, True), said
    code, said = push(*arguments, "--model", "sft:none")
    assert (code, "no model 'sft:none'" in said) == (2, True), said


def test_the_export_of_the_stage_is_taken_if_it_is_of_this_model(tmp_path):
    run = FakeRun(tmp_path / "run").build()
    dpo = run.nodes["dpo:train"]
    of_dpo = {"identity": {"inputs": {"dpo:train": dpo.digest}}, "extra": {"model": "dpo"}}
    run.add("export:steel", {"export/config.json": {}}, **of_dpo)
    assert (
        pushing._of_the_stage(run.nodes, "steel", dpo.path / "export")
        == run.nodes["export:steel"].path / "export"
    )
    assert pushing._of_the_stage(run.nodes, "steel", run.nodes["pretrain"].path / "export") is None
    of_dpo["identity"]["inputs"]["dpo:train"] = "an older one"
    run.add("export:steel", {"export/config.json": {}}, **of_dpo)
    assert pushing._of_the_stage(run.nodes, "steel", dpo.path / "export") is None


@pytest.mark.slow
def test_no_token_in_a_process_that_logs_everything(folder, tmp_path):
    """As a user runs it, with the environment alone and all of the hub library's debug output."""
    with model_hub(TOKEN) as hub:
        environment = {
            **os.environ, "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": TOKEN, "HF_DEBUG": "1", "HF_HUB_VERBOSITY": "debug",
            "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(tmp_path),
        }  # fmt: skip
        environment.pop("HF_HUB_OFFLINE", None)
        command = [
            sys.executable,
            "-m",
            "flows.cli",
            "push",
            "--to",
            "hf:me/small",
            "--model",
            str(folder),
            "--apply",
        ]
        root = Path(__file__).parents[2]
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert "model.safetensors" in hub.repos["me/small"].files
        assert "About to commit" in done.stderr, "the library did tell what it does"
        assert TOKEN not in done.stdout + done.stderr
