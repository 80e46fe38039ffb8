"""Modules that a node reaches and that do not change what it makes; every other one is part of its code version.

A name stands for the module, or for the package with all below it. A wrong entry here leaves stale artifacts
Cached: each has its reason.
"""

from __future__ import annotations

from collections.abc import Iterable

UNCOUNTED = {
    "tasks.stage": "the contract: it runs and records a node, and does not look into the files a node makes",
    "tasks.settings": "what counts of the settings is in each node's config, with its values",
    "tasks.work": "where pieces of work run, and which are found again; what a piece holds is its function's",
    "tasks.training.launch": "starts and watches a training's processes; what is trained is model.training's",
    "tasks.training.usage": "looks at processors and memory",
    "tasks.training.forks": "starts a training's processes; what is trained is model.training's",
    "model.training.forkserver": "forks the processes of a training; what is trained is model.training.run's",
    "model.training.now": "says what a training is at, and makes nothing",
    "model.training.agent": "starts the ranks, and again after a fault; what is trained is model.training.run's",
    "tasks.download.fetch": "every file is checked against the hub's size and digest, however it came",
    "tasks.download.huggingface": "asks a hub; the revision and the files are in the node's config",
    "tasks.download.modelscope": "asks a hub; the revision and the files are in the node's config",
    "tasks.download.web": "asks a server; the addresses are in the node's config",
    "tasks.download.disk": "looks at the room on the disk",
    "tasks.download.first_use": "remembers digests to check later downloads with",
    "tasks.download.local": "takes files as they are; their names and digests are part of the fingerprint",
    "tasks.download.walk": "finds the files of a folder; their names and digests are part of the fingerprint",
    "model.guard": "refuses an installed package that would be in the way",
}
"""Name -> reason."""

CLOSED = ("tasks.stage", "tasks.settings")
"""Of these, what they import themselves does not count either."""


def uncounted(module: str) -> bool:
    """Whether a module, or a package it is in, is listed."""
    return _listed(module, UNCOUNTED)


def closed(module: str) -> bool:
    """Whether the walk ends at a module."""
    return _listed(module, CLOSED)


def _listed(module: str, names: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in names)
