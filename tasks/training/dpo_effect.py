"""The effect of DPO by source of pairs: asked in workers before and after, compared, and put into a table.

dpo.json holds the numbers of all pairs of the data sets under the names that the report reads, and `by_set` for each
source of pairs, those that the model made itself included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from model.rewards import REWARDS
from tasks.training import on_policy, trials
from tasks.training.prompts import Asking, replies
from tasks.training.trials import Score
from tasks.work.told import Jobs, Progress


@dataclass(frozen=True)
class Trial:
    """What is asked of a model; picklable."""

    pairs: Path
    """Folder of held_out.arrow and pairs.jsonl."""
    tokenizer: Path
    device: str
    batch_tokens: int
    traits: Mapping[str, list[str]]
    trait_tokens: int
    answer_tokens: int


def ask(trial: Trial, export: Path, pairs: int) -> Jobs:
    """Begin to ask a model: scores of the held-out pairs, and replies to the prompts whose behaviour is measured.
    `pairs`: how many are held out."""
    jobs = Jobs()
    held_out = trial.pairs / "held_out.arrow"
    jobs.submit(pairs, trials.prefer, export, held_out, trial.device, trial.batch_tokens)
    jobs.submit(pairs, answer, trial, export)
    return jobs


def answer(trial: Trial, export: Path, tell: Progress | None = None) -> dict[str, tuple[str, bool]]:
    """Greedy replies by id of pair, and whether each has a wanted trait or earns the reward of its source. Runs in a
    worker."""
    found: dict[str, tuple[str, bool]] = {}
    lines = _held_out(trial)
    with_traits = [line for line in lines if line["set"] in trial.traits]
    graded = [line for line in lines if line["set"] in on_policy.SETS]
    for some, traits, limit in (
        (with_traits, True, trial.trait_tokens), (graded, False, trial.answer_tokens),
    ):  # fmt: skip
        if not some:
            continue
        asking = Asking(export, trial.tokenizer, trial.device, limit)
        before = len(found)

        def further(done: int, _: int, before: int = before) -> None:
            if tell is not None:
                tell(before + done, len(with_traits) + len(graded))

        said = replies(asking, [x["prompt"] for x in some], tell=further)
        for line, (reply,) in zip(some, said, strict=True):
            if traits:
                shown = trials.shows(trial.traits[line["set"]], reply.text)
            else:
                shown = REWARDS[line["reward"]](reply, line["answer"]) > 0
            found[line["id"]] = (reply.text, shown)
    return found


def _held_out(trial: Trial) -> list[dict[str, Any]]:
    """The held-out pairs with what the manifest says of each: set, and of those with a right answer that and reward."""
    import pyarrow as pa

    said = _manifest(trial.pairs)
    with pa.memory_map(str(trial.pairs / "held_out.arrow")) as source:
        lines = pa.ipc.open_file(source).read_all().to_pylist()
    return [{**line, **said[line["id"]]} for line in lines]


def _manifest(folder: Path) -> dict[str, dict[str, Any]]:
    lines = map(orjson.loads, (folder / "pairs.jsonl").read_bytes().splitlines())
    return {line["id"]: line for line in lines}


def compare(trial: Trial, before: Sequence[Any], after: Sequence[Any]) -> dict[str, Any]:
    """What dpo.json holds, of the results of `ask`."""
    sets = {each: line["set"] for each, line in _manifest(trial.pairs).items()}
    scores: tuple[list[Score], list[Score]]
    said: tuple[dict, dict]
    scores, said = zip(before, after, strict=True)
    was, now = (trials.by_set(sets, each) for each in scores)
    given = [i for i, score in enumerate(scores[0]) if sets[score.id] not in on_policy.SETS]
    effect = trials.compare([scores[0][i] for i in given], [scores[1][i] for i in given])
    effect["by_set"] = {}
    for name in was:
        row = trials.compare(was[name], now[name])
        ids = [score.id for score in was[name] if score.id in said[0]]
        if ids:
            row["behaviour"] = {
                "what": "right answers" if name in on_policy.SETS else "replies with the trait",
                **trials.paired([said[0][i][1] for i in ids], [said[1][i][1] for i in ids]),
            }
        effect["by_set"][name] = row
    return effect


def metrics(effect: Mapping[str, Any]) -> dict[str, float]:
    """For MLflow: a few numbers of each source."""
    found: dict[str, float] = {"reward_accuracy": effect["reward_accuracy"]}
    for name, row in effect["by_set"].items():
        found[f"preference/{name}"] = row["accuracy_after"]
        found[f"reward_accuracy/{name}"] = row["reward_accuracy"]
        if "behaviour" in row:
            found[f"behaviour/{name}"] = row["behaviour"]["accuracy_after"]
    return found


def write(path: Path, effect: Mapping[str, Any]) -> None:
    path.write_bytes(orjson.dumps(effect, option=orjson.OPT_INDENT_2) + b"\n")


def table(effect: Mapping[str, Any]) -> str:
    """Markdown: a line for each source and measure."""
    lines = [
        "| pairs | measure | n | before | after | gained, lost | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in {"all data sets": effect, **effect["by_set"]}.items():
        lines.append(_line(name, "chosen likelier per token", row))
        low, high = (100 * x for x in row["ci95_reward"])
        lines.append(
            f"| {name} | reward accuracy ({row['reward_ties']} ties) | {row['n']} | | "
            f"{100 * row['reward_accuracy']:.1f} % ({low:.1f} to {high:.1f}) | | {row['reward_p_value']:.2g} |"
        )
        if "behaviour" in row:
            lines.append(_line(name, row["behaviour"]["what"], row["behaviour"]))
    for name, row in effect["by_set"].items():
        lines.append("")
        lines.append(
            f"{name}: log p per token {row['chosen_change']:+.2f} (chosen), {row['rejected_change']:+.2f} (rejected)"
        )
    return "\n".join(lines)


def _line(name: str, measure: str, row: Mapping[str, Any]) -> str:
    cells = []
    for when in ("before", "after"):
        low, high = (100 * x for x in row[f"ci95_{when}"])
        cells.append(f"{100 * row[f'accuracy_{when}']:.1f} % ({low:.1f} to {high:.1f})")
    return (
        f"| {name} | {measure} | {row['n']} | {cells[0]} | {cells[1]} | {row['gained']}, {row['lost']} "
        f"| {row['p_value']:.2g} |"
    )
