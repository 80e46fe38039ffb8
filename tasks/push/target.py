"""Where a folder goes: `hf:owner/name` or `modelscope:owner/name`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from tasks.settings.errors import NodeError

_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]{0,94}[A-Za-z0-9_])?", re.ASCII)


class PushFailed(RuntimeError):
    """The hub or the network did not do what it was asked; its message is one line and holds no token."""


@dataclass(frozen=True)
class Target:
    hub: Literal["hf", "modelscope"]
    name: str
    """owner/name."""

    def __str__(self) -> str:
        return f"{self.hub}:{self.name}"


def parse(text: str) -> Target:
    """The target that a text names. NodeError in one line where it names none."""
    hub, colon, name = text.strip().partition(":")
    parts = name.split("/")
    if hub not in ("hf", "modelscope") or not colon:
        raise NodeError(f"TO wants hf:owner/name or modelscope:owner/name, not {text.strip()!r}")
    odd = [part for part in parts if not _NAME.fullmatch(part) or "--" in part or ".." in part]
    if len(parts) != 2 or odd or parts[1].endswith(".git"):
        raise NodeError(
            f"TO={hub}:{name} names no repository: owner/name, each of letters, digits, '-', '_' and '.', such as "
            f"{hub}:my-name/my-model"
        )
    return Target(hub, name)  # type: ignore[arg-type]


def without_secret(text: str, *secrets: str | None) -> str:
    """A message of another program without the tokens in it."""
    for secret in filter(None, secrets):
        text = text.replace(secret, "***")
    return _SECRETS.sub(r"\1***", text)


_SECRETS = re.compile(r"(\bhf_|\bms-|\bBearer |m_session_id=)[\w-]{8,}")
"""What looks like one, should a message hold it in part."""
