"""Where a model lies: a folder of transformers, the artifact of a training, or a GGUF file. No torch here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

GGUF = ".gguf"


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
        if not any(path.glob("*.safetensors")):
            raise ModelError(f"{path} has no *.safetensors: pickled weights are not read")
        return path, {}
    inside = sorted(path.glob(f"*{GGUF}"))
    if len(inside) == 1:
        return place(inside[0])
    if (path / "export" / "config.json").is_file():  # a training's artifact
        return path / "export", {}
    count = f"{len(inside)} {GGUF} files: name one" if inside else "no config.json"
    raise ModelError(f"{path} has {count}")


def _needs_gguf(path: Path) -> None:
    from importlib.util import find_spec

    missing = [name for name in ("gguf", "accelerate") if find_spec(name) is None]
    if missing:
        raise ModelError(f"{path}: a {GGUF} file needs {' and '.join(missing)} (make peers installs them)")
