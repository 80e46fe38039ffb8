"""The files of an export folder that go to a hub, with size and sha256; and the folders that must not go."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from tasks.settings.errors import NodeError, one_line

CARD = "README.md"
SENT = (
    *("README.md", "LICENSE*", "NOTICE*", "Modelfile", "*.json", "*.jinja", "*.txt", "*.model", "*.py"),
    *("*.safetensors", "*.gguf"),
)
"""Names of files that go; what else lies in the folder stays, and is named. No pickle is among them."""
STATE = (
    "optimizer*",
    "scheduler*",
    "rng_state*",
    "trainer_state*",
    "training_args*",
    "*.distcp",
    "checkpoint*",
)
"""What makes a folder a checkpoint and no export."""
_UNTRACKED = re.compile(r"(^|/)(\.|__pycache__/)")
_PATH = re.compile(r"^(/|~|[A-Za-z]:\\|file:)")


@dataclass(frozen=True)
class File:
    """One file to send."""

    path: str
    """In the repository, with `/`."""
    size: int
    sha256: str
    blob: str
    """The id that git gives to the content: hubs list small files by it."""
    content: Path | bytes


@dataclass(frozen=True)
class Parcel:
    """All that would go, and the names of what stays."""

    files: list[File]
    left_out: list[str]
    licence: str

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files)


def gather(folder: Path, licence: str = "") -> Parcel:
    """Read the folder. `licence` is put into the card's metadata; without it the card has to name one.

    NodeError in one line: no model in it, state of a training, a path of this machine in its settings, no card, no
    licence.
    """
    if not folder.is_dir():
        raise NodeError(f"there is no folder {folder}")
    if licence and not re.fullmatch(r"[a-z0-9][a-z0-9.+-]*", licence):
        raise NodeError(
            f"LICENCE={licence} is no name that hubs know, such as apache-2.0, mit, cc-by-nc-4.0, other"
        )
    found = {
        path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()
    }
    found = {name: path for name, path in found.items() if not _UNTRACKED.search(name)}
    _refuse(folder, found)
    sent = {name: path for name, path in found.items() if _is_sent(name)}
    card, named = _card(folder, found, licence)
    files = [_file(name, card if name == CARD and licence else path) for name, path in sent.items()]
    return Parcel(files, [name for name in found if name not in sent], named)


def _is_sent(name: str) -> bool:
    return any(fnmatch(name.rpartition("/")[2], pattern) for pattern in SENT)


def _refuse(folder: Path, found: dict[str, Path]) -> None:
    parts = {part: name for name in found for part in name.split("/")}
    if state := [name for part, name in parts.items() if any(fnmatch(part, pattern) for pattern in STATE)]:
        raise NodeError(
            f"{folder} is a checkpoint, not an export: it holds {state[0]}; push an export folder"
        )
    weights = [name for name in found if name.endswith((".safetensors", ".gguf"))]
    if not weights or not ("config.json" in found or any(name.endswith(".gguf") for name in weights)):
        raise NodeError(
            f"there is no model in {folder}: neither config.json with safetensors files nor a GGUF file"
        )
    empty = [name for name in weights if found[name].stat().st_size == 0]
    if empty:
        raise NodeError(f"{folder}/{empty[0]} is empty")
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        if name in found and (place := _machine_path(_json(folder / name))):
            raise NodeError(
                f"{folder}/{name} holds a path of this machine ({place[0]}: {place[1]}): take it out before others see it"
            )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text("utf-8"))
    except ValueError as error:
        raise NodeError(f"{path} cannot be read: {one_line(error)}") from error


def _machine_path(value: Any, place: str = "") -> tuple[str, str] | None:
    """The first (place, text) in a tree of JSON that is an absolute path; templates and tokens are no paths."""
    if isinstance(value, dict):
        found = (_machine_path(item, str(key)) for key, item in value.items() if key not in _NO_PATHS)
        return next(filter(None, found), None)
    if isinstance(value, list):
        return next(filter(None, (_machine_path(item, place) for item in value)), None)
    if isinstance(value, str) and _PATH.match(value) and (place.endswith("path") or "/" in value[1:]):
        return place, value
    return None


_NO_PATHS = ("chat_template", "added_tokens_decoder", "additional_special_tokens", "extra_special_tokens")


def _card(folder: Path, found: dict[str, Path], licence: str) -> tuple[bytes, str]:
    """(bytes of the card, the licence it names)."""
    import yaml
    from huggingface_hub import ModelCard

    if CARD not in found:
        raise NodeError(f"{folder} has no {CARD}: a model goes with its card")
    try:
        text = found[CARD].read_text("utf-8")
        card = ModelCard(text, ignore_metadata_errors=False)
        named = licence or card.data.license or ""
    except (ValueError, TypeError, yaml.YAMLError) as error:
        raise NodeError(f"{folder}/{CARD}: its metadata cannot be read: {one_line(error)}") from error
    if not named:
        raise NodeError(
            f"the card names no licence of the weights: LICENCE=apache-2.0 (or another), or export.licence in the "
            f"profile; mind the licences of the data ({folder}/{CARD})"
        )
    return (_with_licence(text, licence).encode() if licence else b""), str(named)


def _with_licence(text: str, licence: str) -> str:
    """The card with this licence in its front matter; nothing else of it changes."""
    line = f"license: {licence}"
    head = re.match(r"\A---\r?\n(.*?)^---\s*$", text, re.S | re.M)
    if head is None:
        return f"---\n{line}\n---\n\n{text}"
    matter, seen = re.subn(r"^license:.*$", line, head[1], count=1, flags=re.M)
    return f"---\n{matter if seen else line + chr(10) + matter}{text[head.end(1) :]}"


def _file(name: str, content: Path | bytes) -> File:
    sha256, blob = hashlib.sha256(), hashlib.sha1()
    if isinstance(content, bytes):
        size, pieces = len(content), [content]
        blob.update(b"blob %d\0" % size)
        for piece in pieces:
            sha256.update(piece)
            blob.update(piece)
    else:
        size = content.stat().st_size
        blob.update(b"blob %d\0" % size)
        with open(content, "rb") as handle:
            while piece := handle.read(1 << 20):
                sha256.update(piece)
                blob.update(piece)
    return File(name, size, sha256.hexdigest(), blob.hexdigest(), content)


def lines(parcel: Parcel, say: Callable[[str], str] = str) -> Sequence[str]:
    """The list for a person: size in bytes, sha256, path."""
    width = max(len(f"{file.size:,}") for file in parcel.files)
    listed = [f"{file.size:>{width},}  {file.sha256}  {say(file.path)}" for file in parcel.files]
    if parcel.left_out:
        listed.append(f"stays here: {', '.join(parcel.left_out)}")
    return listed
