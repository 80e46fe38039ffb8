"""deployments/slurm: no Slurm here. Bash parses the scripts, and stand-ins of srun and scontrol show what they would start."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from flows.settings import ROOT

SCRIPTS = sorted((ROOT / "deployments" / "slurm").glob("*.sbatch"))


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_bash_parses_it_and_slurm_reads_its_options(script):
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    lines = script.read_text("utf-8").splitlines()
    assert lines[0] == "#!/bin/bash"
    options = [at for at, line in enumerate(lines) if line.startswith("#SBATCH")]
    first_command = next(at for at, line in enumerate(lines) if line.strip() and not line.startswith("#"))
    assert options
    assert max(options) < first_command, "sbatch reads no option behind the first command"
    assert all(re.fullmatch(r"#SBATCH --[a-z-]+(=\S+)?", lines[at]) for at in options)
    signal = next(lines[at] for at in options if "--signal" in lines[at])
    assert int(signal.rpartition("@")[2]) >= 300, "time for a checkpoint"


def started(
    tmp_path: Path, script: str, *arguments: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """The script as bash runs it, with a clone whose python, and programs of Slurm, say how they were called."""
    clone, programs = tmp_path / "clone", tmp_path / "bin"
    for name in (clone / ".venv" / "bin" / "python", programs / "srun"):
        name.parent.mkdir(parents=True, exist_ok=True)
        name.write_text('#!/bin/bash\necho "$(basename "$0") $*"\nenv | grep ^STEEL_ | sort\n')
        name.chmod(0o755)
    (programs / "scontrol").write_text('#!/bin/bash\nprintf "node1\\nnode2\\n"\n')
    (programs / "scontrol").chmod(0o755)
    environment = {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "STEEL_HOME": str(clone),
        "SLURM_JOB_ID": "77",
        "SLURM_NNODES": "2",
        "SLURM_JOB_NODELIST": "node[1-2]",
        **variables,
    }
    command = ["bash", ROOT / "deployments" / "slurm" / script, *arguments]
    return subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)


def test_a_training_starts_one_torchrun_a_node_that_meet_at_the_first(tmp_path):
    config = tmp_path / "CONFIG.json"
    config.write_text("{}")
    done = started(tmp_path, "training.sbatch", "CONFIG.json")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(
        "srun --kill-on-bad-exit=1 .venv/bin/python -m torch.distributed.run --nnodes 2 "
    )
    assert "--rdzv-id 77 --rdzv-backend c10d --rdzv-endpoint node1:29500" in done.stdout
    assert f"-m model.training.run {config}\n" in done.stdout
    assert started(tmp_path, "training.sbatch").returncode != 0
    assert started(tmp_path, "training.sbatch", "missing.json").returncode != 0


def test_a_worker_serves_the_pool_of_the_trainings_and_wants_its_servers(tmp_path):
    known = {
        "STEEL_PREFECT_ADDRESS": "http://login1:4200",
        "STEEL_MLFLOW_ADDRESS": "http://login1:5000",
        "STEEL_AUTH_FILE": "/home/me/auth",
    }
    done = started(tmp_path, "worker.sbatch", **known)
    assert done.stdout.startswith("python -m flows.alone worker\n"), done.stderr
    assert "STEEL_POOL=steel-gpu\n" in done.stdout
    assert "STEEL_TRAINING_POOL=steel-gpu\n" in done.stdout
    for name in known:
        less = {key: value for key, value in known.items() if key != name}
        missing = started(tmp_path, "worker.sbatch", **less)
        assert missing.returncode != 0
        assert name in missing.stderr
