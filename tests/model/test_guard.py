"""The folder `kernels` and the package of that name that transformers probes for."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str, *path: Path) -> subprocess.CompletedProcess[str]:
    paths = [str(p) for p in (*path, ROOT)]
    start = f"import sys; sys.path[:0] = {paths!r}\n"
    return subprocess.run(
        [sys.executable, "-c", start + code], capture_output=True, text=True, cwd="/", timeout=120
    )


def installed(folder: Path, version: str) -> Path:
    """A folder that claims to hold the package `kernels`, as an installation's metadata does."""
    info = folder / f"kernels-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: kernels\nVersion: {version}\n")
    (info / "RECORD").write_text("kernels/__init__.py,,\n")
    (info / "top_level.txt").write_text("kernels\n")
    return folder


def test_our_folder_and_a_harmless_version_leave_transformers_alone(tmp_path):
    done = run(
        "import kernels; from transformers.utils import is_kernels_available; import model.steel\n"
        "assert not is_kernels_available(); assert not hasattr(kernels, '__version__'); print(kernels.__file__)",
        installed(tmp_path, "0.17.0"),
    )
    assert done.returncode == 0, done.stderr
    assert str(ROOT) in done.stdout


@pytest.mark.parametrize("version", ["0.18.2", "0.18.9"])
def test_a_version_that_transformers_would_use_is_refused_in_one_line(tmp_path, version):
    done = run("import model.steel", installed(tmp_path, version))
    assert done.returncode == 1
    assert f"kernels {version}" in done.stderr.splitlines()[-1]
    assert "pip uninstall kernels" in done.stderr.splitlines()[-1]
