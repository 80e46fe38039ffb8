"""What is known of the subjects of C-Eval, CMMLU and MMLU: names for prompts, categories, groups (subjects.yaml).

A subject that is not listed, of a benchmark of one's own, has its own name with spaces, and no category.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

FILE = Path(__file__).with_name("subjects.yaml")


@cache
def table(family: str) -> dict[str, Any]:
    """`categories` (category -> subject -> name), `groups` (group -> subjects), `test` (subject -> questions)."""
    import yaml

    whole: dict[str, Any] = yaml.safe_load(FILE.read_text("utf-8"))
    return {"categories": {}, "groups": {}, "test": {}} | (whole.get(family) or {})


def names(family: str) -> dict[str, str]:
    """Subject -> the name that the benchmark's own prompts use."""
    return {s: name for category in table(family)["categories"].values() for s, name in category.items()}


def prompt_names() -> dict[str, dict[str, str]]:
    """All names that stand in prompts, by family; the digests of few-shot protocols cover them."""
    return {family: names(family) for family in ("ceval", "cmmlu", "mmlu")}


def name(family: str, subject: str) -> str:
    """The name of a subject in a prompt."""
    return names(family).get(subject) or subject.replace("_", " ")


def categories(family: str, subjects: Iterable[str]) -> Mapping[str, list[str]]:
    """Category or group -> those of the subjects that are in it; empty ones are left out."""
    asked = set(subjects)
    known = table(family)
    groups = {**known["categories"], **known["groups"]}
    found = {group: [subject for subject in members if subject in asked] for group, members in groups.items()}
    return {group: members for group, members in found.items() if members}
