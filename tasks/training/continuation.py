"""A training that goes on from another one: which checkpoint, and which of the shards are new.

    pretrain: {continue_from: {run: 3f2a91c0, step: latest}, steps: 2000}

The parent is a pretrain artifact, or the work folder of one that was stopped. The continued run is a run of its own:
its identity holds the parent's fingerprint and the step, beside its own settings and the digest of the new manifest. It
reads the parent's shards in the parent's order and the new ones behind them, so what was consumed stays consumed and
the unread rest is mixed with what is new (docs/shards.md, "Appending"). Whatever does not fit is refused: a
continuation never starts over.
"""

from __future__ import annotations

import fcntl
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.settings.config import ContinueFrom
from tasks.settings.errors import NodeError
from tasks.training.launch import CONFIG

_FOLDER = re.compile(r"pretrain-([0-9a-f]{16})(\.partial)?")


@dataclass(frozen=True)
class Parent:
    """The run to continue, at the step where it is taken up."""

    folder: Path
    fingerprint: str
    """The 16 hex digits that name its folder: the same while it is unfinished and afterwards."""
    step: int
    checkpoint: Path

    @property
    def identity(self) -> dict[str, str]:
        """What of the parent counts for the child's fingerprint."""
        return {"parent": self.fingerprint, "step": str(self.step)}

    @property
    def files(self) -> list[dict[str, Any]]:
        """The shards it trains on, in its order."""
        return json.loads((self.folder / CONFIG).read_text("utf-8"))["data"]["files"]

    @property
    def loader_state(self) -> dict[str, Any]:
        """Where in the data it was."""
        return json.loads((self.checkpoint / "state.json").read_text("utf-8"))["loader"]


def find(settings: ContinueFrom, artifacts: Path) -> Parent:
    """The parent of a continuation, or NodeError with what there is instead."""
    folder = _folder(settings.run, Path(artifacts).resolve() / "pretrain")
    name = _FOLDER.fullmatch(folder.name)
    if not name:
        raise NodeError(
            f"pretrain.continue_from.run: {folder} is no artifact of pretrain (pretrain-<fingerprint>)"
        )
    if name[2] and _held(folder.with_name(folder.name.removesuffix(".partial") + ".lock")):
        raise NodeError(f"pretrain.continue_from.run: {folder.name} is still being trained; stop it first")
    kept = {
        int(path.name.removeprefix("step-")): path
        for path in sorted((folder / "checkpoints").glob("step-*"))
        if (path / "state.json").is_file()
    }
    if not kept or not (folder / CONFIG).is_file():
        raise NodeError(f"pretrain.continue_from.run: {folder} holds no complete checkpoint to continue from")
    step = max(kept) if settings.step == "latest" else settings.step
    if step not in kept:
        steps = ", ".join(map(str, kept))
        raise NodeError(
            f"pretrain.continue_from.step: {folder.name} keeps no checkpoint of step {step}, only of {steps} "
            "(runtime.keep_checkpoints says how many are kept, pretrain.save_every which)"
        )
    return Parent(folder, name[1], step, kept[step])


def join(
    parent: Sequence[Mapping[str, Any]], present: Sequence[Mapping[str, Any]], on_changed: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """(files for the engine: the parent's in its order, then the new ones; notes for the log).

    `parent` and `present`: [{"path", "source", "rows", "repeats", "extra_rows"?, "digest"}]; a shard is known by its
    digest, wherever it lies now. A shard of the parent that the manifest no longer has means that its source was made
    anew: that is refused, or (`keep`) the parent's shards of that source are read and the new ones of it left out.
    """
    here = {file["digest"]: file for file in present}
    known = {file["digest"] for file in parent}
    changed = sorted({file["source"] for file in parent if file["digest"] not in here})
    if changed and on_changed == "refuse":
        raise NodeError(
            f"the shards of {', '.join(changed)} are not those that the run to continue was trained on: an append adds "
            "shards and changes none. Bring that run's tokenizer and data, and the new data as a source of its own; or "
            "set pretrain.continue_from.on_changed=keep to go on with its shards of these sources"
        )
    old = []
    for file in parent:
        now = here.get(file["digest"], file)
        if _seen(now) != _seen(file):
            raise NodeError(
                f"the weight of {file['source']} has changed since the run to continue: its blocks were planned "
                f"{_seen(file)} times an epoch, now {_seen(now)}; set tokenize.weights back"
            )
        old.append({**now, "source": file["source"]})
    lost = [file["path"] for file in old if not Path(file["path"]).is_file()]
    if lost:
        raise NodeError(f"{len(lost)} shards of the run to continue are gone, such as {lost[0]}")
    new = [dict(file) for file in present if file["digest"] not in known and file["source"] not in changed]
    left_out = sum(file["digest"] not in known and file["source"] in changed for file in present)
    notes = [f"{len(old)} shards of the run to continue, {len(new)} new ones behind them"]
    if changed:
        notes.append(
            f"{', '.join(changed)}: made anew since; the parent's shards are kept and {left_out} new ones left out"
        )
    if not new:
        notes.append("no shard is new: the training is only prolonged")
    return [*old, *new], notes


def tokenizers(files: Sequence[Mapping[str, Any]], check: bool) -> set[str]:
    """Digests of the tokenizers that these shards were made with, in their own words (in a pool worker)."""
    from model.training.shards import tokenizer_of

    verify(files, check)
    return {tokenizer_of(file["path"]) for file in files}


def verify(files: Sequence[Mapping[str, Any]], check: bool = True) -> None:
    """NodeError unless every shard has the content that its digest says: before Arrow opens it."""
    from model.training.shards import ShardError
    from model.training.shards import verify as verify_shard

    try:
        for file in files if check else ():
            verify_shard(file["path"], file["digest"])
    except ShardError as error:
        raise NodeError(str(error)) from None


def steps(
    state: Mapping[str, Any], files: Sequence[Mapping[str, Any]], batch_size: int, epochs: float
) -> int:
    """The step, counted from the parent's start, with which so many epochs are through."""
    from model.training.plan import Plan

    blocks = sum(blocks_of(file) for file in files)
    history = list(state["history"])
    if blocks > history[-1]["blocks"]:
        history.append({"position": state["position"], "blocks": blocks})
    try:
        end = Plan.of_history(state["seed"], history).end(epochs)
    except ValueError as error:
        raise NodeError(f"pretrain.epochs counts from the parent's start: {error}") from None
    return state["step"] + max(0, math.ceil((end - state["position"]) / batch_size))


def blocks_of(file: Mapping[str, Any]) -> int:
    """Blocks of a shard in an epoch."""
    return file["rows"] * file.get("repeats", 1) + (file.get("extra_rows") or 0)


def _seen(file: Mapping[str, Any]) -> str:
    extra = file.get("extra_rows") or 0
    return f"{file.get('repeats', 1)}" + (f" (and {extra} of {file['rows']} rows once more)" if extra else "")


def _folder(run: str, stage: Path) -> Path:
    if "/" in run:
        if not Path(run).is_dir():
            raise NodeError(f"pretrain.continue_from.run: there is no folder {run}")
        return Path(run).resolve()
    folders = sorted(p for p in stage.glob(f"pretrain-{run}*") if p.is_dir() and _FOLDER.fullmatch(p.name))
    prints = {_FOLDER.fullmatch(p.name)[1] for p in folders}
    if len(prints) != 1:
        what = f"{len(prints)} runs begin with {run!r}" if prints else f"there is no run {run!r}"
        known = sorted(
            {m[1] for p in stage.glob("pretrain-*") if p.is_dir() and (m := _FOLDER.fullmatch(p.name))}
        )
        raise NodeError(
            f"pretrain.continue_from.run: {what} in {stage}; there are {', '.join(known) or 'none'}"
        )
    return folders[0]  # the finished one sorts before its .partial


def _held(lock: Path) -> bool:
    """Someone holds this lock: the run is at work."""
    if not lock.exists():
        return False
    with open(lock) as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
