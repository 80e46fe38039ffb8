"""What make would do, without doing it."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def would_run(*request: str) -> str:
    return subprocess.run(
        ["make", "-n", *request], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout


def test_real_samples_reach_the_tests_by_an_absolute_path():
    assert f"STEEL_SAMPLES='{ROOT / 'samples'}' " in would_run("test-full", "SAMPLES=samples")
    assert "STEEL_SAMPLES" not in would_run("test-full")


def test_a_study_is_named_or_left_to_the_command_line():
    assert "--study 'ffn'" in would_run("ablation", "STUDY=ffn")
    assert "--study" not in would_run("ablation")


def test_down_cancels_what_waits_on_request_only():
    assert "--cancel" in would_run("down", "CANCEL=1")
    assert "--cancel" not in would_run("down") + would_run("down", "CANCEL=0")


@pytest.mark.parametrize("target", ["setup", "test", "test-full", "run", "check"])
def test_peers_are_installed_on_request_only(target):
    assert "requirements-peers" in would_run("peers")
    assert "requirements-peers" not in would_run(target)


def test_extras_are_pinned_and_no_part_of_what_setup_installs():
    setup = (ROOT / "deployments" / "setup.sh").read_text("utf-8") + (ROOT / "requirements.lock").read_text()
    for name in ("requirements-gpu.txt", "requirements-peers.txt", "requirements-weights.txt"):
        lines = [line.partition("#")[0].strip() for line in (ROOT / name).read_text("utf-8").splitlines()]
        wanted = [line for line in lines if line]
        assert wanted
        for line in wanted:
            package, pin, version = line.partition(">=" if ">=" in line else "==")
            assert pin, line
            assert version, line
            assert package not in setup


def test_a_plan_asks_for_its_cost_only_where_gpus_are_named():
    assert "--gpus '2x8xH100'" in would_run("plan", "GPUS=2x8xH100", "PROFILE=steel-1b")
    assert "--gpus" not in would_run("plan", "PROFILE=steel-1b")
    assert "--gpus" not in would_run("run", "GPUS=8xH100")


def test_a_push_is_sent_on_request_only():
    asked = would_run("push", "TO=hf:me/small", "GO=0", "PUBLIC=no")
    assert "--to 'hf:me/small'" in asked
    assert not any(option in asked for option in ("--apply", "--public", "--form", "--licence"))
    asked = would_run("push", "TO=hf:me/small", "GO=1", "PUBLIC=1", "FORM=gguf", "LICENCE=mit")
    assert all(option in asked for option in ("--apply", "--public", "--form 'gguf'", "--licence 'mit'"))
