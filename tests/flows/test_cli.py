"""The command line as a shell has it."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from flows.settings import ROOT


@pytest.mark.parametrize("command", [["sources", "--profile", "smoke"], ["sources", "--registry"]])
def test_a_reader_that_has_read_enough_is_no_error(command):
    reader, writer = os.pipe()
    os.close(reader)  # as `… | head -0`
    done = subprocess.run(
        [sys.executable, "-m", "flows.cli", *command],
        cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300, check=False,
    )  # fmt: skip
    os.close(writer)
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
