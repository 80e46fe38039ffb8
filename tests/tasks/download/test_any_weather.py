"""Whatever mixture of faults a server shows, a file is whole at the end or not there at all."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tasks.download.fetch import Fetcher
from tasks.download.huggingface import listing
from tasks.settings.errors import NodeError
from tests.support.downloads import content, no_sleep, part
from tests.support.faulty_hub import Faults, FaultyHub

BODY = random.Random(2).randbytes(150_000)
NAME = "a.parquet"

faults = st.builds(
    lambda cuts, wrong, status, no_ranges: Faults(
        cut={NAME: cuts}, wrong={NAME: wrong}, status={NAME: status}, no_ranges=no_ranges
    ),
    st.lists(st.integers(0, len(BODY)), max_size=6),
    st.integers(0, 4),
    st.lists(st.sampled_from([429, 500, 503]), max_size=4),
    st.booleans(),
)
begun = st.one_of(
    st.none(),
    st.integers(0, len(BODY)).map(lambda n: BODY[:n]),
    st.binary(max_size=2000),
    st.just(BODY + b"and more"),
)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(faults, begun)
def test_whole_or_not_at_all(faults, begun):
    with tempfile.TemporaryDirectory() as folder, FaultyHub("demo/x", {NAME: BODY}, faults=faults) as hub:
        out = Path(folder)
        if begun is not None:
            part(out, NAME, BODY).write_bytes(begun)
        found = listing(hub.endpoint, "demo/x", ["**"], sleep=no_sleep)
        for _ in range(3):  # faults are used up: a node that is run again gets there
            try:
                Fetcher(sleep=no_sleep).fetch("demo/x", found, out)
                break
            except NodeError:
                assert not (out / NAME).exists()
        assert content(out) == {NAME: BODY}
