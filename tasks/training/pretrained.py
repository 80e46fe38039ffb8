"""The folder of a model to continue from (`model.pretrained`): what of it is in the fingerprint, and its tokenizer."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from tasks.settings.errors import NodeError
from tasks.stage.store import file_digest

WANTED = ("config.json", "generation_config.json", "*.safetensors")


def identity(folder: Path) -> dict[str, str]:
    """File name -> sha256 of what the training starts from. NodeError where it is no model."""
    files = sorted({path for pattern in WANTED for path in folder.glob(pattern)})
    names = [path.name for path in files]
    if "config.json" not in names or not any(name.endswith(".safetensors") for name in names):
        raise NodeError(f"model.pretrained: {folder} holds no model (config.json and *.safetensors)")
    return {f"pretrained/{path.name}": _digest(path, *_state(path)) for path in files}


def hold(folder: Path, tokenizer: Path) -> None:
    """Raise NodeError where a token of the model's own tokenizer has another id in that of the shards."""
    own = folder / "tokenizer.json"
    if not own.is_file():
        return
    from tokenizers import Tokenizer

    ids = Tokenizer.from_file(str(tokenizer / "tokenizer.json")).get_vocab()
    for token, number in Tokenizer.from_file(str(own)).get_vocab().items():
        if ids.get(token) != number:
            here = f"the id {ids[token]}" if token in ids else "no id"
            raise NodeError(
                f"the token {token!r} is {number} to the model in {folder} and has {here} in the shards: they need its "
                "own tokenizer (tokenize.tokenizer=folder, runtime.folders.tokenizer)"
            )


def _state(path: Path) -> tuple[int, int]:
    stat = path.stat()
    return stat.st_size, stat.st_mtime_ns


@lru_cache(maxsize=256)
def _digest(path: Path, size: int, changed: int) -> str:
    """`size` and `changed` are the key: gigabytes are not hashed twice by a process."""
    return file_digest(path)
