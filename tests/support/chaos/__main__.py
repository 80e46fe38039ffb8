"""A small pipeline, disturbed at random: `python -m tests.support.chaos [--rounds 50] [--seed 0] [--faults a,b]` (make chaos).

It runs once undisturbed, then once a round with one fault at a random moment. After the fault comes what a user would do:
start what died of the servers, run again what failed. A round is good when the run then ends well, every artifact has the
bytes of the undisturbed run, and no process is left behind. All happens in a folder of its own, with servers of its own.
Exit code 1 when a round is not good; `--only ROUND` does one round again (same seed, same faults).
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import sys
import tempfile
import time
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from flows import processes
from tasks.settings.files import write_json
from tests.support.chaos.faults import FAULTS, Fault, Missed, Round
from tests.support.chaos.ground import STAGES, Ground

RERUNS = 5
"""After so many a user would give up."""


@dataclass
class Result:
    """One round."""

    round: int
    fault: str
    without: list[str]
    """Stages that were made anew."""
    delay: float
    launcher: str
    done: str = ""
    """What the fault did, in words; "missed" where the run had ended."""
    place: str = ""
    """What was at work then."""
    exit: int | None = None
    """Of the command that followed the disturbed run; -1: it hung."""
    reruns: int = 0
    seconds_to_recover: float | None = None
    differs: list[str] | None = None
    """Nodes whose bytes are not those of the undisturbed run."""
    left_behind: list[str] | None = None
    error: str = ""

    @property
    def good(self) -> bool:
        return not (self.error or self.differs or self.left_behind) and self.differs is not None

    def line(self, rounds: int) -> str:
        back = f"back in {self.seconds_to_recover:.0f} s" if self.seconds_to_recover is not None else ""
        reruns = f"{self.reruns} rerun{'s' * (self.reruns != 1)}" if self.reruns else ""
        verdict = "equal" if self.good else "NOT EQUAL" if self.differs else "NOT GOOD"
        why = self.error or ", ".join([*(self.differs or []), *(self.left_behind or [])])
        parts = [p for p in (self.place, self.done, back, reruns, verdict, why) if p]
        return f"round {self.round:3d}/{rounds}  {self.fault:<15}  " + " · ".join(parts)


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    kinds = [kind for kind in options.faults.split(",") if kind] or list(FAULTS)
    if unknown := [kind for kind in kinds if kind not in FAULTS]:
        raise SystemExit(f"make chaos: there is no fault {unknown[0]!r}; choose from: {', '.join(FAULTS)}")
    for kind in list(kinds):
        if why := FAULTS[kind].refuse():
            print(f"{kind} is left out: {why}")
            kinds.remove(kind)
    if not kinds:
        raise SystemExit("make chaos: none of these faults can be done here")
    folder = Path(options.folder or tempfile.mkdtemp(prefix="steel-chaos-")).resolve()
    (folder / "rounds").mkdir(parents=True, exist_ok=True)
    os.environ["STEEL_STATE"] = str(folder / "state")
    ground = Ground(folder)
    results = [] if options.only else _kept(folder / "chaos.json", options.seed, kinds)
    done = {result.round for result in results}
    with ground.hub:
        try:
            undisturbed, wanted = _undisturbed(ground)
            ground.undisturbed = undisturbed
            print(
                f"undisturbed in {undisturbed:.0f} s, {len(wanted)} artifacts; everything lies in {folder}",
                flush=True,
            )
            numbers = [options.only] if options.only else range(options.first, options.rounds + 1)
            if done:
                print(f"{len(done)} rounds were good before; the others follow", flush=True)
            for number in numbers:
                if number in done:
                    continue
                result = _round(ground, number, options.seed, kinds, wanted)
                results = sorted([*results, result], key=lambda r: r.round)
                print(result.line(options.rounds), flush=True)
                report = _report(options.seed, kinds, undisturbed, results)
                write_json(folder / "chaos.json", report)
        finally:
            ground.log = folder / "rounds" / "end.log"
            ground.say(["down", "--cancel"], seconds=180)
    report = _report(options.seed, kinds, undisturbed, results)
    print("\n".join(_table(report)))
    print(f"{folder / 'chaos.json'}")
    for bad in (r for r in results if not r.good):
        faults = f" FAULTS={options.faults}" if options.faults else ""
        print(
            f"again: make chaos SEED={options.seed} ROUND={bad.round}{faults}; log: rounds/{bad.round:03d}.log"
        )
    return 0 if report["verdict"] == "equal" else 1


def _kept(file: Path, seed: int, kinds: list[str]) -> list[Result]:
    """The good rounds of an earlier start in the same folder, with the same seed and faults."""
    if not file.exists():
        return []
    report = json.loads(file.read_text("utf-8"))
    if (report["seed"], report["kinds"]) != (seed, kinds):
        raise SystemExit(f"make chaos: {file.parent} has rounds of another seed or other faults")
    return [result for result in (Result(**row) for row in report["results"]) if result.good]


def _undisturbed(ground: Ground) -> tuple[float, dict[str, str]]:
    """Seconds and digests. Made once a folder."""
    kept = ground.folder / "undisturbed.json"
    ground.log = ground.folder / "rounds" / "undisturbed.log"
    if ground.say(["up"], seconds=1800):
        raise SystemExit(f"make chaos: the servers do not start: {ground.log}")
    os.environ.update({**ground.client_environment(), "PREFECT_CLIENT_MAX_RETRIES": "2"})
    if kept.exists():
        saved = json.loads(kept.read_text("utf-8"))
        return saved["seconds"], saved["digests"]
    ground.reset(STAGES)
    begun = time.monotonic()
    if ground.say(["run", *ground.request()], seconds=1800):
        raise SystemExit(f"make chaos: the undisturbed run fails: {ground.log}")
    seconds = time.monotonic() - begun
    ground.keep()
    digests = ground.digests()
    if "missing" in digests.values():
        raise SystemExit(f"make chaos: the undisturbed run has not made everything: {digests}")
    write_json(kept, {"seconds": seconds, "digests": digests, "stages": ground.seconds()})
    return seconds, digests


def _round(ground: Ground, number: int, seed: int, kinds: list[str], wanted: dict[str, str]) -> Result:
    kind = _kind(number, seed, kinds)
    fault, chance = FAULTS[kind], random.Random(f"{seed} {number}")
    without = _without(fault, chance)
    cost = json.loads((ground.folder / "undisturbed.json").read_text("utf-8"))["stages"]
    delay = chance.uniform(0, 5 + sum(cost[stage] for stage in without))
    ground.runtime = {"launcher": chance.choice(["fork", "torchrun"])}
    if chance.random() < 0.3:
        ground.runtime["max_restarts"] = 1
    ground.log = ground.folder / "rounds" / f"{number:03d}.log"
    ground.log.write_bytes(b"")
    result = Result(number, kind, list(without), round(delay, 1), ground.runtime["launcher"])
    try:
        if fault.prepare:
            fault.prepare(ground)
        ground.reset(without)
        _disturb(ground, fault, chance, result)
        result.differs = sorted(n for n, digest in ground.digests().items() if digest != wanted[n])
        result.left_behind = ground.left_behind()
    except Exception:  # noqa: BLE001  the other rounds go on; what went wrong is shown and makes the verdict
        result.error = traceback.format_exc().strip().splitlines()[-1]
        with open(ground.log, "a") as log:
            traceback.print_exc(file=log)
        ground.say(["down", "--cancel"])
        ground.say(["up"])
    finally:
        if fault.restore:
            fault.restore(ground)
    return result


def _disturb(ground: Ground, fault: Fault, chance: random.Random, result: Result) -> None:
    """Run, do the fault, and go on until the run ends well."""
    it = Round(ground, chance, ground.begin(["run", *ground.request()]), result.delay)
    try:
        result.done = fault.do(it)
    except Missed:
        result.done = "missed"
    begun = it.at or time.monotonic()
    result.place = it.place
    result.exit = ground.finish(it.follower)
    if fault.verify:
        ground.runtime["verify"] = "full"
    code = 1 if fault.verify or fault.rerun else result.exit
    while code:
        result.reruns += 1
        if result.reruns > RERUNS:
            raise RuntimeError(f"{RERUNS} reruns did not end well")
        ground.say(["up"])
        processes.wait_until(lambda: not ground.flow(), lambda: True, timeout=180, poll=0.5)
        code = ground.say(["run", *ground.request()])
    if ground.say(["up"]):
        raise RuntimeError("the servers do not start again")
    result.seconds_to_recover = round(time.monotonic() - begun, 1)


def _kind(number: int, seed: int, kinds: list[str]) -> str:
    """Every kind once before one comes again."""
    cycle, at = divmod(number - 1, len(kinds))
    return random.Random(f"{seed} kinds {cycle}").sample(kinds, len(kinds))[at]


def _without(fault: Fault, chance: random.Random) -> tuple[str, ...]:
    """Stages that are made anew: all, or some with one of the fault's among them."""
    if chance.random() < 0.25:
        return STAGES
    one = chance.choice(fault.stages)
    others = [stage for stage in STAGES if stage != one and chance.random() < 0.25]
    return tuple(stage for stage in STAGES if stage == one or stage in others)


def _report(seed: int, kinds: list[str], undisturbed: float, results: list[Result]) -> dict:
    by_kind = {}
    for kind in kinds:
        own = [r for r in results if r.fault == kind]
        took = [r.seconds_to_recover for r in own if r.seconds_to_recover is not None and r.done != "missed"]
        if own:
            by_kind[kind] = {
                "rounds": len(own),
                "missed": sum(r.done == "missed" for r in own),
                "reruns": sum(r.reruns for r in own),
                "median_seconds_to_recover": round(statistics.median(took), 1) if took else None,
                "max_seconds_to_recover": max(took, default=None),
                "not_good": [r.round for r in own if not r.good],
            }
    return {
        "seed": seed,
        "kinds": kinds,
        "undisturbed_seconds": round(undisturbed, 1),
        "rounds": len(results),
        "faults": by_kind,
        "verdict": "equal" if all(r.good for r in results) else "not equal",
        "results": [asdict(r) for r in results],
    }


def _table(report: dict) -> list[str]:
    def seconds(value: float | None) -> str:
        return f"{value:8.0f}" if value is not None else f"{'–':>8}"

    lines = [
        f"{'fault':<16} {'rounds':>6} {'missed':>6} {'reruns':>6} {'median s':>8} {'max s':>8}  not good"
    ]
    for kind, row in report["faults"].items():
        bad = ", ".join(map(str, row["not_good"])) or "–"
        lines.append(
            f"{kind:<16} {row['rounds']:6d} {row['missed']:6d} {row['reruns']:6d} "
            f"{seconds(row['median_seconds_to_recover'])} {seconds(row['max_seconds_to_recover'])}  {bad}"
        )
    return [*lines, f"{report['rounds']} rounds, seed {report['seed']}: {report['verdict']}"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m tests.support.chaos", description=(__doc__ or "").partition("\n")[0]
    )
    parser.add_argument("--rounds", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--faults", default="", metavar="A,B", help=f"default: all of {', '.join(FAULTS)}")
    parser.add_argument("--only", type=int, default=0, metavar="ROUND", help="this round alone, again")
    parser.add_argument("--first", type=int, default=1, metavar="ROUND", help="without the rounds before it")
    parser.add_argument(
        "--folder",
        default="",
        help="of everything (default: a new temporary one); what a start before has done there counts",
    )
    return parser


if __name__ == "__main__":
    sys.exit(main())
