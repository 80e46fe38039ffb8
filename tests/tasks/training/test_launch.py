"""tasks.training.launch: a child process is followed, stopped and cleaned up as promised.

The children here are little scripts that behave like torchrun and its ranks; the real engine is
trained through `launch` in tests/training and by the end-to-end test.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from model.training import now
from tasks.settings.config import Runtime
from tasks.settings.errors import NodeError
from tasks.settings.paths import ROOT
from tasks.stage.node import Context
from tasks.training import launch
from tasks.training.launch import Stopped, Tail, supervise
from tests.support.tiny import context


def run(ctx: Context, script: str, *arguments: str) -> Tail:
    tail = Tail(ctx, ctx.out / launch.METRICS, 10)
    command = [sys.executable, "-c", textwrap.dedent(script), str(ctx.out), *arguments]
    supervise(ctx, launch.program(command, launch.environment(1)), tail)
    return tail


def trained(ctx: Context) -> list:
    """The metrics that the trainer wrote; what the machine was at is left out."""
    return [
        (step, values) for step, values in ctx.track.seen if not all("system/" in name for name in values)
    ]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(launch, "POLL_SECONDS", 0.05)
    monkeypatch.setattr(launch, "CARE_SECONDS", 0.1)
    monkeypatch.setattr(launch, "LOOK_SECONDS", 0.05)


TRAINS_UNTIL_TERM = """
    import json, pathlib, signal, sys, time
    out = pathlib.Path(sys.argv[1])
    asked = []
    signal.signal(signal.SIGTERM, lambda *a: asked.append(1))
    step = 0
    while not asked:
        step += 1
        with open(out / "metrics.jsonl", "a") as f: f.write(json.dumps({"step": step, "loss": 1.0}) + "\\n")
        time.sleep(0.02)
    (out / "checkpoint").write_text(str(step))
    sys.exit(75)
"""


def test_a_run_that_ends_well_tells_every_metric_and_logs_to_a_file(tmp_path):
    seen = []
    ctx = context(tmp_path, progress=lambda share, text: seen.append((share, text)))
    run(
        ctx,
        """
        import json, pathlib, sys
        print("hello from the trainer")
        with open(pathlib.Path(sys.argv[1]) / "metrics.jsonl", "w") as f:
            for step in (5, 10):
                f.write(json.dumps({"step": step, "loss": 2.5, "val": {"zhihu": 3.0}, "note": "x"}) + "\\n")
        """,
    )
    assert trained(ctx) == [(5, {"loss": 2.5, "val/zhihu": 3.0}), (10, {"loss": 2.5, "val/zhihu": 3.0})]
    assert seen[-1] == (1.0, "step 10 of 10, loss 2.500")
    assert "hello from the trainer" in (tmp_path / "train.log").read_text()


def test_a_failure_shows_the_end_of_this_try_only(tmp_path):
    (tmp_path / "train.log").write_text("an earlier try\n")
    with pytest.raises(NodeError) as error:
        run(context(tmp_path), "import sys; print('CUDA is on fire'); sys.exit(3)")
    assert not isinstance(error.value, Stopped)
    assert "exit code 3" in str(error.value)
    assert "CUDA is on fire" in str(error.value)
    assert "an earlier try" not in str(error.value)


def test_a_killed_trainer_is_named_by_its_signal(tmp_path):
    with pytest.raises(NodeError, match="signal SIGKILL"):
        run(context(tmp_path), "import os; os.kill(os.getpid(), 9)")


@pytest.mark.parametrize(
    "script", ["import sys; sys.exit(75)", "import sys; print('  exitcode  : 75 (pid: 12)'); sys.exit(1)"]
)
def test_a_stop_at_a_checkpoint_is_told_apart(tmp_path, script):
    with pytest.raises(Stopped, match="stopped at a checkpoint"):
        run(context(tmp_path), script)


def test_should_stop_lets_the_trainer_save(tmp_path):
    ctx = context(tmp_path, should_stop=lambda: (tmp_path / "metrics.jsonl").exists())
    with pytest.raises(Stopped, match="cancelled"):
        run(ctx, TRAINS_UNTIL_TERM)
    saved = int((tmp_path / "checkpoint").read_text())
    assert trained(ctx)[-1][0] == saved  # the last steps before the stop are told as well


def test_what_the_machine_is_at_is_told_by_step(tmp_path):
    ctx = context(tmp_path, should_stop=lambda: (tmp_path / "metrics.jsonl").exists())
    with pytest.raises(Stopped):
        run(ctx, TRAINS_UNTIL_TERM)
    seen = [(step, values) for step, values in ctx.track.seen if "system/training_memory_megabytes" in values]
    assert seen
    assert [step for step, _ in seen] == sorted(step for step, _ in seen)
    assert 0 < seen[-1][1]["system/system_memory_usage_percentage"] < 100


def test_an_interruption_lets_the_trainer_save_and_goes_on_upwards(tmp_path):
    class Interruption(BaseException):
        pass

    def stop():
        if (tmp_path / "metrics.jsonl").exists():
            raise Interruption
        return False

    with pytest.raises(Interruption):
        run(context(tmp_path, should_stop=stop), TRAINS_UNTIL_TERM)
    assert (tmp_path / "checkpoint").exists()


def test_a_trainer_that_does_not_stop_is_killed_with_its_ranks(tmp_path):
    script = """
        import pathlib, signal, subprocess, sys, time
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (pathlib.Path(sys.argv[1]) / "pid").write_text(str(rank.pid))
        time.sleep(60)
    """
    ctx = context(tmp_path, should_stop=(tmp_path / "pid").exists, runtime=Runtime(grace_seconds=0.5))
    begun = time.monotonic()
    with pytest.raises(Stopped):
        run(ctx, script)
    assert time.monotonic() - begun < 10
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_ranks_do_not_outlive_a_torchrun_that_was_killed(tmp_path):
    script = """
        import os, pathlib, signal, subprocess, sys, time
        rank = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], start_new_session=True)
        (pathlib.Path(sys.argv[1]) / "pid").write_text(str(rank.pid))
        time.sleep(0.6)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    with pytest.raises(NodeError, match="SIGKILL"):
        run(context(tmp_path), script)
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG is Linux's")
def test_kill_9_of_the_flow_process_still_saves_and_keeps_the_folder_locked(tmp_path):
    slow_save = TRAINS_UNTIL_TERM.replace('(out / "checkpoint', 'time.sleep(1.5); (out / "checkpoint')
    (tmp_path / "trainer.py").write_text(textwrap.dedent(slow_save))
    flow = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from tests.support.tiny import context
from tasks.training import launch
out = Path({str(tmp_path)!r})
ctx = context(out)
command = [sys.executable, str(out / "trainer.py"), str(out)]
launch.supervise(ctx, launch.program(command, launch.environment(1)), launch.Tail(ctx, out / "metrics.jsonl", None))
"""
    process = subprocess.Popen([sys.executable, "-c", flow], start_new_session=True)
    _until((tmp_path / "metrics.jsonl").exists)
    process.kill()
    process.wait()
    # a new try starts at once: it has to wait until the old trainer has saved
    run(
        context(tmp_path),
        "import pathlib, sys; assert (pathlib.Path(sys.argv[1]) / 'checkpoint').exists()",
    )


def test_a_folder_that_stays_locked_is_one_clear_line(tmp_path, monkeypatch):
    monkeypatch.setattr(launch, "LOCK_SECONDS", 0.3)
    ctx = context(tmp_path, should_stop=(tmp_path / "done").exists)
    thread = threading.Thread(target=lambda: pytest.raises(Stopped, run, ctx, TRAINS_UNTIL_TERM))
    thread.start()
    _until((tmp_path / "metrics.jsonl").exists)
    with pytest.raises(NodeError, match="still writes to"):
        run(context(tmp_path), "pass")
    (tmp_path / "done").touch()
    thread.join(20)


def test_steps_trained_again_after_a_resume_are_told_once(tmp_path):
    ctx = context(tmp_path)
    path = tmp_path / "metrics.jsonl"
    lines = [json.dumps({"step": s, "loss": float(s)}) + "\n" for s in range(1, 6)]
    tail = Tail(ctx, path, 5)
    path.write_text("".join(lines[:4]) + lines[4][:6])  # the last line is not whole yet
    tail.read()
    assert [step for step, _ in ctx.track.seen] == [1, 2, 3, 4]
    path.write_text("".join(lines[:2]))  # cut back to a checkpoint
    tail.read()
    path.write_text("".join(lines))
    tail.read()
    assert [step for step, _ in ctx.track.seen] == [1, 2, 3, 4, 5]


def test_ranks_get_threads_and_root_but_no_settings_of_servers(monkeypatch):
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", "secret")
    monkeypatch.setenv("HF_TOKEN", "secret")
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    env = launch.environment(3)
    assert env["OMP_NUM_THREADS"] == "3"
    assert env["PYTHONPATH"] == str(ROOT)
    assert env["NCCL_DEBUG"] == "INFO"
    assert "secret" not in env.values()


def test_the_log_without_torchruns_own_last_words():
    lines = [
        "the cause",
        "Traceback (most recent call last):",
        '  File "x/torch/distributed/run.py", line 1',
        "x",
    ]
    assert launch._telling(lines) == ["the cause"]


def _until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


@pytest.mark.parametrize(
    "torn",
    [
        '{"step": 2, "x": {"知'.encode()[:-1],
        b'{"step": 2, "lo',
        b"\0" * 64,
        b'{"step"\0\0',
        b"17",
        b"[]",
        b'{"loss": 1}',
    ],
)
def test_a_torn_line_of_an_earlier_try_is_skipped_and_told(tmp_path, caplog, torn):
    ctx = context(tmp_path)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1.0}\n' + torn + b'\n{"step": 2, "loss": 2.0}\n')
    tail = Tail(ctx, path, 2)
    with caplog.at_level("WARNING"):
        tail.read()
    assert [step for step, _ in ctx.track.seen] == [1, 2]
    assert "torn line" in caplog.text


def test_before_the_first_step_it_says_that_the_ranks_start(tmp_path):
    seen = []
    ctx = context(tmp_path, progress=lambda share, text: seen.append((share, text)))
    tail = Tail(ctx, tmp_path / launch.METRICS, None)
    tail.began = "2 ranks start"
    tail.read()
    (tmp_path / launch.METRICS).write_text(
        '{"step": 3, "steps": 4, "pairs_per_s": 8.0, "eta_s": 5.0, "x": [1, 2]}\n'
    )
    tail.read()
    assert seen == [(0.0, "2 ranks start"), (0.75, "step 3 of 4, 8 pairs/s, ETA 0:00:05")]
    assert ctx.track.seen == [(3, {"pairs_per_s": 8.0})]  # neither the length nor the ETA, nor a list


def test_what_a_killed_training_was_at_is_not_shown_again(tmp_path):
    seen = []
    (tmp_path / now.FILE).write_text("validation: 3 of 9 batches")
    run(context(tmp_path, progress=lambda share, text: seen.append(text)), "pass")
    assert seen
    assert not any("validation" in text for text in seen)


def test_between_two_steps_it_says_what_the_engine_is_at(tmp_path):
    seen = []
    ctx = context(tmp_path, progress=lambda share, text: seen.append((share, text)))
    tail = Tail(ctx, tmp_path / launch.METRICS, 4)
    doing = tmp_path / now.FILE
    doing.write_text("reads the model")
    tail.read()
    (tmp_path / launch.METRICS).write_text('{"step": 2, "loss": 1.5}\n')
    doing.write_text("validation: 3 of 9 batches")
    tail.read()
    tail.read()  # nothing new: nothing said
    doing.unlink()
    tail.read()
    assert seen == [
        (0.0, "reads the model"),
        (0.5, "step 2 of 4, loss 1.500; validation: 3 of 9 batches"),
        (0.5, "step 2 of 4, loss 1.500"),
    ]
