"""The command that makes a run again says what its settings have that the profile has not."""

import pytest

from flows import preflight
from tasks.settings import profiles
from tasks.settings.differences import assignments


def changed(overrides):
    return assignments(profiles.load("smoke", overrides).recipe)


def test_what_differs_is_told_so_that_make_takes_it():
    assert changed({}) == []
    told = changed(
        {"pretrain": {"steps": 7}, "model": {"ffn": "dense"}, "report": {"generations": ["你 好"]}}
    )
    assert sorted(told) == ["model.ffn=dense", "pretrain.steps=7", 'report.generations=["你 好"]']
    again = profiles.load("smoke", preflight.assignments(" ".join(told)))
    assert assignments(again.recipe) == told


def test_no_place_of_the_machine_and_nothing_of_the_export_is_told():
    assert changed({"export": {"licence": "mit", "forms": ["steel", "qwen2"]}}) == []
    (one,) = changed({"sources": {"skypile": {"options": {"list": "/home/me/data"}}}})
    assert one == "sources.skypile.options.list=…"


@pytest.mark.parametrize("profile", ["none-of-this-name"])
def test_a_profile_that_is_not_here_has_nothing_to_compare(profile):
    recipe = profiles.load("smoke").recipe
    assert assignments(recipe.model_copy(update={"profile": profile, "seed": 7})) == []
