"""Every field explains itself: the Prefect form shows each description alone."""

import re

import pytest

from tasks.settings import config
from tasks.settings.profiles import Overrides

SECTIONS = [
    value
    for value in vars(config).values()
    if isinstance(value, type) and issubclass(value, config.Section) and value is not config.Section
]
FIELDS = [(section, name) for section in SECTIONS for name in section.model_fields]
BEGINS = re.compile(r"[A-Z]|`[^`]+`")


def complaint(text: str | None) -> str | None:
    """What is wrong with a description, or None."""
    if not text or not text.strip():
        return "missing"
    if not BEGINS.match(text):
        return "begins with neither a capital letter nor a `code word`"
    return None if text.endswith(".") else "does not end with a full stop"


def test_all_sections_are_looked_at():
    assert {"SteelRun", "Train", "Runtime", "Ablation", "Folders"} <= {s.__name__ for s in SECTIONS}
    assert len(FIELDS) > 100


@pytest.mark.parametrize("section", SECTIONS, ids=lambda s: s.__name__)
def test_every_field_of_a_section_has_a_description_of_its_own(section):
    complaints = {n: complaint(i.description) for n, i in section.model_fields.items()}
    assert not {name: text for name, text in complaints.items() if text}
    assert section.__doc__
    assert section.__doc__ != config.Section.__doc__


@pytest.mark.parametrize(
    "text", [None, "", "  ", "at so many places of each row.", "Seeds", "lr falls at the end."]
)
def test_descriptions_that_would_be_refused(text):
    assert complaint(text)


def test_the_form_shows_them():
    shown = {}
    for definition in Overrides.model_json_schema()["$defs"].values():
        for name, field in definition.get("properties", {}).items():
            shown.setdefault(name, set()).add(field.get("description"))
    for section, name in FIELDS:
        if section not in (config.SteelRun, config.PipelineRecipe):
            assert section.model_fields[name].description in shown[name], (section.__name__, name)
