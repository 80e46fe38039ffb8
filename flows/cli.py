"""`python -m flows.cli`: what the Makefile calls. Conveniences only: after `up`, the plain `prefect`
and `mlflow` commands work as well.

Exit codes: 0 done, 1 the run failed, 2 something to correct first (nothing was started), 130 stopped
by Ctrl-C.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any
from uuid import UUID

from flows import preflight, preview, prompts, pushing, servers, serving, spec
from flows.ports import PortError
from flows.preflight import Request, Wrong
from flows.servers import ServerError
from flows.settings import Addresses, State
from flows.spec import PIPELINE, FlowSpec
from flows.stores import StoreError
from tasks.settings import loopback
from tasks.settings.config import SteelRun
from tasks.settings.errors import one_line
from tasks.settings.files import write_text
from tasks.stage.names import stage_of


def main(arguments: Sequence[str] | None = None) -> int:
    options = parser().parse_args(arguments)
    for remark in loopback.spare():
        print(remark, file=sys.stderr)
    try:
        code = options.command(options)
        sys.stdout.flush()
        return code
    except BrokenPipeError:  # `make plan | head` has read enough: nothing more is written, at the exit either
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (Wrong, PortError, ServerError, StoreError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if not _is_away(error):
            raise
        print(
            f"Prefect's server does not answer, or refuses ({one_line(error)}). `make status` shows it; "
            "the same command tries again.",
            file=sys.stderr,
        )
        return 2


def _is_away(error: Exception) -> bool:
    """Prefect's server left a call unanswered. Commands that do not speak to it do not load its client."""
    if "prefect" not in sys.modules:
        return False
    from flows.reporter import AWAY

    return isinstance(error, AWAY)


def _up(options: argparse.Namespace) -> int:
    _addresses(servers.up())
    return 0


def _down(options: argparse.Namespace) -> int:
    stopped = servers.down(cancel=options.cancel)
    print(f"stopped {', '.join(stopped)}" if stopped else "nothing was running")
    return 0


def _status(options: argparse.Namespace) -> int:
    services = servers.status()
    for s in services:
        state = ("up" if s.answers else "does not answer") if s.running else "down"
        memory = f"{s.memory / 2**20:6.0f} MB  pid {s.pid}" if s.running else ""
        print(f"{s.name:<8} {state:<16} {s.address:<24} {memory}".rstrip())
    total = sum(s.memory for s in services)
    if total:
        print(f"{'':<50}{total / 2**20:6.0f} MB in all")
    for run, process in servers.going().items():
        print(f"flow run {run} goes on, pid {process.pid}")
    return 0 if all(s.answers for s in services) else 1


def _prune(options: argparse.Namespace) -> int:
    from tasks.inspect import prune
    from tasks.settings import profiles

    request = _request(options)
    root = preflight.resolve(profiles.load(request.profile, request.overrides).runtime.artifacts)
    items = prune.candidates(root, options.days)
    for kind, group in groupby(items, lambda item: item.kind):
        found = list(group)
        print(f"{kind}: {len(found):,}, {sum(item.size for item in found) / 1e6:,.1f} MB")
        for item in found if not options.apply else []:
            print(f"  {item.size / 1e6:10,.1f} MB  {item.path}")
    if not items:
        print(f"nothing in {root} is older than {options.days:g} days and not needed")
    elif options.apply:
        gone = list(prune.remove(items))
        print(f"removed {len(gone):,} folders, {sum(item.size for item in gone) / 1e6:,.1f} MB")
    else:
        print("nothing was removed: make prune GO=1 removes them")
    return 0


def _check(options: argparse.Namespace) -> int:
    request = _request(options)
    _checked(request)
    print(f"profile {request.profile}: nothing wrong with it")
    return 0


def _checked(request: Request) -> SteelRun:
    """The configuration, after its warnings; raises Wrong."""
    config = preflight.run(request)
    for line in preflight.warnings(request, config):
        print(f"warning: {line}")
    return config


def _plan(options: argparse.Namespace) -> int:
    request = _request(options)
    if options.gpus:
        from flows import cost

        return cost.show(request.profile, request.overrides, options.gpus)
    config = preflight.run(request)
    at = servers.up()
    from tasks.stage.plan import plan
    from tasks.stage.runner import Runner
    from tasks.stage.store import Store
    from tasks.stage.tracking import Tracker

    store = Store(preflight.resolve(config.runtime.artifacts))
    nodes = request.spec.build(config)
    runner = Runner(config, nodes, store, Tracker(at.mlflow), "", frozenset(request.force))
    for stage, steps in groupby(plan(runner), key=lambda step: stage_of(step.node)):
        if stage in request.stages:
            print("\n".join(_plan_lines(stage, list(steps))))
    return 0


def _plan_lines(stage: str, steps: list[Any]) -> list[str]:
    """A stage that is skipped as a whole is one line, else a line for each node."""
    if all(step.action == "skip" for step in steps):
        return [f"{'skip':<8} {stage:<26} all of its nodes ({len(steps)}) are done"]
    return [f"{step.action:<8} {step.node:<26} {step.why}" for step in steps]


def _sources(options: argparse.Namespace) -> int:
    from tasks.inspect import catalogue

    config = preflight.sources(_request(options), options.registry)
    print("\n".join(catalogue.table(catalogue.rows(config), config.runtime.artifacts)))
    return 0


def _trace(options: argparse.Namespace) -> int:
    request = _request(options)
    from tasks import dag
    from tasks.inspect import trace
    from tasks.inspect.artifacts import newest
    from tasks.settings import profiles
    from tasks.settings.errors import NodeError
    from tasks.stage.store import Store

    try:  # no preflight: the data folders of the run may be gone by now
        config = profiles.load(request.profile, request.overrides)
        other: set[str] = set()
        nodes = newest(Store(preflight.resolve(config.runtime.artifacts)), dag.build(config), other)
        by_step = options.step is not None
        lines = trace.step(options.step, config, nodes) if by_step else trace.trace(options.id, config, nodes)
        print("\n".join(lines))
    except NodeError as error:
        raise Wrong(str(error)) from error
    if other:
        print(f"Made with other settings than {request.profile} has now: {', '.join(sorted(other))}")
    return 0


def _chat(options: argparse.Namespace) -> int:
    request = _request(options)
    from tasks import dag
    from tasks.inspect import models
    from tasks.inspect.artifacts import newest
    from tasks.settings import profiles
    from tasks.settings.errors import NodeError
    from tasks.stage.store import Store

    try:  # as for trace: only what there is counts
        config = profiles.load(request.profile, request.overrides)
        store = Store(preflight.resolve(config.runtime.artifacts))
        # the last run may have ended early: what an earlier one has made of the profile counts, too
        nodes = {**newest(store, dag.build(config)), **models.last_run(store, request.profile)}
        name, folder = models.find(options.model, request.profile, nodes)
    except NodeError as error:
        raise Wrong(str(error)) from error
    from model.chat import HELP, converse, open_dialogue

    base = name == "base" or options.plain
    try:
        dialogue = open_dialogue(
            folder,
            config.runtime.device,
            template=not base,
            temperature=options.temperature,
            top_p=options.top_p,
            max_new_tokens=options.max_new_tokens,
            seed=options.seed,
        )
    except ValueError as error:
        raise Wrong(str(error)) from error
    typed = sys.stdin.isatty()
    print(f"{name}, in {folder}", file=sys.stderr)
    if base:
        print("a base model continues texts, it does not answer", file=sys.stderr)
    if typed:
        print(HELP, file=sys.stderr)
    converse(dialogue, sys.stdin, sys.stdout, prompt="> " if typed else "")
    return 0


def _run(options: argparse.Namespace) -> int:
    request = _request(options)
    config = _checked(request)
    at = servers.up()
    from flows import runs  # after up(): Prefect reads its settings when it is imported

    for name in runs.reap():
        print(f"an earlier flow run, {name}, had lost its process: marked as Crashed")
    try:
        run = runs.trigger(request.spec.deployment, request.parameters())
    except runs.RunError as error:
        raise Wrong(str(error)) from error
    print(f"flow run {at.prefect}/runs/flow-run/{run}", flush=True)
    code = _follow(run, at, config, request.spec)
    if (table := getattr(options, "table", "")) and not code:
        from tasks.compare.table import NUMBERS

        made = request.spec.latest(preflight.resolve(config.runtime.artifacts), config.profile) / NUMBERS
        write_text(Path(table), made.read_text("utf-8"))
        print(f"table    {table}")
    return code


def _verify(options: argparse.Namespace) -> int:
    from tasks.compare import verify
    from tasks.settings.errors import NodeError

    given = preflight.models(options.models) if options.models else {}
    try:
        verdict = verify.verify(
            options.file, options.benchmarks, given, options.sample, options.seed, options.profile
        )
    except NodeError as error:
        raise Wrong(str(error)) from error
    print("\n".join(verdict.lines))
    return 0 if verdict.agrees else 1


def _watch(options: argparse.Namespace) -> int:
    at = servers.up()
    from flows import runs
    from tasks.settings import profiles

    run = UUID(options.run) if options.run else runs.latest()
    if run is None:
        raise Wrong("there is no flow run yet: `make run` starts one")
    with runs.Reader(run) as reader:
        parameters, deployment = reader.flow_run().parameters, reader.deployment()
    overrides: Any = parameters.get("overrides") or {}
    config = profiles.load(parameters.get("profile") or "demo", overrides)
    return _follow(run, at, config, spec.of(deployment))


def _follow(run: UUID, at: Addresses, config: Any, flow: FlowSpec) -> int:
    from flows import runs
    from flows.follow import follow
    from flows.reporter import AWAY

    folder = flow.latest(preflight.resolve(config.runtime.artifacts), config.profile)
    try:
        good = follow(run, at, folder, folder / flow.page)
        while good and (following := runs.successor(run)):
            run = following
            print(f"\ngoes on in the pool of the trainings: {at.prefect}/runs/flow-run/{run}", flush=True)
            good = follow(run, at, folder, folder / flow.page)
    except runs.RunError as error:
        print(error, file=sys.stderr)
        return 1
    except AWAY as error:
        print(
            f"Prefect's server at {at.prefect} does not answer ({one_line(error)}).\n"
            "The run goes on without this window. Watch it again: make watch",
            file=sys.stderr,
        )
        return 1
    except KeyboardInterrupt:
        print(
            f"\nThe run goes on without this window. Watch it again: make watch\n"
            f"Stop it, with a checkpoint: prefect flow-run cancel {run}\n"
            f"Its page: {at.prefect}/runs/flow-run/{run}"
        )
        return 130
    return 0 if good else 1


def _addresses(at: Addresses) -> None:
    print(f"Prefect  {at.prefect}")
    print(f"MLflow   {at.mlflow}")
    state = State.default()
    print(f"password {state.auth}")
    if not state.is_default:
        print(f"shells   . {state.env}")


def _request(options: argparse.Namespace) -> Request:
    folders = {name: getattr(options, name) for name in ("sources", "posttrain", "tokenizer", "benchmarks")}
    from tasks.settings.profiles import merge

    overrides = merge(preflight.folder_overrides(folders), preflight.assignments(" ".join(options.set)))
    force = preflight.forced(options.force, spec.stages())
    flow = spec.studies()[options.study] if options.study else PIPELINE
    if models := getattr(options, "models", ""):
        flow = spec.COMPARE
        overrides = merge(
            preflight.compared(models, options.truth or bool(options.table), options.sources), overrides
        )
    nodes, gpus = preflight.machines(getattr(options, "gpus", ""))
    return Request(options.profile, options.until or "report", force, overrides, flow, gpus, nodes)


def parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m flows.cli", description="Steel: servers and runs.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.set_defaults(study="")
    common.add_argument("--profile", default="demo", help="a file in deployments/profiles (default: demo)")
    common.add_argument("--until", default="report", metavar="STAGE", help="the last stage (default: report)")
    common.add_argument(
        "--force",
        action="append",
        default=[],
        metavar="STAGE[:UNIT]",
        help="run again what is done; may repeat",
    )
    common.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="override a value: pretrain.steps=200; may repeat",
    )
    for name, what in {
        "sources": "pre-training data",
        "posttrain": "instruction and preference data",
        "tokenizer": "a tokenizer",
        "benchmarks": "benchmarks",
    }.items():
        common.add_argument(
            f"--{name}", metavar="FOLDER", help=f"folder with {what} (profiles with local data)"
        )

    def command(name: str, function: Any, text: str, **kwargs: Any) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, **kwargs)
        sub.set_defaults(command=function)
        return sub

    command("up", _up, "start the servers and the worker, deploy prefect.yaml; says where they are")
    down = command("down", _down, "stop them, and name the flow runs that wait")
    down.add_argument("--cancel", action="store_true", help="cancel the flow runs that wait, too")
    command("status", _status, "addresses, processes and memory; exit code 1 unless all are up")
    command(
        "run", _run, "check, start the servers if need be, run the pipeline and follow it", parents=[common]
    )
    ablation = command(
        "ablation", _run, "run a study: one thing changed, the rest equal; and follow it", parents=[common]
    )
    names = list(spec.studies())
    compare = command(
        "compare", _run, "ask models by path the same questions, and follow it", parents=[common]
    )
    compare.add_argument("--models", required=True, metavar="NAME=PATH …", help="folders or GGUF files")
    compare.set_defaults(profile="compare")
    compare.add_argument("--truth", action="store_true", help="by every protocol, with all controls")
    compare.add_argument("--table", default="", metavar="FILE", help="the same, and write it as JSON to FILE")
    verify = command("verify", _verify, "ask a random sample of a table's answers again")
    verify.add_argument("file", help="truth-table.json")
    verify.add_argument("--benchmarks", required=True, metavar="FOLDER", help="folder with the benchmarks")
    verify.add_argument("--models", default="", metavar="NAME=PATH …", help="where the models are here")
    verify.add_argument("--sample", type=int, default=50, help="answers of each model (default: 50)")
    verify.add_argument("--seed", type=int, help="of the sample (default: another each time)")
    verify.add_argument("--profile", default="compare", help="whose sources the benchmarks are")
    ablation.add_argument("--study", default=names[0], choices=names, help=f"default: {names[0]}")
    planned = command("plan", _plan, "what a run would skip, what it would do, and why", parents=[common])
    planned.add_argument("--gpus", default="", metavar="8xH100", help="instead: what it would cost on these")
    sources = command("sources", _sources, "the data sets of a profile, and what is here", parents=[common])
    sources.add_argument("--registry", action="store_true", help="all known data sets instead")
    preview.register(command, common, _request)
    prompts.register(command, common, _request)
    prune = command("prune", _prune, "what can go from artifacts/, and removing it", parents=[common])
    prune.add_argument(
        "--days", type=float, default=7.0, help="keep what was touched since (default: 7 days)"
    )
    prune.add_argument("--apply", action="store_true", help="remove it; else it is only listed")
    check = command("check", _check, "only the checks that come before a run", parents=[common])
    check.add_argument("--gpus", default="", metavar="N", help="for other machines: 8, 8xH100, 2x8xH100")
    trace = command("trace", _trace, "what became of one record, from raw file to shard", parents=[common])
    trace.add_argument("--step", type=int, help="instead: the documents of this step of pre-training")
    what = "record id or its first digits, FILE:POSITION, or some text"
    trace.add_argument("id", nargs="?", default="", metavar="ID", help=what)
    chat = command("chat", _chat, "talk to a trained model in the terminal", parents=[common])
    chat.add_argument(
        "--model", default="", help="dpo, rl, sft, sft:VARIANT, base or a folder (default: the last)"
    )
    chat.add_argument("--temperature", type=float, default=0.0, help="0 (default): the likeliest token")
    chat.add_argument("--top-p", type=float, default=1.0, help="sample from this share of the probability")
    chat.add_argument("--max-new-tokens", type=int, default=256, help="longest reply (default: 256)")
    chat.add_argument("--seed", type=int, default=0, help="of the sampling (default: 0)")
    chat.add_argument("--plain", action="store_true", help="no chat template: continue the text")
    serving.register(command, common, _request)
    pushing.register(command, common, _request)
    watch = command("watch", _watch, "follow the newest flow run, or the one given")
    watch.add_argument("run", nargs="?", metavar="RUN", help="flow run id")
    return parser


if __name__ == "__main__":
    sys.exit(main())
