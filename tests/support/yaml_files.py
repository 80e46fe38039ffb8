"""The files of deployments/, read."""

from __future__ import annotations

from typing import Any

import yaml

from flows.settings import ROOT

DEPLOYMENTS = ROOT / "deployments"


def documents(name: str) -> list[Any]:
    return list(yaml.safe_load_all((DEPLOYMENTS / name).read_text("utf-8")))


def text(name: str) -> str:
    return (DEPLOYMENTS / name).read_text("utf-8")
