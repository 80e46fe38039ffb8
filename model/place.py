"""Where a model lies: a folder of transformers, the artifact of a training, or a GGUF file; how such a folder is read and
written. No torch here."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

GGUF = ".gguf"
WEIGHTS = "model.safetensors"
INDEX = WEIGHTS + ".index.json"
"""Names the file of every tensor of a model in several files."""


class ModelError(ValueError):
    """A path that holds no model which can be asked: one clear line."""


def files(path: str | Path) -> list[Path]:
    """What decides the answers of the model at a path: configuration, weights, tokenizer, template."""
    folder, more = place(Path(path))
    if more:
        return [folder / more["gguf_file"]]
    patterns = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt", "vocab.txt")
    found = {file for pattern in patterns for file in folder.glob(pattern)}
    return sorted(file for file in found if file.name != "run.json")


def place(path: Path) -> tuple[Path, dict[str, Any]]:
    """(folder, arguments for from_pretrained)."""
    if path.is_file() and path.suffix == GGUF:
        _needs_gguf(path)
        return path.parent, {"gguf_file": path.name}
    if not path.is_dir():
        raise ModelError(f"{path} is neither a folder with a model nor a {GGUF} file")
    if (path / "config.json").is_file():
        weight_files(path)
        return path, {}
    inside = sorted(path.glob(f"*{GGUF}"))
    if len(inside) == 1:
        return place(inside[0])
    if (path / "export" / "config.json").is_file():  # a training's artifact
        return path / "export", {}
    count = f"{len(inside)} {GGUF} files: name one" if inside else "no config.json"
    raise ModelError(f"{path} has {count}")


def weight_files(folder: Path) -> list[Path]:
    """The files that hold a folder's weights, and no other that lies beside them: those of the index, or
    model.safetensors, or the only *.safetensors. ModelError where that is none, or not certain."""
    found = sorted(folder.glob("*.safetensors"))
    if not found:
        raise ModelError(f"{folder} has no *.safetensors: pickled weights are not read")
    if (folder / INDEX).is_file():
        found = _indexed(folder)
        if (folder / WEIGHTS).is_file() and folder / WEIGHTS not in found:
            raise ModelError(
                f"{folder} holds {WEIGHTS} and {INDEX}, which names other files: remove one of them"
            )
    elif (folder / WEIGHTS).is_file():
        found = [folder / WEIGHTS]
    elif len(found) > 1:
        raise ModelError(
            f"{folder} holds {len(found)} files *.safetensors, and neither {WEIGHTS} nor {INDEX} says which is the model"
        )
    for file in found:
        if not file.is_file():
            raise ModelError(f"{folder} has no {file.name}, which {INDEX} names")
    return found


def open_weights(folder: Path) -> dict[str, Any]:
    """Name -> open file (safetensors) of every tensor of the folder; nothing is read yet. ModelError naming what cannot
    be read."""
    place = {}
    for file in weight_files(folder):
        try:
            handle = safe_open(file, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ModelError(f"{file} cannot be read: {error}") from error
        place |= dict.fromkeys(handle.keys(), handle)
    return place


def read_config(folder: Path) -> dict[str, Any]:
    """The parsed config.json. ModelError where there is none."""
    try:
        values = json.loads((folder / "config.json").read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{folder}/config.json cannot be read ({error})") from None
    if not isinstance(values, dict):
        raise ModelError(f"{folder}/config.json must hold an object of named values")
    return values


@contextmanager
def aside(folder: Path) -> Iterator[Path]:
    """Where a model is written: renamed to `folder`, and put in its place, when all of it is there."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield partial
    share_modes(partial)
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def share_modes(folder: Path) -> None:
    """Give every file of a written model the mode of its config.json, the umask's: safetensors writes for the owner's eyes
    only, and a model is for whoever may read the folder."""
    for path in folder.iterdir():
        shutil.copymode(folder / "config.json", path)


def _indexed(folder: Path) -> list[Path]:
    try:
        places = json.loads((folder / INDEX).read_text("utf-8"))["weight_map"]
        return [folder / name for name in sorted(set(places.values()))]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{folder / INDEX} is no index of weights: {error!r}") from error


def _needs_gguf(path: Path) -> None:
    from importlib.util import find_spec

    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(f"{path}: a {GGUF} file needs {' and '.join(missing)} (make peers installs them)")
