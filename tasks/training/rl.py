"""The rl stage: prompts that the start model answers now and then, and GRPO on them with rewards that can be checked.

`rl:prompts` asks the start model every question a few times and keeps those at the edge of what it can do. `rl:train`
runs the engine's objective `grpo`, and asks open questions before and after, greedily: rl.json and answers.jsonl.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson

from tasks.evaluate.benchmarks import reported_split
from tasks.settings.config import RlSet, Section, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact, Context, Node, Outcome
from tasks.training import engine
from tasks.training import select as selection
from tasks.work import pool, told

if TYPE_CHECKING:
    from tasks.training.prompts import Line


class PromptsRecipe(Section):
    """What decides the prompts, beside the records and the start model."""

    start: str
    mixture: dict[str, RlSet]
    asked_by: str
    max_prompt_tokens: int
    max_new_tokens: int
    held_out: int
    pass_rate: tuple[float, float]
    pass_samples: int


class Recipe(Section):
    """What decides the trained model and how its effect is measured, beside the prompts."""

    start: str
    group: int
    max_new_tokens: int
    inner_steps: int
    clip_low: float
    clip_high: float
    kl_weight: float
    advantage: str
    mask_truncated: bool
    train: Train
    open_benchmarks: dict[str, str]
    """Name -> the split that is asked."""
    asked_by: str


def nodes(config: SteelRun) -> list[Node]:
    """Two nodes, if the run has a mixture of questions and a model to start from."""
    rl = config.rl
    if not rl.mixture or not config.sft.variants:
        return []
    if unknown := sorted(set(rl.mixture) - set(config.using("sft"))):
        raise NodeError(f"rl.mixture: {', '.join(unknown)} is no source with use: sft")
    if rl.start == "dpo" and not config.dpo.mixture:
        raise NodeError("rl.start is dpo, and the run has no DPO: dpo.mixture is empty")
    tuned = {"select": "sft:select", **{variant: f"sft:{variant}" for variant in config.sft.variants}}
    start = {"dpo": "dpo:train"} if rl.start == "dpo" else tuned
    start = {**start, "tokenizer": "tokenize:tokenizer"}
    records = {}
    for source in rl.mixture:
        records[source] = f"convert:{source}"
        records[f"{source}.drops"] = f"clean:decontaminate#{source}"
    kept = "keep" if config.keep_trained_on_code_change else "rerun"
    shared = {name: getattr(rl, name) for name in Recipe.model_fields if name != "open_benchmarks"}
    return [
        Node(
            name="rl:prompts",
            body=prompts,
            config=PromptsRecipe(**{name: getattr(rl, name) for name in PromptsRecipe.model_fields}),
            inputs={**start, **tuned, **records},
            seeded=True,
            on_code_change=kept,
        ),
        Node(
            name="rl:train",
            body=train,
            config=Recipe(
                **shared,
                open_benchmarks={name: reported_split(config.sources[name]) for name in rl.open_benchmarks},
            ),
            inputs={
                "prompts": "rl:prompts",
                **start,
                **{name: f"convert:{name}" for name in rl.open_benchmarks},
            },
            resumable=True,
            seeded=True,
            trains=True,
            exclusive=config.runtime.parallel_trainings == 1,
            on_code_change=kept,
        ),
    ]


def start_of(inputs: Mapping[str, Artifact]) -> Artifact:
    """The model that the training starts from, among a node's inputs."""
    return inputs["dpo"] if "dpo" in inputs else selection.chosen(inputs)


# ----------------------------------------------------------------------------------- prompts
def prompts(ctx: Context) -> Outcome:
    """Ask the start model every question; keep those that it answers rightly now and then."""
    from tasks.training import mixtures
    from tasks.training import prompts as work

    recipe: PromptsRecipe = ctx.config
    start = start_of(ctx.inputs)
    shares = {name: each.share for name, each in recipe.mixture.items()}
    lines, held_out, counts = pool.submit(
        work.prepare,
        work.Work(
            tokenizer=ctx.inputs["tokenizer"].path,
            sets=mixtures.of_mixture(shares, ctx.inputs),
            seed=ctx.seed,
            max_tokens=recipe.max_prompt_tokens,
            rewards={name: each.reward for name, each in recipe.mixture.items()},
            asked_by=recipe.asked_by,
            held_out=recipe.held_out,
        ),
    ).result()
    counts["held_out_trained"] = _trained_on(selection.chosen(ctx.inputs).path, held_out)
    found = work.answered(
        work.Asking(
            export=start.path / "export",
            tokenizer=ctx.inputs["tokenizer"].path,
            device=ctx.runtime.device,
            max_new_tokens=recipe.max_new_tokens,
            group=recipe.pass_samples,
            seed=ctx.seed,
        ),
        lines,
        told.shown(ctx, lambda done: f"{done} prompts, {recipe.pass_samples} replies each", 0.1),
    )
    passes = work.passes(lines, found)
    kept = work.chosen(lines, passes, recipe.pass_samples, recipe.pass_rate)
    low, high = recipe.pass_rate
    if not kept:
        raise NodeError(
            f"no prompt is left to train on: of {len(lines):,} none has a share of right replies of {low:g} to "
            f"{high:g} ({counts['records']:,} records, {counts['ungradable']:,} with an answer that its reward cannot "
            f"grade, {counts['template']:,} with roles that the chat template refuses, "
            f"{counts['prompt_too_long']:,} too long); right replies of {recipe.pass_samples}: "
            f"{work.histogram(passes, recipe.pass_samples)}"
        )
    _write(ctx, kept, held_out, dict(zip((line["id"] for line in lines), passes, strict=True)))
    spread = work.histogram(passes, recipe.pass_samples)
    rate = sum(passes) / (recipe.pass_samples * len(lines))
    return Outcome(
        headline=f"{len(kept):,} of {len(lines):,} prompts (start: {100 * rate:.1f} % right)",
        counts={
            **{name: value for name, value in counts.items() if isinstance(value, int)},
            "asked": len(lines),
            "kept": len(kept),
        },
        metrics={"pass_rate": rate},
        extra={"start": start.node, "sets": counts["sets"], "passes": spread},
        summary=_prompts_table(counts, spread, len(lines), len(kept), recipe),
        files=["passes.json"],
    )


def _trained_on(variant: Path, lines: list[Line]) -> int:
    """How many of these prompts are of records that a variant was fine-tuned on."""
    held_out = {line["id"] for line in lines}
    with (variant / "mixture.jsonl").open("rb") as mixture:
        taken = (orjson.loads(line) for line in mixture) if held_out else ()
        return len({each["id"] for each in taken if each["split"] == "train"} & held_out)


def _write(ctx: Context, kept: list, held_out: list, passes: Mapping[str, int]) -> None:
    pool.submit(_write_files, ctx.out, ctx.inputs["tokenizer"].path, kept, held_out, passes).result()


def _write_files(out: Any, tokenizer: Any, kept: list, held_out: list, passes: Mapping[str, int]) -> None:
    """train.arrow for the engine; prompts.jsonl says what was taken. Runs in a worker: the format needs torch."""
    from model.training.prompts import Prompt, write_prompts
    from tasks.tokenize.encode import shared_encoder

    digest = {"tokenizer_digest": shared_encoder(str(tokenizer)).digest}
    write_prompts(
        out / "train.arrow", [Prompt(x["id"], x["prompt"], x["answer"], x["reward"]) for x in kept], digest
    )
    with (out / "prompts.jsonl").open("wb") as manifest:
        for split, some in (("train", kept), ("held_out", held_out)):
            for line in some:
                shown = {name: value for name, value in line.items() if name != "messages"}
                manifest.write(
                    orjson.dumps({**shown, "split": split, "right": passes.get(line["id"])}) + b"\n"
                )
    (out / "passes.json").write_bytes(orjson.dumps(passes) + b"\n")


def _prompts_table(
    counts: Mapping[str, Any], spread: list[int], asked: int, kept: int, recipe: PromptsRecipe
) -> str:
    low, high = recipe.pass_rate
    rows = {
        "records taken": counts["records"],
        "dropped: the answer cannot be graded": counts["ungradable"],
        "dropped: the chat template refuses its roles": counts["template"],
        "dropped: the prompt is too long": counts["prompt_too_long"],
        "dropped: the prompt was there before": counts["repeated"],
        "held out": counts["held_out"],
        "of these in the start model's fine-tuning": counts["held_out_trained"],
        f"asked {recipe.pass_samples} times": asked,
        f"kept: {100 * low:g} to {100 * high:g} % right": kept,
    }
    lines = ["| | prompts |", "|---|---|", *(f"| {text} | {n:,} |" for text, n in rows.items())]
    head = " | ".join(str(n) for n in range(len(spread)))
    return "\n".join(
        [
            *lines,
            "",
            f"| right replies | {head} |",
            "|" + "---|" * (len(spread) + 1),
            f"| prompts | {' | '.join(map(str, spread))} |",
        ]
    )


# ---------------------------------------------------------------------------------- training
def train(ctx: Context) -> Outcome:
    """Train on the prompts; ask open questions before and after."""
    from tasks.training import open_questions
    from tasks.training import prompts as work

    recipe: Recipe = ctx.config
    folder, start = ctx.inputs["prompts"].path, start_of(ctx.inputs)
    lines = [orjson.loads(line) for line in (folder / "prompts.jsonl").read_bytes().splitlines()]
    asked = [
        open_questions.Asked(line, open_questions.HELD_OUT) for line in lines if line["split"] == "held_out"
    ]
    ungradable = 0
    for name, split in recipe.open_benchmarks.items():
        questions, left_out = pool.submit(
            open_questions.of_benchmark,
            ctx.inputs[name].path, name, split, ctx.inputs["tokenizer"].path, recipe.asked_by,
        ).result()  # fmt: skip
        if left_out:
            ctx.log.warning(
                "benchmark %s: %d of %d questions are not asked, because no reward can grade their right answer",
                name, left_out, left_out + len(questions),
            )  # fmt: skip
        asked += questions
        ungradable += left_out
    asking = work.Asking(
        export=start.path / "export",
        tokenizer=ctx.inputs["tokenizer"].path,
        device=ctx.runtime.device,
        max_new_tokens=2 * recipe.max_new_tokens,
    )
    before_of = work.begin(asking, [a.line for a in asked])  # asked while the ranks train
    train_lines = [line for line in lines if line["split"] == "train"]
    trained = engine.train(
        ctx,
        "grpo",
        recipe.train,
        [{"path": str(folder / "train.arrow")}],
        nproc=ctx.runtime.sft_nproc or ctx.runtime.nproc,
        steps=engine.steps(recipe.train, len(train_lines)),
        init_from=str(start.path / "export"),
        rl={
            name: getattr(recipe, name)
            for name in (
                *("group", "max_new_tokens", "inner_steps", "clip_low", "clip_high", "kl_weight"),
                *("advantage", "mask_truncated"),
            )
        },
    )
    if not any(line.get("updates") for line in trained.metrics):
        ctx.log.warning("no group of replies had different rewards: the model is that of the start")
    rewards = [line["reward"] for line in trained.metrics if "reward" in line]
    metrics = {**trained.headline(), "reward_first": rewards[0], "reward_last": rewards[-1]}
    effect: list[dict[str, Any]] = []
    if asked:
        before = open_questions.graded(asked, before_of(told.asked(ctx, "old", "open questions")))
        after_of = work.Asking(ctx.out / "export", asking.tokenizer, asking.device, asking.max_new_tokens)
        after = open_questions.graded(
            asked, work.answered(after_of, [a.line for a in asked], told.asked(ctx, "new", "open questions"))
        )
        effect = open_questions.compare(before, after, {line["about"] for line in train_lines})
        known = ctx.inputs["prompts"].manifest["counts"].get("held_out_trained")
        for row in effect:
            if row["questions"] == open_questions.HELD_OUT and known is not None:
                row["in_fine_tuning"] = known
        with (ctx.out / "answers.jsonl").open("wb") as out:
            for was, now in zip(before, after, strict=True):
                out.write(orjson.dumps({**now, "before": was["reply"]}) + b"\n")
    (ctx.out / "rl.json").write_bytes(
        orjson.dumps({"start": start.node, "rows": effect}, option=orjson.OPT_INDENT_2) + b"\n"
    )
    return Outcome(
        headline=_headline(effect, rewards),
        counts={"prompts": len(train_lines), "open_questions": len(asked), "open_ungradable": ungradable},
        metrics={**metrics, **{_metric(row): row["after"] for row in effect}},
        extra={"start": start.node, **trained.execution},
        summary=_effect_table(effect),
        files=["rl.json"],
    )


def _metric(row: Mapping[str, Any]) -> str:
    return f"open/{row['questions'].replace(' ', '-')}/{row['measure']}"


def _headline(effect: list[dict[str, Any]], rewards: list[float]) -> str:
    row = next((each for each in effect if each["measure"] == "exact"), None)
    if row is None:
        return f"reward {rewards[0]:.2f} → {rewards[-1]:.2f}, nothing held out"
    was, now = 100 * row["before"], 100 * row["after"]
    return f"exact {was:.1f} % → {now:.1f} % of {row['n']:,} {row['questions']} (p {row['p_value']:.2g})"


def _told(row: Mapping[str, Any]) -> str:
    """A row's questions, and how many of them the start model has learned in its fine-tuning."""
    seen = row.get("in_fine_tuning", 0)
    return row["questions"] + (f" ({seen:,} of them in the start model's fine-tuning)" if seen else "")


def _effect_table(effect: list[dict[str, Any]]) -> str:
    lines = [
        "| questions | measure | n | before | after | gained, lost | p |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in effect:
        cells = []
        for when in ("before", "after"):
            low, high = (100 * x for x in row[f"ci95_{when}"])
            cells.append(f"{100 * row[when]:.1f} % ({low:.1f} to {high:.1f})")
        lines.append(
            f"| {_told(row)} | {row['measure']} | {row['n']:,} | {cells[0]} | {cells[1]} "
            f"| {row['gained']}, {row['lost']} | {row['p_value']:.2g} |"
        )
    return "\n".join(lines)
