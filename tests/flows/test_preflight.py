"""flows.preflight and the command line: what is wrong is one clear line, and nothing starts."""

from __future__ import annotations

import subprocess
import sys

import pytest

from flows import cli, preflight
from flows.preflight import Request, Wrong, assignments, folder_overrides
from flows.settings import ROOT


@pytest.fixture(autouse=True)
def nothing_starts(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a server was started")

    monkeypatch.setattr("flows.servers.up", refuse)


def complaint(capsys, *arguments: str) -> str:
    assert cli.main(["run", *arguments]) == 2
    return capsys.readouterr().err.strip()


def test_the_default_request_is_in_order():
    assert preflight.run(Request()).profile == "demo"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--profile", "dmeo"], "there is no profile 'dmeo'"),
        (["--until", "pretrian"], "there is no stage 'pretrian'"),
        (["--force", "stf"], "there is no stage 'stf'"),
        (["--force", "clean:zhihu", "--force", "stf"], "there is no stage 'stf'"),
        (["--set", "pretrain.step=5"], "there is no setting 'pretrain.step'"),
        (["--set", "pretrain.steps=-1"], "pretrain.steps: Input should be greater than 0"),
        (["--set", "steps"], "SET wants key=value pairs"),
        (["--profile", "samples"], "needs SOURCES=<folder>"),
        (["--profile", "samples", "--tokenizer", "/no/such"], "TOKENIZER=/no/such: there is no such folder"),
    ],
)
def test_one_clear_line(capsys, arguments, said):
    text = complaint(capsys, *arguments)
    assert said in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (None, "model.pretrained: there is no folder"),
        ("", "config.json cannot be read"),
        ("{", "config.json cannot be read"),
        ("[1]", "config.json must hold an object"),
        ('{"model_type": "qwen9"}', "does not recognize this architecture"),
    ],
)
def test_a_model_folder_that_cannot_be_used_is_one_clear_line(capsys, tmp_path, config, said):
    folder = tmp_path / "model"
    if config is not None:
        folder.mkdir()
        (folder / "config.json").write_text(config)
    text = complaint(capsys, "--profile", "smollm2", "--set", f"model.pretrained={folder}")
    assert said in text
    assert "Traceback" not in text


def test_two_mistakes_are_both_told(capsys):
    text = complaint(capsys, "--until", "nowhere", "--force", "nothing")
    assert "nowhere" in text
    assert "nothing" in text


def test_a_folder_without_the_data_set_names_it(capsys, tmp_path):
    (tmp_path / "skypile").mkdir()
    text = complaint(capsys, "--profile", "samples", "--sources", str(tmp_path))
    assert "no 'wanjuan' in it" in text
    assert "no 'skypile' in it" not in text


def test_the_wrong_python_is_one_line():
    for version in ((3, 11), (3, 12)):
        assert list(preflight.check_python(version)) == []
    (line,) = preflight.check_python((3, 13))
    assert "this is 3.13" in line


def test_set_takes_dotted_keys_and_yaml_values():
    assert assignments("pretrain.steps=200 runtime.nproc=1") == {
        "pretrain": {"steps": 200},
        "runtime": {"nproc": 1},
    }
    assert assignments('model={"ffn": "dense"} sft.variants.exp1=null') == {
        "model": {"ffn": "dense"},
        "sft": {"variants": {"exp1": None}},
    }
    assert assignments("report.generations=[a b, c] seed=7") == {
        "report": {"generations": ["a b", "c"]},
        "seed": 7,
    }
    assert assignments("  ") == {}
    with pytest.raises(Wrong, match="twice"):
        assignments("seed=1 seed.x=2")
    with pytest.raises(Wrong, match="is not a value"):
        assignments("seed=[1")


def test_folders_are_taken_from_where_the_user_stands(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert folder_overrides({"sources": "data", "tokenizer": None}) == {
        "runtime": {"folders": {"sources": str(tmp_path / "data")}}
    }


def test_only_what_was_asked_for_becomes_a_parameter():
    assert Request().parameters() == {"profile": "demo", "until": "report"}
    assert Request(force=["sft"]).parameters()["force"] == ["sft"]


def test_help_needs_neither_servers_nor_prefect():
    script = (
        "import sys; from flows import cli\n"
        "try: cli.main(['run', '--help'])\n"
        "except SystemExit: print('prefect' in sys.modules, 'torch' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "False False"
    assert "--force" in done.stdout


def test_gpus_of_another_machine():
    read = {"0": 0, "8": 8, "8xH100": 8, "8XH100": 8, "4x4090": 4, "4090": 1}
    assert {text: preflight.machines(text) for text in read} == {text: (1, n) for text, n in read.items()}
    assert preflight.machines("") == (1, None)
    assert preflight.machines("2x8xA100-80") == (2, 8)
    with pytest.raises(Wrong, match="known are"):
        preflight.machines("8xH1000")
    with pytest.raises(Wrong, match="GPUs|evenly"):
        preflight.run(Request("smoke", overrides={"runtime": {"nproc": None}}, gpus=4))
    assert preflight.run(Request("smoke", gpus=8)).profile == "smoke"
    with pytest.raises(Wrong, match="evenly by 10 ranks"):
        preflight.run(Request("smoke", gpus=8, nodes=5))


def test_names_with_spaces_can_be_forced():
    stages = ("sft", "convert", "clean")
    assert preflight.forced(["sft convert:a b, clean"], stages) == ["sft", "convert:a b", "clean"]
    assert preflight.forced(["convert:网页 2024", "clean,sft"], stages) == [
        "convert:网页 2024",
        "clean",
        "sft",
    ]
    assert preflight.forced(["sft:exp4 sft:exp5"], stages) == ["sft:exp4", "sft:exp5"]


@pytest.mark.parametrize(
    "overrides",
    [
        {"tokenize": {"weights": {"skypyle": 2.0}}},
        {"sources": {"skypile": {"reader": "skypyle"}}},
        {"sources": {"skypile": {"options": {"nothing": 1}}}},
        {"runtime": {"nproc": 5}},
        {"runtime": {"device": "cuda"}},
        {"tokenize": {"block_size": 4096}, "model": {"max_position_embeddings": 256}},
    ],
)
def test_the_graph_and_the_machine_are_asked_too(overrides):
    with pytest.raises(Wrong):
        preflight.run(Request("smoke", overrides=overrides, gpus=0))


def own_data(tmp_path, files: dict[str, str]) -> dict:
    """Overrides with one local source `mine` that holds these files."""
    (tmp_path / "mine").mkdir()
    for name, text in files.items():
        (tmp_path / "mine" / name).write_text(text, "utf-8")
    source = {"dataset": "mine", "files": ["*"], "reader": "text"}
    return {"sources": {"mine": source}, "runtime": {"folders": {"sources": str(tmp_path)}}}


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({"a.jsonl": '{"content": "你好"}\n' * 30}, "missing field (text; there are: content)"),
        ({"a.jsonl": "not JSON\n" * 30}, "none of its first 20 records"),
        ({"a.pdf": "%PDF"}, "none of the 1 files"),
    ],
)
def test_the_first_records_of_local_sources_are_read(tmp_path, files, words):
    with pytest.raises(Wrong) as error:
        preflight.run(Request("smoke", overrides=own_data(tmp_path, files)))
    assert words in str(error.value)


def test_files_that_no_reader_reads_are_named_before_the_run(tmp_path):
    overrides = own_data(tmp_path, {"a.jsonl": '{"text": "你好"}\n', "b.txt": "你好", "c.pdf": "%PDF"})
    request = Request("smoke", overrides=overrides)
    config = preflight.run(request)
    assert [line for line in preflight.warnings(request, config) if "c.pdf" in line]
    assert not [line for line in preflight.warnings(request, config) if "b.txt" in line]
