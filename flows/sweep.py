"""The flow `steel-ablation`: the same training many times, with one thing changed.

`steel-ablation/ffn` runs the profile's data stages (skipped when done), then trains every kind of
feed-forward layer with every seed (settings: `ablation` in the profile) and compares them.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.stages import MAX_BESIDE, walk
from tasks import dag
from tasks.ablation.ffn import node as ablation
from tasks.settings import profiles
from tasks.settings.config import ABLATION_STAGES
from tasks.settings.profiles import Overrides, ProfileName

Forced = Annotated[str, Field(pattern=rf"^({'|'.join(ABLATION_STAGES)})(:[\w.\-]+)?$")]


@flow(
    name="steel-ablation",
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_BESIDE),
    persist_result=False,
    log_prints=False,
)
def steel_ablation(
    profile: ProfileName = "demo",
    overrides: Overrides = Overrides(),  # noqa: B008  (frozen, and the UI wants a default)
    force: list[Forced] = [],  # noqa: B006  (read only)
) -> Any:
    """Compare the kinds of feed-forward layer on a profile's shards, skipping what is done.

    Args:
        profile: which file in deployments/profiles fills the configuration.
        overrides: values merged into the profile, mapping by mapping (`ablation`: kinds, seeds, steps).
        force: stages or nodes (`ablation:paper-s1`) to run again, once per flow run.
    """
    config = profiles.load(profile, overrides.model_dump(mode="json"))
    return walk(config, dag.build_ablation(config), ABLATION_STAGES, force, ablation.FOLDER)
