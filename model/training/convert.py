"""A checkpoint as the folder that transformers loads: the export that the training would have made at that step.

    python -m model.training.convert CHECKPOINT FOLDER [--dtype float32|bfloat16]

CHECKPOINT is a folder step-000200, written by any number of ranks. One process on a CPU reads it, and neither the run's
data nor its ranks are needed: the model, the tokenizer's folder and where the weights came from stand in state.json.
Its files are checked before; memory is 4 bytes a parameter and those of one copy in the export's type.
"""

from __future__ import annotations

import argparse
import ctypes
import logging
import os
import signal
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.utils.logging import disable_progress_bar

from model.families import FamilyError, configuration, network
from model.steel.configuration import SteelConfig
from model.steel.modeling import SteelForCausalLM
from model.training.checkpoint import DamagedError, check, read_state
from model.training.config import EXPORT_DTYPES, ConfigError
from model.training.export import TOKENIZER_FILES, write_export

PR_SET_PDEATHSIG = 1
PREFIX = "weight.lm."
"""Of a weight's name in a checkpoint (checkpoint._tensors, of the scorer)."""
OF_AN_EXPORT = (".json", ".safetensors", ".jinja", ".py")
"""Suffixes of an export's files, besides README.md and those of the tokenizer."""


def convert(checkpoint: Path, folder: Path, dtype: str | None = None) -> None:
    """Write the export folder (anew, renamed into place). `dtype`: None is the run's own.

    ConfigError or DamagedError where it cannot be done.
    """
    if not checkpoint.is_dir():
        raise ConfigError(f"there is no checkpoint {checkpoint}")
    folder = folder.resolve()
    _refuse_loss(folder, checkpoint)
    with _Alone():
        check(checkpoint)
    settings = read_state(checkpoint).get("config")
    if settings is None:
        raise ConfigError(f"{checkpoint}: it was written by an engine that kept no settings in it")
    if settings["init_from"] is not None:
        _refuse_loss(folder, Path(settings["init_from"]))
    geometry, lm = _model(settings)
    weights = _weights(checkpoint, lm)
    kind = getattr(torch, dtype or settings["export_dtype"])
    for name, _ in lm.named_parameters():
        weights[name] = weights[name].to(kind)
    folder.parent.mkdir(parents=True, exist_ok=True)
    write_export(folder, geometry, weights, settings["tokenizer_dir"], settings["init_from"])


def _refuse_loss(folder: Path, source: Path) -> None:
    """What is in `folder` will be gone: ConfigError where that is `source`, or anything but an earlier export."""
    kept = source.resolve()
    if folder == kept or folder in kept.parents or kept in folder.parents:
        raise ConfigError(f"{folder} is, holds or lies in {source}, which is read: name another folder")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is no folder")
    there = sorted(folder.iterdir())
    own = [
        path
        for path in there
        if path.is_file()
        and (path.suffix in OF_AN_EXPORT or path.name in TOKENIZER_FILES or path.name == "README.md")
    ]
    if stray := [path.name for path in there if path not in own]:
        raise ConfigError(f"{folder} holds {stray[0]}, which is of no export: name another folder")
    kinds = {path.name for path in own} | {path.suffix for path in own}
    if there and not {"config.json", ".safetensors"} <= kinds:
        raise ConfigError(f"{folder} holds files and is no earlier export: name another folder")


class _Alone:
    """A process group of this process, where there is none."""

    def __enter__(self) -> None:
        self.mine = not dist.is_initialized()
        if self.mine:
            dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)

    def __exit__(self, *_: object) -> None:
        if self.mine:
            dist.destroy_process_group()


def _model(settings: dict[str, Any]) -> tuple[SteelConfig | PreTrainedConfig, PreTrainedModel]:
    """The configuration of the run's model, and the model without storage."""
    fields, folder = dict(settings["model"]), settings["init_from"]
    kind = fields.pop("model_type")
    if kind == SteelConfig.model_type:
        geometry = SteelConfig(**fields)
        with torch.device("meta"):
            return geometry, SteelForCausalLM(geometry)
    if folder is None:
        config = configuration.from_all_fields(kind, fields)
    elif (Path(folder) / "config.json").is_file():
        config = configuration.from_folder(Path(folder))  # special tokens, and names of its own
    else:
        raise ConfigError(
            f"the model that the run began with is not in {folder} any more: its special tokens are there"
        )
    lm = network.build(config)
    return lm.config, lm


def _weights(checkpoint: Path, lm: PreTrainedModel) -> dict[str, Tensor]:
    """Name -> FP32 tensor, in the order of the model; what is kept beside the weights comes last, in its own dtype."""
    wanted = {PREFIX + name: torch.empty(p.shape) for name, p in lm.named_parameters()}
    wanted |= {PREFIX + name: torch.empty_like(tensor) for name, tensor in network.kept(lm).items()}
    try:
        saved = dcp.FileSystemReader(checkpoint).read_metadata().state_dict_metadata
        for name, tensor in wanted.items():
            if getattr(saved.get(name), "size", None) != tensor.shape:
                raise ConfigError(
                    f"{checkpoint}: {name} is missing or has another shape than the run's model"
                )
        dcp.load(wanted, checkpoint_id=checkpoint, no_dist=True)
    except (OSError, EOFError, CheckpointException) as error:
        raise ConfigError(f"{checkpoint} cannot be read: {str(error).partition(chr(10))[0]}") from error
    return {name.removeprefix(PREFIX): wanted.pop(name) for name in list(wanted)}


def die_with(parent: int) -> None:
    """End this process when `parent`, which started it, ends (Linux)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            os._exit(1)


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m model.training.convert", description=__doc__.partition("\n")[0]
    )
    parser.add_argument("checkpoint", type=Path, help="a folder step-… of a training's checkpoints/")
    parser.add_argument(
        "folder", type=Path, help="the folder to make; an earlier export that is there is replaced"
    )
    parser.add_argument(
        "--dtype", choices=EXPORT_DTYPES, help="of the weights (default: the run's export_dtype)"
    )
    parser.add_argument("--parent", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.parent is not None:
        die_with(options.parent)
    logging.basicConfig(format="%(asctime)s %(message)s", level=logging.WARNING)
    warnings.filterwarnings("ignore", category=UserWarning, module=r"torch\.distributed")
    disable_progress_bar()
    try:
        convert(options.checkpoint, options.folder, options.dtype)
    except (ConfigError, DamagedError, FamilyError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{options.folder} holds the model of {options.checkpoint}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
