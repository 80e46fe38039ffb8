"""What the run of a checkpoint was, held against what this run is.

A run that goes on with another learning rate, geometry or precision gives a result that no configuration describes. So
what defines the result is compared field by field, and a change is refused, or named in `allow_changed` and logged.
Paths, devices, ranks, kernels, and when to log, validate and save may differ. So may the number of steps: but the rate
follows from it, and a jump of the rate is said. What the order of the data follows from cannot be changed at all.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from model.training.config import ConfigError, OptimConfig, RlConfig, TrainConfig, to_dict

log = logging.getLogger("steel.training")

HELD = (
    "objective",
    "model",
    "batch_size",
    "precision",
    "float8",
    "optim",
    "dpo.beta",
    "dpo.nll_weight",
    "dpo.loss",
    "dpo.label_smoothing",
    "rl",
    "neftune_alpha",
)
"""Fields, or sections of them, that define the result (the data is held by the loader)."""
FREE = ("optim.max_skipped", "optim.spike_factor")
"""Of them: what changes no step that was made, and may be what a run that ended needs. A change is logged."""
VOLATILE = (
    "transformers_version", "dtype", "torch_dtype", "_name_or_path", "architectures", "auto_map", "use_cache",
    "bos_token_id", "eos_token_id", "pad_token_id", "_attn_implementation",
)  # fmt: skip
"""Of a model's configuration: what says nothing of its function."""
JUMP = 0.01
"""A rate that differs by a larger share than this from the one the checkpoint was trained with is said."""


def resolved(config: TrainConfig, geometry: Mapping[str, Any], precision: str) -> dict[str, Any]:
    """The configuration as JSON, with the model and the precision that it came to."""
    model = {key: value for key, value in geometry.items() if key not in VOLATILE}
    return json.loads(json.dumps({**to_dict(config), "model": model, "precision": precision}, default=str))


def hold_order(at: Path, saved: Mapping[str, Any] | None, config: TrainConfig) -> None:
    """Raise ConfigError where the data would not go on where the checkpoint `at` left it. `allow_changed` is of no help."""
    fixed = {"seed": "the order of the data follows from it"}
    if config.objective in ("dpo", "grpo"):
        fixed["batch_size"] = f"a step of {config.objective} finds its place in the data by it"
    for name, reason in fixed.items():
        here = getattr(config, name)
        if saved is not None and saved[name] != here:
            raise ConfigError(
                f"{at}: {name} was {saved[name]}, is {here}, and cannot be changed: {reason}. Take it back, "
                "or begin anew in another work_dir"
            )


def hold(at: Path, saved: Mapping[str, Any] | None, now: Mapping[str, Any], *, joins: bool) -> None:
    """Raise ConfigError where a held field has changed since the checkpoint `at` and is not in `allow_changed`.

    `saved`, `now`: as `resolved` gives them (None: a checkpoint of an engine that kept none). `joins`: another run's
    checkpoint is continued: only its model is held, other changes are logged.
    """
    allowed = [*now["allow_changed"], *FREE]
    if saved is None:
        return
    defaults = {
        "float8": "off",
        "neftune_alpha": 0.0,
        "optim": dataclasses.asdict(OptimConfig()),
    }  # of settings younger than it
    before, here = {**_flat(defaults), **_flat(saved)}, _flat(now)
    changes = {
        name: f"{name} was {before[name]!r}, is {here[name]!r}"
        for name in before
        if name in here and before[name] != here[name] and _within(name, HELD)
    }
    for was, now_is in ((before, here), (here, before)):  # a field that became a section, or was one
        for name in was.keys() - now_is.keys():
            if _within(name, HELD) and any(other.startswith(name + ".") for other in now_is):
                values = [{k: v for k, v in side.items() if _within(k, [name])} for side in (before, here)]
                changes[name] = f"{name} was {_told(name, values[0])}, is {_told(name, values[1])}"
    refused = [
        said
        for name, said in changes.items()
        if not _within(name, allowed) and (not joins or _within(name, ["model"]))
    ]
    if refused:
        what = (
            "of another model" if all(said.startswith("model.") for said in refused) else "of other settings"
        )
        raise ConfigError(
            f"{at} is {what}: {'; '.join(refused)}. Take them back, or name the fields in allow_changed"
        )
    for said in changes.values():
        log.warning("changed since the checkpoint: %s", said)


def check_allowed(names: Sequence[str]) -> None:
    """Raise ConfigError where `allow_changed` names what is no field that is held, nor a section of such fields."""
    known = {*HELD, *(held.partition(".")[0] for held in HELD)}
    for section, kind in (("optim", OptimConfig), ("rl", RlConfig)):
        known |= {f"{section}.{field.name}" for field in dataclasses.fields(kind)}
    for name in names:
        of_model = name.startswith("model.") and name != "model."  # its fields depend on the kind of model
        if name not in known and not of_model:
            raise ConfigError(f"allow_changed: {name} is no field that is held; held are {', '.join(HELD)}")


def say_jump(before: float | None, step: int, same: float, rate: float) -> None:
    """Log that the rate goes another way than the checkpoint's run: it was trained with `before` at the step before
    `step`, for which this run's schedule has `same`, and `rate` comes next."""
    if before is not None and abs(same - before) > JUMP * max(same, before):
        log.warning(
            "the learning rate jumps: step %d was made with %.3g, step %d gets %.3g by this run's steps and schedule",
            step, before, step + 1, rate,
        )  # fmt: skip


def _told(name: str, flat: Mapping[str, Any]) -> str:
    return repr(flat[name] if name in flat else {k.removeprefix(name + "."): v for k, v in flat.items()})


def _within(name: str, sections: Any) -> bool:
    return any(name == section or name.startswith(section + ".") for section in sections)


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
