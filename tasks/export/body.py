"""One form of the last model: the folder `export/` with the model, its card and parity.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from model.export.forms import certified
from tasks.figures import history
from tasks.settings.config import PipelineRecipe, Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.work import pool


class Recipe(Section):
    """What decides an export, beside the model."""

    form: str
    dtypes: list[str]
    """Of the GGUF files."""
    fold_cosine: bool
    run: PipelineRecipe
    """For the card. Of its `export` only what the card names."""
    changed: list[str]
    """What the run's settings have that its profile has not, for the card."""


def export(ctx: Context) -> Outcome:
    """Write the form, certify it, and put the card beside it."""
    from tasks.export import card

    recipe: Recipe = ctx.config
    final = history.final_export(ctx.inputs)
    if final is None:
        raise NodeError("there is no trained model to export: sft and pretrain left none")
    name, source = final
    folder = ctx.out / "export"
    ctx.progress(0.1, f"{name} as {recipe.form}, held against what was trained")
    certificate = pool.submit(write, source, folder, recipe.form, recipe.dtypes, recipe.fold_cosine).result()
    ctx.progress(0.9, "its card")
    text = card.write(recipe.run, ctx.inputs, name, recipe.form, certificate, recipe.changed)
    (folder / "README.md").write_text(text, "utf-8")
    files = certified(certificate)
    worst = max(one["max_logit_difference"] for one in files.values())
    return Outcome(
        headline=f"{name} as {recipe.form}, logits within {worst:.1g}",
        counts={"files": sum(path.is_file() for path in folder.rglob("*"))},
        metrics={f"max_logit_difference/{form}": one["max_logit_difference"] for form, one in files.items()},
        extra={"model": name, "form": recipe.form},
        summary=card.certificate_table(certificate),
        files=["export/README.md", "export/parity.json"],
    )


def write(source: Path, folder: Path, form: str, dtypes: list[str], fold_cosine: bool) -> dict[str, Any]:
    """In a worker: it loads torch. NodeError where the model cannot leave so, or does not compute the same."""
    from model.export.forms import FormError
    from model.export.write import write_form

    try:
        return write_form(source, folder, form, dtypes=dtypes, fold_cosine=fold_cosine)
    except FormError as error:
        raise NodeError(f"{form}: {error}") from error
