"""The smoke profile through a real Prefect server, worker and MLflow, driven as a user drives it.

One story in several chapters: the tests of this file share servers and artifacts and run in order.
State, artifacts and ports are of their own: a clone whose servers run is not disturbed.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest

from flows.settings import ROOT
from tasks.settings.config import STAGES
from tests.support.house import House, until
from tests.support.server_logs import errors

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def house(tmp_path_factory: pytest.TempPathFactory):
    house = House(tmp_path_factory.mktemp("house"))
    yield house
    done = house.steel("down")
    assert done.returncode == 0, done.stderr
    assert house.steel("status").returncode == 1


def test_one_command_runs_every_stage(house):
    done = house.run()
    assert done.returncode == 0, done.stdout + done.stderr
    assert house.states() == dict.fromkeys(STAGES, "Completed")
    assert re.search(r"Prefect +http://127\.0\.0\.1:\d+/runs/flow-run/", done.stdout)
    assert re.search(r"MLflow +http://127\.0\.0\.1:\d+/#/experiments/\d+/runs/", done.stdout)
    assert f"report   {house.artifacts}/latest/smoke/report.html" in done.stdout


def test_the_summary_has_what_others_rely_on(house):
    summary = house.latest("summary.json")
    names = {"stages", "benchmarks", "sft_ablation", "dpo", "rl", "exports", "funnel", "losses"}
    assert names <= set(summary)
    measured = {"accuracy_before", "accuracy_after", "n", "p_value"}
    assert measured <= set(summary["rl"])
    assert {*measured, "reward_accuracy"} <= set(summary["dpo"])
    assert [stage["name"] for stage in summary["stages"]] == list(STAGES)
    models = {row["model"] for row in summary["benchmarks"]}
    assert {"untrained", "base", "sft:plain", "sft:choice", "dpo"} <= models
    for row in summary["benchmarks"]:
        assert 0 <= row["ci95"][0] <= row["accuracy"] <= row["ci95"][1] <= 1
        assert row["n"] > 0
        assert re.fullmatch("[0-9a-f]{64}", row["protocol_hash"]), row
    for row in summary["funnel"]:
        lost = sum(row["dropped"].values())
        quarantined = row["quarantined"]
        if isinstance(quarantined, dict):
            quarantined = sum(quarantined.values())
        assert row["records_in"] == row["kept"] + lost + quarantined
    folder = house.artifacts / "latest" / "smoke"
    assert {p.name for p in (folder / "models").iterdir()} == {"base", "sft", "dpo", "rl"}
    for place in ("models/base", *(export["path"] for export in summary["exports"])):
        assert (folder / place / "config.json").is_file(), place
    first, last = summary["losses"]["pretrain"][0], summary["losses"]["pretrain"][-1]
    assert last[1] < first[1]
    assert (house.artifacts / "latest" / "smoke" / "report.html").stat().st_size > 50_000


def test_a_second_run_finds_everything_done(house):
    before = house.latest("run.json")["flow_run_id"]
    assert house.run().returncode == 0
    assert house.states() == dict.fromkeys(STAGES, "Cached")
    assert house.latest("run.json")["flow_run_id"] != before
    assert [s["state"] for s in house.latest("summary.json")["stages"]] == ["Cached"] * len(STAGES)


def test_what_is_missing_or_altered_is_made_again_and_what_follows_is_not(house):
    altered = house.folder_of("convert", "skypile") / "records.jsonl"
    content = altered.read_bytes()
    altered.write_bytes(content[:-100])
    gone = house.folder_of("clean", "baidu_qa")
    files = sorted(p.relative_to(gone) for p in gone.rglob("*"))
    for path in gone.rglob("*"):
        if path.is_file():
            path.unlink()
    assert house.run("--until", "tokenize").returncode == 0
    assert altered.read_bytes() == content
    assert sorted(p.relative_to(gone) for p in gone.rglob("*")) == files
    remade = {
        name
        for stage in ("download", "convert", "clean", "tokenize")
        for name, node in house.nodes(stage).items()
        if node["state"] != "Cached"
    }
    assert remade == {"convert:skypile", "clean:baidu_qa"}
    assert "changed size" in house.nodes("convert")["convert:skypile"]["reason"]


def test_a_stage_that_fails_is_shown_and_the_way_back_is_short(house):
    done = house.run("--set", "convert.max_quarantined_share=0")
    assert done.returncode == 1
    assert house.states() == {"download": "Cached", "convert": "Failed"}
    assert "the end of the run's log" in done.stdout
    assert "quarantine" in done.stdout
    assert "prefect flow-run retry" in done.stdout
    assert house.run().returncode == 0
    assert house.states() == dict.fromkeys(STAGES, "Cached")


def test_kill_9_of_the_training_and_a_retry_goes_on_from_the_checkpoint(house):
    """The very flow run that crashed is retried, as with the button in the UI."""
    longer = ["--set", "pretrain.steps=240 pretrain.save_every=20", "--until", "pretrain"]
    command = [sys.executable, "-m", "flows.cli", "run", *house.request(*longer)]
    follower = subprocess.Popen(command, cwd=ROOT, env=house.environment, stdout=subprocess.PIPE, text=True)
    try:
        # a whole checkpoint, and some way beyond it
        until(lambda: list(house.artifacts.glob("pretrain/*.partial/checkpoints/step-[0-9]*[0-9]")), 300)
        time.sleep(1)
        for process in house.ranks():
            process.kill()
        said, _ = follower.communicate(timeout=300)
    finally:
        follower.kill()
    print(said)
    assert follower.returncode == 1
    assert house.states()["pretrain"] == "Failed"
    assert "the training failed" in said
    crashed = house.latest("run.json")["flow_run_id"]

    assert house.shell(f"prefect flow-run retry {crashed}").returncode == 0
    watched = house.steel("watch", crashed, timeout=600)
    print(watched.stdout)
    assert watched.returncode == 0
    assert house.latest("run.json")["flow_run_id"] == crashed
    assert house.states() == {**dict.fromkeys(STAGES[:4], "Cached"), "pretrain": "Completed"}
    made = house.folder_of("pretrain", "pretrain")
    steps = [json.loads(line)["step"] for line in (made / "metrics.jsonl").open() if '"loss"' in line]
    assert steps == sorted(set(steps))  # one curve
    assert steps[-1] == 240
    assert (made / "checkpoints" / "step-000240").is_dir()  # another training can go on from it
    assert re.search(r"resum", (made / "train.log").read_text("utf-8"), re.IGNORECASE)


def test_the_plain_prefect_command_runs_one_stage_again(house):
    parameters = f"-p profile=smoke -p 'overrides={json.dumps(house.overrides)}'"
    assert house.shell(f"prefect deployment run steel/tokenize {parameters} --watch").returncode == 0
    assert house.states() == {**dict.fromkeys(STAGES[:3], "Cached"), "tokenize": "Completed"}
    assert {node["state"] for node in house.nodes("tokenize").values()} == {"Completed"}


def test_the_plain_mlflow_command_finds_its_server(house):
    done = house.shell("mlflow experiments search")
    assert done.returncode == 0
    assert "steel" in done.stdout


def test_a_typo_is_refused_before_anything_runs(house):
    before = house.latest("run.json")
    typo = json.dumps({"pretrain": {"step": 5}})
    done = house.shell(f"prefect deployment run steel/full-pipeline -p profile=smoke -p 'overrides={typo}'")
    assert done.returncode != 0
    assert "step" in done.stdout + done.stderr
    assert house.run("--set", "pretrain.step=5").returncode == 2
    assert house.latest("run.json") == before


def test_servers_that_run_are_left_alone_and_a_dead_one_is_started_again(house):
    processes = json.loads((house.folder / "state" / "processes.json").read_text("utf-8"))
    assert house.steel("up").returncode == 0
    assert json.loads((house.folder / "state" / "processes.json").read_text("utf-8")) == processes
    os.kill(processes["worker"]["pid"], signal.SIGKILL)
    assert house.run("--until", "download").returncode == 0
    assert house.states() == {"download": "Cached"}


def test_the_servers_logged_no_error(house):
    """After runs, failures, a kill, a retry and a restart: what the servers complain about, nobody sees."""
    assert errors(house.folder / "state") == []


@pytest.mark.slow
def test_the_ffn_ablation_takes_the_data_as_it_is_and_leaves_a_table(house):
    small = "ablation.kinds=[token,paper] ablation.seeds=[1,2] ablation.steps=4 pretrain.eval_every=2"
    done = house.steel("ablation", *house.request("--set", small), timeout=900)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = house.artifacts / "latest" / "smoke" / "ffn-ablation"
    table = json.loads((folder / "ffn-ablation.json").read_text("utf-8"))
    assert [(r["kind"], r["causal"]) for r in table["kinds"]] == [("token", True), ("paper", False)]
    assert table["kinds"][0]["parameters"] == table["kinds"][1]["parameters"]
    assert table["kinds"][0]["largest_difference"] < 1e-4 < table["kinds"][1]["largest_difference"]
    assert "svg+xml" in (folder / "ffn-ablation.html").read_text("utf-8")
    stages = {s["name"]: s["state"] for s in json.loads((folder / "run.json").read_text("utf-8"))["stages"]}
    assert stages == {**dict.fromkeys(STAGES[:4], "Cached"), "ablation": "Completed"}
