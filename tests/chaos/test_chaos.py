"""make chaos without servers: what it draws, what it alters, whom it signals, what it says."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request

import psutil
import pytest

from tasks.settings.files import write_json
from tests.support.chaos import __main__ as chaos
from tests.support.chaos import faults
from tests.support.chaos.ground import STAGES, Ground, faked, no_clock
from tests.support.chaos.hub import CutHub
from tests.support.house import until


def test_every_kind_comes_once_before_one_comes_again():
    kinds = list(faults.FAULTS)
    drawn = [chaos._kind(n, 7, kinds) for n in range(1, 2 * len(kinds) + 1)]
    assert sorted(drawn[: len(kinds)]) == sorted(drawn[len(kinds) :]) == sorted(kinds)
    assert drawn != [chaos._kind(n, 8, kinds) for n in range(1, 2 * len(kinds) + 1)]


def test_a_later_start_goes_on_after_the_good_rounds(tmp_path):
    good = chaos.Result(1, "kill-flow", ["sft"], 1.0, "fork", differs=[], left_behind=[])
    bad = chaos.Result(2, "cancel", ["sft"], 1.0, "fork", differs=["sft:a"], left_behind=[])
    file = tmp_path / "chaos.json"
    assert chaos._kept(file, 3, ["kill-flow", "cancel"]) == []
    write_json(file, chaos._report(3, ["kill-flow", "cancel"], 9.0, [good, bad]))
    assert chaos._kept(file, 3, ["kill-flow", "cancel"]) == [good]
    for seed, kinds in ((4, ["kill-flow", "cancel"]), (3, ["cancel"])):
        with pytest.raises(SystemExit, match="another seed or other faults"):
            chaos._kept(file, seed, kinds)


@pytest.mark.parametrize("kind", faults.FAULTS)
def test_a_fault_finds_work_in_a_stage_that_it_needs(kind):
    fault = faults.FAULTS[kind]
    drawn = [chaos._without(fault, random.Random(n)) for n in range(50)]
    assert all(set(stages) & set(fault.stages) for stages in drawn)
    assert STAGES in drawn
    assert len(set(drawn)) > 3


def test_one_bit_is_flipped(tmp_path):
    path = tmp_path / "file"
    before = bytes(range(256))
    path.write_bytes(before)
    faults._flip(path, random.Random(1))
    after = path.read_bytes()
    changed = [a ^ b for a, b in zip(before, after, strict=True) if a != b]
    assert len(changed) == 1
    assert changed[0].bit_count() == 1


@pytest.fixture
def sleeper():
    """Starts a process with a state folder in its environment."""
    started = []

    def start(state):
        environment = {**os.environ, "STEEL_STATE": str(state)}
        started.append(
            subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], env=environment)
        )
        process = psutil.Process(started[-1].pid)
        until(process.environ, 20)  # the kernel shows it a moment after the program has begun
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_only_processes_of_its_own_are_signalled(tmp_path, sleeper):
    ground = Ground(tmp_path)
    it = faults.Round(ground, random.Random(0), follower=None, delay=0)
    other = sleeper(tmp_path / "another" / "state")
    with pytest.raises(faults.Missed):
        it.kill(other)
    assert other.status() != psutil.STATUS_ZOMBIE
    own = sleeper(ground.state.folder)
    assert it.kill(own).startswith("SIGKILL")
    assert own.wait(10) == -signal.SIGKILL


def test_what_sees_nothing_of_the_environment_is_known_by_who_started_it(tmp_path):
    """As ranks and the fork server are; whoever started them may be gone."""
    ground = Ground(tmp_path)
    environment = {**os.environ, "STEEL_STATE": str(ground.state.folder)}
    line = "env -i sleep 60 & echo $!; wait"
    with subprocess.Popen(
        ["bash", "-c", line], env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as above:
        below = psutil.Process(int(above.stdout.readline()))
        until(lambda: below.name() == "sleep", 20)
        assert ground.owns(below)
        above.kill()
        above.wait()
        until(lambda: not ground.owns(below), 20)
        ground.sessions.add(above.pid)
        assert ground.owns(below)
        assert below.pid in {process.pid for process in ground.mine()}
        assert not ground.owns(psutil.Process())
        below.kill()


def test_a_cut_hub_closes_connections_and_comes_back():
    with CutHub("a/b", {"x.txt": b"x" * 9000}) as hub:
        address = f"{hub.endpoint}/datasets/a/b/resolve/main/x.txt"
        assert len(urllib.request.urlopen(address).read()) == 9000
        hub.down.set()
        with pytest.raises((urllib.error.URLError, ConnectionError)):
            urllib.request.urlopen(address)
        hub.down.clear()
        assert len(urllib.request.urlopen(address).read()) == 9000


def _result(number, **fields):
    return chaos.Result(number, "kill-rank", ["pretrain"], 1.0, "fork", done="SIGKILL", **fields)


def test_the_verdict_is_that_of_the_worst_round():
    good = _result(1, exit=1, reruns=1, seconds_to_recover=30.0, differs=[], left_behind=[])
    report = chaos._report(0, ["kill-rank"], 60.0, [good])
    assert report["verdict"] == "equal"
    assert report["faults"]["kill-rank"]["median_seconds_to_recover"] == 30.0
    for bad in (
        _result(2, differs=["pretrain"], left_behind=[]),
        _result(2, differs=[], left_behind=["123 python"]),
        _result(2, error="RuntimeError: 5 reruns"),
    ):
        report = chaos._report(0, ["kill-rank"], 60.0, [good, bad])
        assert report["verdict"] == "not equal"
        assert report["faults"]["kill-rank"]["not_good"] == [2]
        assert "NOT" in bad.line(2)


def test_unknown_faults_are_refused():
    with pytest.raises(SystemExit, match="there is no fault 'kill-cat'"):
        chaos.main(["--faults", "kill-cat"])


@pytest.mark.skipif(bool(no_clock()), reason=no_clock())
@pytest.mark.parametrize("jump", ["+0", "-1h", "+30h"])
def test_under_the_faked_clock_a_sleep_is_as_long_as_it_says(tmp_path, jump):
    """libfaketime alone ends it in EINVAL: every wait of the servers and flows would fail."""
    (tmp_path / "clock").write_text(f"{jump}\n")
    code = "import time; a = time.monotonic(); time.sleep(0.3); print(time.monotonic() - a, time.time())"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **faked(tmp_path / "clock")}, capture_output=True, text=True, check=True
    )  # fmt: skip
    slept, now = map(float, done.stdout.split())
    assert 0.3 <= slept < 10
    assert now - time.time() == pytest.approx({"+0": 0, "-1h": -3600, "+30h": 108_000}[jump], abs=20)
