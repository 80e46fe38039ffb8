"""The flows of the studies: the same training many times, with one thing changed.

`steel-ablation/ffn` runs the profile's data stages (skipped when done), then trains every kind of
feed-forward layer with every seed (settings: `ablation` in the profile) and compares them.

`steel-compare/models` asks models by path the same questions (settings: `compare`).

Each study has a flow of its own, because its graph is its own and so is what can be forced; flows of one
family share their name, so their deployments are `steel-ablation/<study>`. No `from __future__ import
annotations` here: Prefect evaluates the types of the parameters, and one of them is the study's.
"""

from collections.abc import Callable
from typing import Annotated, Any

from prefect import Flow, flow
from prefect.runtime import flow_run
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows.run_names import run_name
from flows.spec import COMPARE, STUDIES, FlowSpec
from flows.stages import MAX_BESIDE, walk
from tasks.settings import profiles
from tasks.settings.profiles import Overrides, ProfileName


def forced(spec: FlowSpec) -> Any:
    """The type of one item of `force`: a stage of the flow, or a node in one."""
    return Annotated[str, Field(pattern=rf"^({'|'.join(spec.stages)})(:[^:#/]+)?$")]


def study_flow(spec: FlowSpec) -> Flow:
    """The Prefect flow of a study."""

    def study(
        profile: ProfileName = "demo",
        overrides: Overrides = Overrides(),  # noqa: B008  (frozen, and the UI wants a default)
        force: list[forced(spec)] = [],  # noqa: B006  (read only)
    ) -> Any:
        """Run the study on a profile's data, skipping what is done.

        Args:
            profile: which file in deployments/profiles fills the configuration.
            overrides: values merged into the profile, mapping by mapping (`ablation`: kinds, seeds, steps).
            force: stages or nodes (`ablation:paper-s1`) to run again, once per flow run.
        """
        config = profiles.load(profile, overrides.model_dump(mode="json"))
        return walk(spec, config, spec.stages, force)

    return _flow(spec, study)


def compare_flow(spec: FlowSpec) -> Flow:
    """The Prefect flow that compares models by path: one parameter more."""

    def compare(
        profile: ProfileName = "demo",
        models: dict[str, str] = {},  # noqa: B006  (read only)
        overrides: Overrides = Overrides(),  # noqa: B008  (frozen, and the UI wants a default)
        force: list[forced(spec)] = [],  # noqa: B006  (read only)
    ) -> Any:
        """Ask models by path the same questions, those of the profile's benchmarks.

        Args:
            profile: which file in deployments/profiles says what is asked, and how (`compare`).
            models: name of each model and where it is: a folder of transformers, a GGUF file, or a model of a profile's
                last run, such as demo:dpo.
            overrides: values merged into the profile, mapping by mapping (`compare`: benchmarks, protocols, controls).
            force: stages or nodes (`compare:NAME`) to run again, once per flow run.
        """
        tree = overrides.model_dump(mode="json")
        config = profiles.load(profile, profiles.merge(tree, {"runtime": {"models": models}}))
        return walk(spec, config, spec.stages, force)

    return _flow(spec, compare)


def _flow(spec: FlowSpec, function: Callable[..., Any]) -> Flow:
    runner = ThreadPoolTaskRunner(max_workers=MAX_BESIDE)
    return flow(
        name=spec.name,
        flow_run_name=lambda: run_name(flow_run.parameters, spec.study),
        task_runner=runner,
        persist_result=False,
        log_prints=False,
    )(function)


# under the names that prefect.yaml has as entrypoints: flows/sweep.py:ffn
for _spec in STUDIES:
    _made = compare_flow(_spec) if _spec is COMPARE else study_flow(_spec)
    globals()[_spec.entrypoint.rpartition(":")[2]] = _made
