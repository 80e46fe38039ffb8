"""The list of licences is that of the lock file."""

from __future__ import annotations

from importlib import metadata

import pytest

from tests.support import licences


def test_the_committed_page_is_the_generated_one():
    installed = {dist.name.lower().replace("_", "-") for dist in metadata.distributions()}
    pins = dict(licences.pinned(licences.LOCK.read_text("utf-8")))
    if missing := sorted(name for name in pins if name.lower().replace("_", "-") not in installed):
        pytest.skip(f"another platform than the lock file's: {', '.join(missing)} not installed")
    assert licences.PAGE.read_text("utf-8") == licences.page(), "python -m tests.support.licences"


def test_pins_are_read():
    text = "# made by hand\nkenlm==0.3.0\nuvicorn[standard]==0.39.0 ; python_version > '3'\n    # via x\n"
    assert list(licences.pinned(text)) == [("kenlm", "0.3.0"), ("uvicorn", "0.39.0")]
