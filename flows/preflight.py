"""Everything that can be known to be wrong before any work starts, each as one clear line.

A check returns its complaint or nothing; `run()` collects them all, so that a user with two
mistakes sees both.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import yaml

from flows.settings import ROOT
from flows.spec import PIPELINE, FlowSpec
from model.guard import refuse_foreign_kernels
from tasks.settings.config import STAGES, SteelRun
from tasks.settings.errors import NodeError, complaint
from tasks.settings.runtime import RUNS_MODEL
from tasks.stage.names import stage_of
from tasks.stage.node import Node

PYTHONS = ((3, 11), (3, 12))
_MODEL = re.compile(r"(?:^|(?<=\s))(?P<name>[^\s=/]+)=")
TRUTH_PROTOCOLS = ("cloze", "paper-first-token", "paper-gen", "official-5shot", "lm-eval-compat")
"""Of the truth table: every way to ask multiple-choice questions."""
_ASSIGNMENT = re.compile(r"(?:^|\s+)([A-Za-z_][\w.\-]*)=")


class Wrong(RuntimeError):
    """What the user has to change; one line each."""


@dataclass
class Request:
    """A run as it was asked for."""

    profile: str = "demo"
    until: str = "report"
    force: list[str] = field(default_factory=list)
    overrides: dict[str, Any] = field(default_factory=dict)
    spec: FlowSpec = PIPELINE
    gpus: int | None = None
    """GPUs of each machine that the run is meant for; None: those of this one."""
    nodes: int = 1
    """Machines that the run is meant for."""

    @property
    def stages(self) -> tuple[str, ...]:
        """That would run; all of the flow where `until` names none of them (`check_until` says so)."""
        ends = self.spec.takes_until and self.until in self.spec.stages
        return self.spec.until(self.until) if ends else self.spec.stages

    def gpus_there(self) -> int:
        """GPUs of each machine that the run is meant for."""
        from tasks.inspect import preflight

        return preflight.gpus_here() if self.gpus is None else self.gpus

    def parameters(self) -> dict[str, Any]:
        """As parameters of the flow."""
        asked = {
            "profile": self.profile,
            "until": self.until if self.spec.takes_until else "",
            "force": self.force,
            "overrides": self.overrides,
        }
        return {key: value for key, value in asked.items() if value}


def run(request: Request) -> SteelRun:
    """Check the machine, then the request; returns the resolved configuration or raises Wrong."""
    machine = [*check_python(), *check_kernels()]
    if machine:
        raise Wrong("\n".join(machine))
    from tasks.settings import profiles

    try:
        # by the same partial tree that the flow's parameters are checked with
        profiles.Overrides.model_validate(request.overrides)
        config = profiles.load(request.profile, request.overrides)
        _ = config.model.geometry  # of a folder: the checks below ask for what it holds
    except NodeError as error:
        raise Wrong(str(error)) from error
    except ValueError as error:
        raise Wrong(f"overrides: {complaint(error)}") from error
    from tasks.inspect import local_sources, preflight

    nodes, undeclared = graph(request, config)
    wrong = [
        *check_until(request.until, request.spec),
        *check_force(request, config, nodes),
        *check_folders(config),
        *check_compiler(config),
        *check_continuation(config),
        *(undeclared or local_sources.complaints(config, ROOT)),
        *preflight.complaints(config, request.stages, request.gpus_there(), request.nodes),
    ]
    if wrong:
        raise Wrong("\n".join(dict.fromkeys(wrong)))
    return config


def warnings(request: Request, config: SteelRun) -> list[str]:
    """What is likely not meant, though the run would work."""
    from tasks.inspect import local_sources, preflight

    return [
        *preflight.warnings(config, request.stages, request.gpus_there()),
        *local_sources.warnings(config, ROOT),
    ]


def sources(request: Request, registered: bool = False) -> SteelRun:
    """The profile with its sources, whatever folders are missing; or with all of the registry's."""
    from tasks.settings import profiles, registry

    try:
        config = profiles.load(request.profile, request.overrides)
        if registered:
            config = SteelRun(profile="registry", sources=registry.entries(), runtime=config.runtime)
    except (NodeError, ValueError) as error:
        raise Wrong(complaint(error)) from error
    runtime = config.runtime.model_copy(update={"artifacts": resolve(config.runtime.artifacts)})
    return config.model_copy(update={"runtime": runtime})


# ---------------------------------------------------------------------------------- checks
def check_python(version: tuple[int, int] = sys.version_info[:2]) -> Iterable[str]:
    if version not in PYTHONS:
        known = " and ".join(f"{major}.{minor}" for major, minor in PYTHONS)
        yield (
            f"Steel runs on Python {known}; this is {version[0]}.{version[1]}: "
            f"run `make setup` with python{known.split()[0]} on the PATH"
        )


def check_kernels() -> Iterable[str]:
    """The one installed package that would break transformers beside our folder of the same name."""
    try:
        refuse_foreign_kernels()
    except RuntimeError as error:
        yield str(error)


def check_until(until: str, flow: FlowSpec = PIPELINE) -> Iterable[str]:
    if until not in STAGES:
        yield f"there is no stage {until!r}; UNTIL is one of: {', '.join(STAGES)}"
    elif not flow.takes_until and until != STAGES[-1]:
        yield f"UNTIL={until}: the flow {flow.deployment} runs as a whole; only the pipeline ends at a stage"


def graph(request: Request, config: SteelRun) -> tuple[dict[str, Node], list[str]]:
    """The nodes of the run, or why they cannot be declared: readers and their options, weights, benchmarks, recipes."""
    try:
        return request.spec.build(config), []
    except (NodeError, ValueError) as error:
        return {}, [complaint(error)]


def check_force(request: Request, config: SteelRun, nodes: Mapping[str, Node]) -> Iterable[str]:
    force, stages = request.force, request.spec.stages
    unknown = [item for item in force if stage_of(item) not in stages]
    for item in unknown:
        yield f"there is no stage {stage_of(item)!r}; FORCE takes stages ({', '.join(stages)}) or nodes"
    for item in force:
        if nodes and ":" in item and item not in unknown and item not in nodes:
            stage = stage_of(item)
            names = ", ".join(name for name, node in nodes.items() if node.stage == stage)
            yield f"there is no node {item!r} in profile {config.profile}; {stage} has: {names}"


def check_folders(config: SteelRun) -> Iterable[str]:
    """Folders that the profile needs and that were not given, or are not there."""
    from tasks.download.local import BELOW

    folders = config.runtime.folders
    variable = {"sources": "SOURCES", "posttrain": "POSTTRAIN", "benchmarks": "BENCHMARKS"}
    needed: dict[str, list[str]] = {}
    for name, source in config.sources.items():
        if source.hub == "folder":
            needed.setdefault(source.below or BELOW[source.use], []).append(name)
    for below, names in needed.items():
        base: Path | None = getattr(folders, below)
        if base is None:
            yield f"profile {config.profile} needs {variable[below]}=<folder> for {', '.join(names)}"
            for name in names:
                if manual := config.sources[name].manual:
                    yield f"  {name}: {manual}"
        elif not resolve(base).is_dir():
            yield f"{variable[below]}={base}: there is no such folder"
        else:
            for name in names:
                if not (resolve(base) / config.sources[name].dataset).exists():
                    source = config.sources[name]
                    how = f"; fetched by hand: {source.manual}" if source.manual else ""
                    yield f"{variable[below]}={base}: no {source.dataset!r} in it (source {name}){how}"
    if config.tokenize.tokenizer == "folder":
        if folders.tokenizer is None:
            yield f"profile {config.profile} needs TOKENIZER=<folder> with a tokenizer.json"
        elif not resolve(folders.tokenizer).is_dir():
            yield f"TOKENIZER={folders.tokenizer}: there is no such folder"


def check_compiler(config: SteelRun) -> Iterable[str]:
    """torch.compile needs a C++ compiler while it runs; installing needed one anyway."""
    if config.runtime.compile and not shutil.which("g++"):
        yield "runtime.compile is on, and there is no g++ on the PATH: install it (Debian: apt-get install g++)"


def check_continuation(config: SteelRun) -> Iterable[str]:
    """The run and the step that the training is to go on from are there."""
    if config.pretrain.continue_from is None:
        return
    from tasks.training import continuation

    try:
        continuation.find(config.pretrain.continue_from, resolve(config.runtime.artifacts))
    except NodeError as error:
        yield str(error)


# ------------------------------------------------------------------------------- overrides
def machines(text: str) -> tuple[int, int | None]:
    """Machines and GPUs of each in `8`, `8xH100` or `2x8xH100`; for "" this machine, whose GPUs nobody has counted (None).

    >>> machines("2x8xH100")
    (2, 8)
    """
    if not text:
        return 1, None
    from tasks.inspect.gpus import GPUS, fleet

    if text.isdecimal() and text not in GPUS:  # 4090 is the name of one
        return 1, int(text)
    try:
        found = fleet(text)
    except NodeError as error:
        raise Wrong(str(error)) from error
    return found.nodes, found.per_node


def forced(texts: Iterable[str], stages: Iterable[str]) -> list[str]:
    """The stages and nodes of FORCE: separated by commas or spaces, where a name may hold spaces itself.

    >>> forced(["sft convert:a b, clean"], ["sft", "convert", "clean"])
    ['sft', 'convert:a b', 'clean']
    """
    items: list[str] = []
    for text in texts:
        for part in text.split(","):
            words = part.split()
            for word in words:
                if items and word is not words[0] and stage_of(word) not in stages and ":" in items[-1]:
                    items[-1] += f" {word}"  # a name with a space in it
                else:
                    items.append(word)
    return items


def resolve(path: Path) -> Path:
    """A path as the flow run sees it: relative ones start at the repository's root."""
    return path if path.is_absolute() else ROOT / path


def assignments(text: str) -> dict[str, Any]:
    """Overrides from `a.b=1 c={"d": 2}`: dotted keys, YAML values; a value may hold spaces.

    >>> assignments("pretrain.steps=200 runtime.nproc=1")
    {'pretrain': {'steps': 200}, 'runtime': {'nproc': 1}}
    """
    starts = list(_ASSIGNMENT.finditer(text))
    if text.strip() and (not starts or text[: starts[0].start()].strip()):
        raise Wrong(f"SET wants key=value pairs, such as SET='pretrain.steps=200'; got {text.strip()!r}")
    tree: dict[str, Any] = {}
    for start, following in zip_longest(starts, starts[1:]):
        value = text[start.end() : following.start() if following else len(text)].strip()
        try:
            parsed = yaml.safe_load(value)
        except yaml.YAMLError as error:
            raise Wrong(f"SET: {start[1]}={value} is not a value: {complaint(error)}") from error
        _put(tree, start[1].split("."), parsed)
    return tree


def models(text: str) -> dict[str, str]:
    """Name -> absolute path, of `a=path b=path`; a path may hold spaces. A run's model (demo:dpo) stays as it is.

    >>> list(models("tiny=/models/tiny other=/models/other"))
    ['tiny', 'other']
    """
    starts = list(_MODEL.finditer(text))
    if not starts or text[: starts[0].start()].strip():
        raise Wrong(
            f"MODELS wants name=path pairs, such as MODELS='mine=artifacts/export'; got {text.strip()!r}"
        )
    found: dict[str, str] = {}
    for start, following in zip_longest(starts, starts[1:]):
        name = start["name"]
        if name in found:
            raise Wrong(f"MODELS names {name!r} twice")
        path = text[start.end() : following.start() if following else len(text)].strip()
        found[name] = path if RUNS_MODEL.fullmatch(path) else str(Path(path).expanduser().resolve())
    return found


def compared(text: str, truth: bool = False, texts: str | None = None) -> dict[str, Any]:
    """MODELS=… as overrides; `truth`: every way to ask, with all controls. `texts`: a folder of training text."""
    tree: dict[str, Any] = {"runtime": {"models": models(text)}}
    if truth:
        tree["compare"] = {"protocols": list(TRUTH_PROTOCOLS), "controls": True, "shuffles": 1}
    if texts:
        source = {"dataset": ".", "hub": "folder", "reader": "text", "use": "pretrain", "files": ["**/*"]}
        tree["sources"] = {"training_text": source}
        tree.setdefault("compare", {})["contamination"] = ["training_text"]
    return tree


def folder_overrides(folders: Mapping[str, str | None]) -> dict[str, Any]:
    """SOURCES=… and its like as overrides: relative to the shell's folder, so made absolute here."""
    given = {k: str(Path(v).expanduser().resolve()) for k, v in folders.items() if v}
    return {"runtime": {"folders": given}} if given else {}


def _put(tree: dict[str, Any], path: list[str], value: Any) -> None:
    for part in path[:-1]:
        below = tree.setdefault(part, {})
        if not isinstance(below, dict):
            raise Wrong(f"SET gives {part} twice: as a value and as a tree")
        tree = below
    tree[path[-1]] = value
