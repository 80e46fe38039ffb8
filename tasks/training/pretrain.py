"""The pretrain stage: hand the packed shards to the engine, and set its result beside a unigram model.

A validation loss means something only next to what needs no model at all: the loss of the token
frequencies of the training text (each count plus one), measured on the same validation blocks.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tasks.settings.config import ContinueFrom, Model, Section, SteelRun, Train
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Node, Outcome
from tasks.training import continuation, engine, pretrained
from tasks.work import pool


class Recipe(Section):
    """What decides the trained model, beside the data and the run that is continued."""

    model: Model | None
    """None: that of the folder `model.pretrained`, whose files are in the fingerprint; where it lies is not."""
    train: Train


def nodes(config: SteelRun) -> list[Node]:
    """One node, which wants the machine for itself and goes on where it was stopped."""
    body = Pretraining(config.pretrain.continue_from, config.runtime.artifacts, config.model.pretrained)
    return [
        Node(
            name="pretrain",
            body=body,
            config=Recipe(
                model=None if config.model.pretrained else config.model, train=config.pretrain.train
            ),
            inputs={
                "shards": "tokenize:manifest",
                "tokenizer": "tokenize:tokenizer",
                **{name: f"tokenize:{name}" for name in config.using("pretrain")},
            },
            external=body.identity if config.pretrain.continue_from or config.model.pretrained else None,
            resumable=True,
            seeded=True,
            trains=True,
            exclusive=True,
            on_code_change="keep" if config.keep_trained_on_code_change else "rerun",
        )
    ]


@dataclass(frozen=True)
class Course:
    """Which shards a training reads, and from which step to which."""

    files: list[dict[str, Any]]
    begin: int
    end: int
    checkpoint: str | None = None
    """Of the run it goes on from."""


@dataclass(frozen=True)
class Pretraining:
    """The node's body, with the run it continues, if any."""

    continue_from: ContinueFrom | None = None
    artifacts: Path = Path("artifacts")
    pretrained: Path | None = None
    """The folder of the model it starts from, if any."""

    def identity(self) -> dict[str, str]:
        """What the parent, or the pretrained model, adds to the fingerprint."""
        if self.continue_from is None:
            return {} if self.pretrained is None else pretrained.identity(self.pretrained)
        parent = continuation.find(self.continue_from, self.artifacts)
        return {**parent.identity, "on_changed": self.continue_from.on_changed}

    def __call__(self, ctx: Context) -> Outcome:
        """Train, then compare with the unigram model."""
        recipe: Recipe = ctx.config
        model = recipe.model or Model(pretrained=self.pretrained)
        shards = read_shards(ctx)
        if self.pretrained is not None:
            pool.submit(pretrained.hold, self.pretrained, ctx.inputs["tokenizer"].path).result()
        files, val_files = data_files(ctx, shards)
        course = self._course(ctx, recipe.train, files, shards["tokenizer_digest"])
        blocks = sum(map(continuation.blocks_of, course.files))
        table = planned(course.files, (course.end - course.begin) * recipe.train.batch_size)
        ctx.log.info(
            "blocks this training takes, from step %d to %d:\n%s", course.begin + 1, course.end, table
        )
        ctx.track.metrics({"epoch_blocks": blocks, **shares(course.files)}, 0)
        vocab_size = rounded_vocab(model.vocabulary, shards["vocab_size"])
        # counted beside the training
        unigram = pool.submit(
            unigram_loss, course.files, val_files, vocab_size, ctx.runtime.verify_shards == "start"
        )
        trained = engine.train(
            ctx,
            "pretrain",
            recipe.train,
            course.files,
            nproc=ctx.runtime.nproc,
            keep_checkpoints=True,
            val_files=val_files,
            **beginning(model, vocab_size),
            steps=course.end,
            continue_from=course.checkpoint,
            keep_final=True,
        )
        outcome = _outcome(trained, unigram.result(), blocks)
        return replace(outcome, summary=f"{outcome.summary}\n\n{table}")

    def _course(self, ctx: Context, train: Train, files: list[dict], tokenizer: str) -> Course:
        """From fresh weights on these shards; or on the parent's and the new ones, from the parent's step."""
        if self.continue_from is None:
            return Course(files, 0, engine.steps(train, sum(map(continuation.blocks_of, files))))
        present = {file["digest"] for file in files}
        parent = continuation.find(self.continue_from, self.artifacts)
        files, notes = continuation.join(parent.files, files, self.continue_from.on_changed)
        # those that the manifest has were made with its tokenizer
        kept = [file for file in files if file["digest"] not in present]
        check = ctx.runtime.verify_shards == "start"
        if kept and pool.submit(continuation.tokenizers, kept, check).result() != {tokenizer}:
            raise NodeError(
                "the run to continue was trained with another tokenizer: its shards cannot be kept beside new ones. Bring "
                "its tokenizer (tokenize.tokenizer=folder, TOKENIZER=its artifact)"
            )
        for note in notes:
            ctx.log.info("continues %s from step %d: %s", parent.folder.name, parent.step, note)
        steps = train.steps or continuation.steps(parent.loader_state, files, train.batch_size, train.epochs)
        if steps <= parent.step:
            raise NodeError(
                f"the run to continue was at step {parent.step}, and steps count from its start: "
                f"{steps} would train nothing; raise pretrain.{'steps' if train.steps else 'epochs'}"
            )
        ctx.track.continues(parent.fingerprint, parent.step)
        return Course(files, parent.step, steps, str(parent.checkpoint))


def read_shards(ctx: Context) -> dict[str, Any]:
    """shards.json. Raises NodeError if its tokenizer is not this run's."""
    from tasks.tokenize.encode import tokenizer_digest

    shards = ctx.inputs["shards"].read_json("shards.json")
    if shards["tokenizer_digest"] != tokenizer_digest(ctx.inputs["tokenizer"].path):
        raise NodeError("the shards were made with another tokenizer than this run's: run tokenize again")
    return shards


def data_files(ctx: Context, shards: dict[str, Any]) -> tuple[list[dict], list[dict]]:
    """(train, val) shards of all sources, in the manifest's order, with absolute paths.

    `repeats` is how often an epoch takes each row of a shard, `extra_rows` how many it takes once more.
    """
    train, val = [], []
    for source, entry in shards["sources"].items():
        if source not in ctx.inputs:
            raise NodeError(f"shards.json names the source {source!r}, which this run does not have")
        for part, files in (("train", train), ("val", val)):
            for shard in entry[part]:
                if shard["rows"] * shard["repeats"] + shard["extra_rows"]:
                    known = {key: shard[key] for key in ("rows", "digest", "repeats", "extra_rows")}
                    path = str(ctx.inputs[source].path / shard["file"])
                    files.append({"path": path, "source": source, **known})
    return train, val


def planned(files: Sequence[dict], blocks: int) -> str:
    """How many blocks of each source a training of so many blocks takes, as a Markdown table.

    Exact for whole epochs; of a last, partial one the sources' shares are what a random order gives.
    """
    per_epoch: dict[str, int] = {}
    for file in files:
        per_epoch[file["source"]] = per_epoch.get(file["source"], 0) + continuation.blocks_of(file)
    epoch = sum(per_epoch.values())
    whole, rest = divmod(blocks, epoch)
    lines = [
        f"| source | an epoch | in {whole} whole epochs | in {rest:,} blocks more, about |",
        "|---|---:|---:|---:|",
    ]
    for source, count in [*per_epoch.items(), ("**all**", epoch)]:
        lines.append(f"| {source} | {count:,} | {whole * count:,} | {rest * count / epoch:,.0f} |")
    return "\n".join(lines)


def shares(files: Sequence[dict]) -> dict[str, float]:
    """`mixture/<source>`: the source's share of an epoch's blocks."""
    by_source: dict[str, float] = {}
    epoch = sum(map(continuation.blocks_of, files))
    for file in files:
        name = f"mixture/{file['source']}"
        by_source[name] = by_source.get(name, 0.0) + continuation.blocks_of(file) / epoch
    return by_source


def geometry(model: Model, vocab_size: int) -> dict[str, Any]:
    """The fields of the configuration, for the engine."""
    if model.transformers is not None:
        return {**model.transformers, "vocab_size": vocab_size}
    return {**model.model_dump(mode="json"), "vocab_size": vocab_size}


def beginning(model: Model, vocab_size: int) -> dict[str, Any]:
    """What the engine starts from: fresh weights, or those of a folder."""
    if model.pretrained is not None:
        return {"init_from": str(model.pretrained.absolute())}
    return {"model": geometry(model, vocab_size)}


def rounded_vocab(vocab_size: int | None, tokenizer_size: int) -> int:
    """The model's vocabulary: as set, or the tokenizer's rounded up to a multiple of 64."""
    if vocab_size is None:
        return -(-tokenizer_size // 64) * 64
    if vocab_size < tokenizer_size:
        raise NodeError(
            f"the model's vocab_size is {vocab_size}, but the tokenizer has {tokenizer_size} tokens"
        )
    return vocab_size


def unigram_loss(
    train: Sequence[dict], val: Sequence[dict], vocab_size: int, check: bool = True
) -> float | None:
    """Mean loss on the validation targets of the training text's token frequencies, add-one smoothed.

    Targets are what the engine's are: not padding, not the first token of a document.
    `check`: hash every shard before it is opened; this runs beside the engine and does not wait for its check.
    """
    import numpy as np

    from model.training.shards import ShardFile, repeats_of

    continuation.verify([*train, *val], check)
    counts = np.ones(vocab_size, np.int64)
    for file in train:
        times, row = repeats_of(file["rows"], file["repeats"], file["extra_rows"]), 0
        for batch in ShardFile(Path(file["path"])).batches():
            often = times[row : row + len(batch.valid), None]
            real = batch.positions < batch.valid[:, None]
            for seen in np.unique(often):
                counts += seen * np.bincount(batch.input_ids[real & (often == seen)], minlength=vocab_size)
            row += len(batch.valid)
    logp = np.log(counts) - math.log(counts.sum())
    total, targets = 0.0, 0
    for file in val:
        for batch in ShardFile(Path(file["path"])).batches():
            is_target = batch.positions < batch.valid[:, None]
            is_target[np.repeat(np.arange(len(batch.valid)), np.diff(batch.offsets)), batch.starts] = False
            total -= float(logp[batch.input_ids[is_target]].sum())
            targets += int(is_target.sum())
    return total / targets if targets else None


def _outcome(trained: engine.Trained, unigram: float | None, rows: int) -> Outcome:
    metrics = trained.headline()
    if unigram is not None:
        metrics["unigram_loss"] = unigram
    if "val_loss" in metrics and unigram is not None:
        headline = f"val loss {metrics['val_loss']:.3f} (unigram {unigram:.3f})"
    else:
        headline = f"loss {metrics['final_loss']:.3f}, no validation data"
    speed = f"{metrics.get('tokens', 0):,.0f} tokens at {metrics.get('tokens_per_s', 0):,.0f} a second"
    return Outcome(
        headline=headline,
        counts={"steps": int(trained.last("step") or 0), "rows_per_epoch": rows},
        metrics=metrics,
        extra=trained.execution,
        summary=f"{headline}; {speed}",
    )
