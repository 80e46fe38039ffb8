"""The settings of a run and the engine's own config: the same names, types and defaults, field by field.

The engine cannot import pydantic's tree (it runs where pydantic is missing), and so the fields they share are
written twice. What only one side has is listed here, with the reason.
"""

from __future__ import annotations

import dataclasses
import math
import subprocess
import sys
import types
import typing
from typing import Annotated, Any, Literal, get_args, get_origin

import pytest

from model.training import config as engine
from tasks.settings import config as runs
from tasks.settings.paths import ROOT
from tasks.settings.runtime import Parallel

CHOICES = {
    "name": engine.OPTIMIZERS,
    "schedule": engine.SCHEDULES,
    "precision": engine.PRECISIONS,
    "device": engine.DEVICES,
    "attention": engine.ATTENTIONS,
    "kernels": engine.KERNELS,
    "activation_checkpointing": engine.CHECKPOINTING,
    "float8": engine.FLOAT8,
    "export_dtype": engine.EXPORT_DTYPES,
    "loss": engine.DPO_LOSSES,
    "advantage": engine.ADVANTAGES,
}
"""Strings of which the engine checks the value; the settings are typed with the same ones, in the same order."""

ONLY_ENGINE = {
    "objective": "said by the node: pretrain, sft, dpo, logprobs or grpo",
    "work_dir": "the node's folder",
    "model": "the settings' own section, for fresh weights; SteelConfig checks its fields",
    "init_from": "the input artifact whose export is trained on",
    "continue_from": "a checkpoint folder; pretrain.continue_from names the run, the node finds the folder",
    "tokenizer_dir": "the input artifact",
    "data": "the shards of the input artifacts; runtime.verify_shards is its `verify`",
    "dpo": "the section dpo, compared below",
    "rl": "the section rl, compared below",
    "neftune_alpha": "of sft, compared below",
    "keep_final": "always, for pretrain: another run can continue from its end",
}
ONLY_ENGINE_DPO = {"reference": "the file that dpo:reference leaves"}
ONLY_RUNS_DPO = {
    "train": "the section that every training has",
    "max_tokens": "of the pairs",
    "mixture": "of the pairs",
    "zh_per_en": "of the pairs",
    "held_out": "of the pairs",
    "on_policy": "of the pairs",
    "traits": "of the measurement",
    "trait_tokens": "of the measurement",
    "collapse_alarm": "of the node",
}
ONLY_RUNS_RL = {
    "train": "the section that every training has",
    "start": "which model's export is init_from",
    "max_prompt_tokens": "of the prompts",
    "mixture": "of the prompts",
    "held_out": "of the prompts",
    "pass_rate": "of the prompts",
    "pass_samples": "of the prompts",
    "open_benchmarks": "of the measurement",
    "asked_by": "of the measurement",
}
FROM_RUNTIME = {
    *("detail_every", "peak_tflops", "profile_steps"),
    *("micro_batch_size", "compile", "attention", "kernels", "device", "keep_checkpoints"),
    *("keep_every", "watchdog_seconds", "backend_timeout_seconds", "allow_changed"),
    *("export_every", "export_steps"),
    *(
        "activation_checkpointing",
        "reshard_after_forward",
        "parallel",
        "expandable_segments",
        "deterministic",
    ),
}
FROM_RUN = {"seed"}

BOUNDS = ("gt", "ge", "lt", "le")
ONLY_RUNS_BOUNDS = ("seed",)
"""The engine hashes its seed, so that any number will do."""

SHARED = [
    *((runs.Optim, engine.OptimConfig, f.name) for f in dataclasses.fields(engine.OptimConfig)),
    *((Parallel, engine.ParallelConfig, f.name) for f in dataclasses.fields(engine.ParallelConfig)),
    *((runs.Train, engine.TrainConfig, name) for name in runs.Train.model_fields),
    *((runs.Runtime, engine.TrainConfig, name) for name in sorted(FROM_RUNTIME)),
    *((runs.SteelRun, engine.TrainConfig, name) for name in sorted(FROM_RUN)),
    (runs.Sft, engine.TrainConfig, "neftune_alpha"),
    *((runs.Dpo, engine.DpoConfig, name) for name in ("beta", "nll_weight", "loss", "label_smoothing")),
    *((runs.RlSettings, engine.RlConfig, f.name) for f in dataclasses.fields(engine.RlConfig)),
]


def normal(hint: Any) -> Any:
    """A type as both sides can say it: `Literal` is a string, a pair is a list, a section is a dataclass."""
    if hint in (runs.Optim, engine.OptimConfig):
        return "optim"
    if hint in (Parallel, engine.ParallelConfig):
        return "parallel"
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return normal(args[0])
    if origin is Literal:
        return str
    if origin in (tuple, list):
        return (list, normal(args[0]))
    if origin in (types.UnionType, typing.Union):
        return frozenset(map(normal, args))
    return hint


def default(value: Any) -> Any:
    if isinstance(value, runs.Section):
        value = value.model_dump()
    if dataclasses.is_dataclass(value):
        value = dataclasses.asdict(value)
    if isinstance(value, dict):
        return {name: default(each) for name, each in value.items()}
    return list(value) if isinstance(value, tuple) else value


def engine_default(cls: type, name: str) -> Any:
    field = next(f for f in dataclasses.fields(cls) if f.name == name)
    return field.default_factory() if field.default is dataclasses.MISSING else field.default


@pytest.mark.parametrize(("section", "cls", "name"), SHARED, ids=lambda v: getattr(v, "__name__", v))
def test_a_field_means_the_same_on_both_sides(section, cls, name):
    ours, theirs = section.model_fields[name].annotation, typing.get_type_hints(cls)[name]
    assert normal(ours) == normal(theirs)
    ours_default = section.model_fields[name].get_default(call_default_factory=True)
    assert default(ours_default) == default(engine_default(cls, name))
    if name in CHOICES:
        assert get_args(ours) == CHOICES[name]


def bounds(metadata: list[Any], whole: bool) -> tuple[float, bool, float, bool]:
    """(low, whether it is left out, high, whether it is left out) of pydantic's marks."""
    marks = {name: getattr(mark, name) for mark in metadata for name in BOUNDS if hasattr(mark, name)}
    if whole and "gt" in marks:
        marks["ge"] = marks.pop("gt") + 1
    low, high = marks.get("gt", marks.get("ge", -math.inf)), marks.get("lt", marks.get("le", math.inf))
    return low, "gt" in marks, high, "lt" in marks or high == math.inf


def bounds_of(section: type[runs.Section], name: str) -> tuple[float, bool, float, bool]:
    """Of a list, those of its items."""
    field = section.model_fields[name]
    hints = (field.annotation, *get_args(field.annotation))
    items = next((get_args(each)[0] for each in hints if get_origin(each) in (tuple, list)), None)
    if get_origin(items) is Annotated:
        return bounds(get_args(items)[1].metadata, normal(items) is int)
    return bounds(field.metadata, normal(field.annotation) in (int, frozenset({int, type(None)})))


@pytest.mark.parametrize(("section", "cls", "name"), SHARED, ids=lambda v: getattr(v, "__name__", v))
def test_a_number_has_the_same_bounds_on_both_sides(section, cls, name):
    hint = typing.get_type_hints(cls, include_extras=True)[name]
    theirs = (-math.inf, False, math.inf, True)
    if get_origin(hint) is Annotated:
        interval = hint.__metadata__[0]
        low, high = map(float, interval[1:-1].split(", "))
        theirs = (low, interval[0] == "(", high, interval[-1] == ")")
    if name not in ONLY_RUNS_BOUNDS:
        assert bounds_of(section, name) == theirs


def test_no_field_is_on_one_side_alone_unless_it_is_listed():
    theirs = {f.name for f in dataclasses.fields(engine.TrainConfig)}
    assert theirs - set(runs.Train.model_fields) - FROM_RUNTIME - FROM_RUN == set(ONLY_ENGINE)
    assert set(runs.Train.model_fields) <= theirs
    assert set(runs.Optim.model_fields) == {f.name for f in dataclasses.fields(engine.OptimConfig)}
    assert set(Parallel.model_fields) == {f.name for f in dataclasses.fields(engine.ParallelConfig)}
    dpo = {f.name for f in dataclasses.fields(engine.DpoConfig)}
    assert dpo - set(runs.Dpo.model_fields) == set(ONLY_ENGINE_DPO)
    assert set(runs.Dpo.model_fields) - dpo == set(ONLY_RUNS_DPO)
    rl = {f.name for f in dataclasses.fields(engine.RlConfig)}
    assert set(runs.RlSettings.model_fields) - rl == set(ONLY_RUNS_RL)


def test_the_engines_constants_are_all_compared():
    named = {
        name: value for name, value in vars(engine).items() if name.isupper() and isinstance(value, tuple)
    }
    assert set(named.values()) - set(CHOICES.values()) == {engine.OBJECTIVES}


def test_planning_and_starting_a_training_load_no_torch():
    modules = "tasks.dag, model.training.config, model.chat_template, tasks.training.launch"
    code = f"import sys, {modules}; print('torch' in sys.modules, 'transformers' in sys.modules)"
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert shown.stdout.split() == ["False", "False"]
