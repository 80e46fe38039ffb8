"""The flow `steel`: the whole pipeline, and each stage of it.

    download → convert → clean → tokenize → pretrain → sft → dpo → rl → evaluate → export → report

The nodes inside the stages are declared in tasks/dag.py and walked by flows/stages.py. Deployments of
this flow are in prefect.yaml.
"""

from __future__ import annotations

from typing import Annotated, Any

from prefect import flow
from prefect.runtime import flow_run
from prefect.states import Completed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.hand_over import hand_over, stages_here
from flows.run_names import run_name
from flows.spec import PIPELINE
from flows.stages import MAX_BESIDE, walk
from tasks.settings import profiles
from tasks.settings.config import STAGES, StageName
from tasks.settings.profiles import Overrides, ProfileName
from tasks.stage.names import stage_of

Forced = Annotated[str, Field(pattern=rf"^({'|'.join(STAGES)})(:[^:#/]+)?$")]


@flow(
    name="steel",
    flow_run_name=lambda: run_name(flow_run.parameters),
    task_runner=ThreadPoolTaskRunner(max_workers=MAX_BESIDE),
    persist_result=False,
    log_prints=False,
)
def steel(
    profile: ProfileName = "demo",
    overrides: Overrides = Overrides(),  # noqa: B008  (frozen, and the UI wants a default)
    force: list[Forced] = [],  # noqa: B006  (read only)
    until: StageName = "report",
) -> Any:
    """Run the pipeline of a profile, skipping what is done.

    Args:
        profile: which file in deployments/profiles fills the configuration.
        overrides: values merged into the profile, mapping by mapping.
        force: stages (`sft`) or nodes (`sft:exp4`) to run again, once per flow run.
        until: the last stage to run.
    """
    config = profiles.load(profile, overrides.model_dump(mode="json"))
    asked = PIPELINE.until(until)
    here = stages_here(asked)
    state = walk(PIPELINE, config, here, force)
    if here == asked or not state.is_completed():
        return state
    parameters = {
        "profile": profile,
        "overrides": overrides.model_dump(mode="json"),
        "force": [name for name in force if stage_of(name) not in here],  # those were made again here
        "until": until,
    }
    name = hand_over(str(flow_run.id), flow_run.run_count, parameters)
    return Completed(message=f"{state.message}; flow run {name} goes on in the pool of the trainings")
