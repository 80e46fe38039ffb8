"""Checkpoints: weights, the optimizer's moments and a few numbers, by torch.distributed.checkpoint.

    checkpoints/step-000200/     one file per rank, .metadata, and state.json

Training waits only for a copy in the host's memory; a thread writes it, flushes it to the disk, hashes it, and renames
step-000200.partial when every rank is done. So a folder without a suffix is complete, and state.json holds the sha256
of every file in it (and of itself), whether all numbers are finite, and the configuration of the run. All of that is
checked before a checkpoint is loaded: a bad one is named and put aside as damaged-step-000200, and the next older one
is taken; where there is none nothing is begun anew, however often the run is started. A folder is renamed to
removed-step-000200 before its files are removed.

A checkpoint can be read by any number of ranks. There is no random state in it: the order of data, the learning rate
and everything else follow from the step.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor

from model.families.network import kept
from model.training.config import ConfigError
from model.training.optim import Optimizer

log = logging.getLogger("steel.training")
NAME = re.compile(r"step-(\d+)")
PARTIAL = ".partial"  # behind the name
REMOVED, DAMAGED = "removed-", "damaged-"  # before it
STATE = "state.json"


class SaveError(RuntimeError):
    """A checkpoint that could not be written, on all ranks alike: one clear line."""


class DamagedError(ValueError):
    """A checkpoint that cannot be used: one clear line."""


class Checkpoints:
    """The checkpoints of one work folder."""

    def __init__(self, folder: Path, keep: int, keep_every: int = 0):
        """Keep the `keep` newest, and those whose step is a multiple of `keep_every` (0: no others)."""
        self.folder, self.keep, self.keep_every = folder, keep, keep_every
        self.held: set[int] = set()
        """Steps whose checkpoints stay until they are taken out of it (first rank)."""
        self.failed = 0
        """Saves that this process has begun and could not finish."""
        self._group: dist.ProcessGroup | None = None
        self._meshes: dict[DeviceMesh, DeviceMesh] = {}
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def complete(self) -> dict[int, Path]:
        """Step -> folder, oldest first."""
        found = {}
        for path in self.folder.glob("step-*"):
            match = NAME.fullmatch(path.name)
            if match and (path / STATE).is_file():
                found[int(match[1])] = path
        return dict(sorted(found.items()))

    def newest(self) -> Path | None:
        """The folder of the newest complete checkpoint."""
        return next(reversed(self.complete().values()), None)

    def newest_sound(self) -> Path | None:
        """The newest checkpoint that can be used (all ranks); None where there never was one. Those that cannot be
        used are named and put aside; ConfigError if no other is left, or was left by an earlier start."""
        first = dist.get_rank() == 0
        if first:
            for path in (*self.folder.glob(REMOVED + "*"), *self.folder.glob("*" + PARTIAL)):
                _clear(path)
        names: list[Any] = (
            [self._published(), len(list(self.folder.glob(DAMAGED + "*")))] if first else [[], 0]
        )
        dist.broadcast_object_list(names)
        published, damaged = names
        for name in reversed(published):
            path = self.folder / name
            try:
                check(path)
                return path
            except DamagedError as error:
                if first:
                    log.error("%s; it is put aside as %s%s, and an older one is taken", error, DAMAGED, name)
                    _replace(path, path.with_name(DAMAGED + name))
                dist.barrier()
        if damaged or published:
            raise ConfigError(
                f"none of the {damaged + len(published)} checkpoints in {self.folder} can be used: remove the folder to "
                f"begin anew"
            )
        return None

    def _published(self) -> list[str]:
        """Names of all folders that were complete once, oldest first."""
        steps = {
            int(match[1]): path.name
            for path in self.folder.glob("step-*")
            if (match := NAME.fullmatch(path.name))
        }
        return [steps[step] for step in sorted(steps)]

    def save(
        self,
        step: int,
        model: nn.Module,
        optimizer: Optimizer,
        state: dict[str, Any],
        spare: int | None = None,
    ) -> None:
        """Begin to write the checkpoint taken before optimizer step `step` (all ranks); what is trained on from here
        does not touch it. The oldest ones go when it is complete, but for the one of step `spare`. Waits for the save
        before."""
        self.wait()
        if self._group is None:
            self._group = dist.new_group(
                backend="gloo"
            )  # the thread's own: messages of two threads may not mix
        tensors = _on_host(_tensors(model, optimizer), self._meshes)
        text = json.dumps({**state, "step": step})
        self._thread = threading.Thread(
            target=self._run, args=(step, tensors, json.loads(text), spare), name="checkpoint", daemon=True
        )
        self._thread.start()

    def wait(self) -> bool:
        """Wait for the save that is under way. False: it has failed, which was logged; the training can go on."""
        if self._thread is not None:
            self._thread.join()
        self._thread, error, self._error = None, self._error, None
        if isinstance(error, SaveError):
            self.failed += 1
            log.error("%s (%d failed so far)", error, self.failed)
            return False
        if error is not None:
            raise error
        return True

    def _run(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], spare: int | None) -> None:
        try:
            self._write(step, tensors, state, spare)
        except BaseException as error:  # noqa: BLE001 - raised by `wait`
            self._error = error

    def _write(self, step: int, tensors: dict[str, Tensor], state: dict[str, Any], spare: int | None) -> None:
        begin = time.perf_counter()
        final = self.folder / f"step-{step:06d}"
        partial = final.with_name(final.name + PARTIAL)
        rank = dist.get_rank()

        def prepare() -> None:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
                partial.mkdir(parents=True)

        def hashes() -> tuple[dict[str, str], bool]:
            mine = [*partial.glob(f"__{rank}_*"), *([partial / ".metadata"] if rank == 0 else [])]
            return {path.name: _sha256(path) for path in mine}, all(map(_finite, tensors.values()))

        def publish() -> None:
            if rank == 0:
                _write_state(partial, state)
                if final.exists():
                    _remove(final)
                partial.rename(final)
                _flush(self.folder)
                if state["finite"]:
                    self._remove_old(spare)

        try:
            self._together(prepare)
            dcp.save(tensors, checkpoint_id=partial, process_group=self._group)
            found = self._together(hashes)
            state["files"] = dict(sorted(item for files, _ in found for item in files.items()))
            state["finite"] = all(finite for _, finite in found)
            self._together(publish)
        except (OSError, CheckpointException) as error:
            if rank == 0:
                shutil.rmtree(partial, ignore_errors=True)
            raise SaveError(f"the checkpoint at step {step} could not be saved: {_reason(error)}") from error
        log.info("checkpoint at step %d (%.1f s)", step, time.perf_counter() - begin)
        if not state["finite"] and rank == 0:
            log.error("the checkpoint at step %d holds numbers that are not finite; older ones stay", step)

    def _together(self, action: Callable[[], Any]) -> list[Any]:
        """Every rank's result of `action`; an OSError of one is raised on all."""
        mine, reason = None, None
        try:
            mine = action()
        except OSError as error:
            reason = str(error)
        results: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(results, (mine, reason), group=self._group)
        reasons = [reason for _, reason in results if reason is not None]
        if reasons:
            raise OSError(reasons[0])
        return [result for result, _ in results]

    def _remove_old(self, spare: int | None) -> None:
        found = self.complete()
        for at in [at for at in found if at != spare][: -self.keep]:
            if at in self.held:
                continue
            if not self.keep_every or at % self.keep_every:
                _remove(found[at])


def read_state(path: Path) -> dict[str, Any]:
    """The numbers of a checkpoint: `step`, `tokens`, `loader`, …; DamagedError where state.json is not what was
    written."""
    try:
        state = json.loads((path / STATE).read_text("utf-8"))
    except (ValueError, OSError) as error:
        raise DamagedError(f"{path}: state.json cannot be read ({error})") from None
    if not _is_state(state):
        raise DamagedError(f"{path}: state.json is no checkpoint's")
    digest = state.pop("digest", None)
    if digest is not None and digest != _state_digest(state):
        raise DamagedError(f"{path}: state.json has changed since it was written")
    return state


def check(path: Path) -> None:
    """Raise DamagedError, on all ranks alike, unless a checkpoint is as it was written and its numbers are finite.
    Each rank reads its share of the files."""
    reason = None
    try:
        state = read_state(path)
        if "files" in state:
            _check_files(path, state)
        elif dist.get_rank() == 0:
            log.warning("%s was written without hashes and settings: it is loaded unchecked", path)
    except DamagedError as error:
        reason = str(error)
    reasons: list[str | None] = [None] * dist.get_world_size()
    dist.all_gather_object(reasons, reason)
    for reason in reasons:
        if reason is not None:
            raise DamagedError(reason)


def load(path: Path, model: nn.Module, optimizer: Optimizer) -> None:
    """Put a checkpoint's weights and moments into model and optimizer (all ranks, any number of them)."""
    tensors = _tensors(model, optimizer)
    try:
        saved = dcp.FileSystemReader(path).read_metadata().state_dict_metadata
        for name, tensor in tensors.items():
            shape = getattr(saved.get(name), "size", None)
            if shape != tensor.shape:
                found = "is missing" if shape is None else f"has the shape {tuple(shape)}"
                raise ConfigError(
                    f"{path}: {name} {found}, this run's model needs {tuple(tensor.shape)}: the checkpoint is of "
                    f"another model or optimizer"
                )
        dcp.load(tensors, checkpoint_id=path)
    except (OSError, EOFError, UnpicklingError, CheckpointException) as error:  # one without hashes
        raise ConfigError(f"{path} cannot be loaded: {_reason(error)}") from None
    state = read_state(path)
    # updates, which AdamW counts
    step = state.get("updates", state["step"] - state.get("skips", {}).get("skipped", 0))
    for parameter in model.parameters():
        if (count := optimizer.state[parameter].get("step")) is not None:
            count.fill_(step)
    log.info("resumed from %s", path)


def _is_state(state: Any) -> bool:
    """Whether it has what is read before its hash can vouch for the rest; one without hashes is of an early version."""
    if not isinstance(state, dict) or not all(isinstance(state.get(key), int) for key in ("step", "tokens")):
        return False
    files, finite = state.get("files", {}), state.get("finite", True)
    return isinstance(files, dict) and isinstance(finite, bool) and ("files" in state) == ("finite" in state)


def _check_files(path: Path, state: dict[str, Any]) -> None:
    if not state["finite"]:
        raise DamagedError(f"{path}: it holds numbers that are not finite")
    for i, (name, digest) in enumerate(state["files"].items()):
        if i % dist.get_world_size() != dist.get_rank():
            continue
        try:
            found = _sha256(path / name)
        except OSError as error:
            raise DamagedError(f"{path}: {name} cannot be read ({error.strerror})") from None
        if found != digest:
            raise DamagedError(f"{path}: {name} has changed since it was written")


def _write_state(folder: Path, state: dict[str, Any]) -> None:
    state = {**state, "digest": _state_digest(state)}
    with open(folder / STATE, "w", encoding="utf-8") as file:
        file.write(json.dumps(state, indent=1, sort_keys=True) + "\n")
        file.flush()
        os.fsync(file.fileno())
    _flush(folder)


def _state_digest(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _flush(folder: Path) -> None:
    """Have the disk keep the names in a folder."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _remove(folder: Path) -> None:
    """Remove a folder that is never seen in part under its name."""
    aside = folder.with_name(REMOVED + folder.name)
    _replace(folder, aside)
    shutil.rmtree(aside)


def _replace(folder: Path, name: Path) -> None:
    _clear(name)
    folder.rename(name)


def _clear(path: Path) -> None:
    """Remove what stands under a name, a file of a stranger's too."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _reason(error: BaseException) -> str:
    """In one line; torch wraps what went wrong on each rank."""
    if isinstance(error, CheckpointException) and error.failures:
        rank, (cause, *_) = next(iter(error.failures.items()))
        return f"rank {rank}: {str(cause).partition(chr(10))[0] or type(cause).__name__}"
    return str(error).partition("\n")[0] or type(error).__name__


def _finite(tensor: Tensor) -> bool:
    local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
    return not local.numel() or all(torch.isfinite(end).item() for end in torch.aminmax(local))


def _on_host(tensors: dict[str, Tensor], meshes: dict[DeviceMesh, DeviceMesh]) -> dict[str, Tensor]:
    """Copies of the same shards in the host's memory. `meshes`: the host's mesh for each device mesh, filled here."""
    copies = {}
    for name, tensor in tensors.items():
        if not isinstance(tensor, DTensor):
            copies[name] = tensor.detach().to("cpu", copy=True)
            continue
        mesh = tensor.device_mesh
        if mesh not in meshes:
            meshes[mesh] = mesh if mesh.device_type == "cpu" else DeviceMesh("cpu", mesh.mesh)
        local = tensor.detach().to_local().to("cpu", copy=True)
        copies[name] = DTensor.from_local(
            local,
            meshes[mesh],
            tensor.placements,
            run_check=False,
            shape=tensor.shape,
            stride=tensor.stride(),
        )
    return copies


def _tensors(model: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """Name -> (sharded) tensor, moments and what is kept beside the weights included; moments that do not exist yet are
    made."""
    optimizer.prepare()
    tensors = {}
    for name, parameter in model.named_parameters():
        tensors[f"weight.{name}"] = parameter.detach()
        moments = {key: value for key, value in optimizer.state[parameter].items() if key != "step"}
        tensors |= {f"{key}.{name}": value for key, value in moments.items()}
    return tensors | {f"weight.{name}": tensor for name, tensor in kept(model).items()}
