"""flows.hand_over: which stages a run does itself."""

from __future__ import annotations

import pytest

from flows.hand_over import stages_here
from tasks.settings.config import DATA_STAGES, STAGES


@pytest.mark.parametrize(
    ("own", "training", "here"),
    [
        ("steel-local", "steel-local", STAGES),
        ("steel-local", "steel-gpu", DATA_STAGES),
        ("steel-gpu", "steel-gpu", STAGES),
        ("", "steel-gpu", STAGES),  # not started by a deployment of prefect.yaml
        ("steel-local", "", STAGES),
    ],
)
def test_a_run_keeps_what_belongs_to_its_pool(own, training, here):
    assert stages_here(STAGES, {"STEEL_POOL": own, "STEEL_TRAINING_POOL": training}) == tuple(here)
    assert stages_here(DATA_STAGES, {"STEEL_POOL": own, "STEEL_TRAINING_POOL": training}) == DATA_STAGES
