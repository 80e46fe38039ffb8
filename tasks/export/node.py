"""The export stage: one node a form of the last model of the run: `export:steel`, and those that `export.forms` names.

Each reads all that the other stages made, for the card.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasks.export.body import Recipe, export
from tasks.report.node import placeless
from tasks.settings import differences
from tasks.settings.config import Export, SteelRun
from tasks.stage.node import Node


def nodes(config: SteelRun, names: Iterable[str]) -> list[Node]:
    """A node for each form; `names` are all other nodes of the run, each an input under its own name."""
    names = list(names)
    # what the card tells of the run; of the settings of this stage only those of the form and of the card count
    named = Export(licence=config.export.licence, base_model=config.export.base_model)
    run = placeless(config.recipe).model_copy(update={"export": named})
    changed = differences.assignments(config.recipe)
    forms = dict.fromkeys(("steel", *config.export.forms)) if config.export.forms else ()
    return [
        Node(
            name=f"export:{form}",
            body=export,
            config=Recipe(
                form=form,
                dtypes={"gguf": config.export.gguf, "ollama": config.export.gguf[:1]}.get(form, []),
                fold_cosine=config.export.fold_cosine,
                run=run,
                changed=changed,
            ),
            inputs={name: name for name in names},
        )
        for form in forms
    ]
