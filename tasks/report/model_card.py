"""The model card: README.md of an export folder, in the form that model hubs read."""

from __future__ import annotations

from tasks.figures import style
from tasks.report import environment, tables
from tasks.report.notes import PROTOCOLS
from tasks.report.view import View
from tasks.settings.config import Train


def write(view: View) -> str:
    """Markdown with the usual front matter: geometry, data, recipe, scores with intervals, limits, how it was made."""
    languages = sorted({f.language for f in view.funnels} & {"zh", "en"}, reverse=True)
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["language:", *(f"- {language}" for language in languages)] if languages else []
    lines += ["---", "", f"# Steel, profile `{view.config.profile}`", "", view.lead(), ""]
    lines += _geometry(view) + _data(view) + _recipe(view) + _scores(view) + _limits(view) + _made(view)
    lines += _licences(view)
    return "\n".join(lines).rstrip() + "\n"


def _geometry(view: View) -> list[str]:
    rows = environment.geometry(view.nodes)
    if not rows:
        return []
    return ["## Geometry", "", "| | |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows), ""]


def _data(view: View) -> list[str]:
    if not view.mix:
        return []
    lines = ["## Data", "", "| source | language | documents | tokens | weight |", "|---|---|---:|---:|---:|"]
    for row in view.mix:
        numbers = f"{style.count(row['documents'])} | {style.count(row['tokens'])} | {row['weight']}"
        lines.append(f"| {row['source']} | {row['language']} | {numbers} |")
    lines += [
        "",
        f"{style.count(view.total.records_in)} raw records, {style.count(view.total.kept)} kept after cleaning,",
    ]
    lines += ["deduplication and decontamination against the benchmarks below.", ""]
    if view.variant and view.mixtures.get(view.variant):
        lines += [
            f"Instruction tuning: mixture `{view.variant}` ({view.mixtures[view.variant]['asked']}).",
            "",
        ]
    if view.dpo:
        before, after = style.percent(view.dpo["accuracy_before"]), style.percent(view.dpo["accuracy_after"])
        lines += [
            f"Preference tuning: DPO; preferred replies likelier on {before} → {after} % of held-out pairs.",
            "",
        ]
    return lines


def _scores(view: View) -> list[str]:
    rows = [row for row in view.benchmarks if row["model"] == view.model and not tables.is_control(row)]
    if not rows:
        return []
    lines = [
        f"## Scores of {view.model}",
        "",
        "| benchmark | protocol | accuracy, % | 95 % interval | n |",
        "|---|---|---:|---:|---:|",
    ]
    for row in rows:
        numbers = (
            f"{style.percent(row['accuracy'])} | {style.interval(row['ci95'])} | {style.count(row['n'])}"
        )
        lines.append(f"| {row['benchmark']} | {row['protocol']} | {numbers} |")
    used = [PROTOCOLS[p] for p in dict.fromkeys(row["protocol"] for row in rows) if p in PROTOCOLS]
    return [*lines, "", "Guessing gives 25 %.", "", *(f"- {text}" for text in used), ""]


def _recipe(view: View) -> list[str]:
    """How each training was run that left a curve."""
    settings: dict[str, tuple[str, Train]] = {"pretrain": ("pre-training", view.config.pretrain)}
    if view.variant:
        settings[f"sft:{view.variant}"] = (f"instruction tuning, {view.variant}", view.config.sft.train)
    settings["dpo:train"] = (f"DPO, beta {view.config.dpo.beta:g}", view.config.dpo.train)
    rows = []
    for node, (title, train) in settings.items():
        if node in view.curves:
            length = f"{style.count(train.steps)} steps" if train.steps else f"{train.epochs:g} epochs"
            rate = f"{train.optim.lr:g}, {train.optim.schedule}"
            rows.append(
                f"| {title} | {length} | {train.batch_size} | {rate} | {train.optim.weight_decay:g} |"
            )
    if not rows:
        return []
    head = [
        "| training | length | batch | learning rate, schedule | weight decay |",
        "|---|---:|---:|---:|---:|",
    ]
    blocks = f"AdamW; pre-training in blocks of {style.count(view.config.tokenize.block_size)} tokens."
    return ["## Recipe", "", *head, *rows, "", blocks, ""]


def _limits(view: View) -> list[str]:
    """What a reader must not expect."""
    context = environment.model_config(view.nodes).get("max_position_embeddings")
    lines = ["- It says what its data say, and invents the rest: check what matters."]
    if context:
        lines.append(f"- Prompt and answer share a context of {style.count(context)} tokens.")
    if any(source.hub == "demo" for source in view.config.sources.values()):
        lines.append(
            "- Its data are a small generated world of facts: it knows these facts and nothing else, and its scores say "
            "nothing about general knowledge."
        )
    if not view.variant:
        lines.append("- It was only pre-trained: it continues texts and knows no turns of a dialogue.")
    lines.append("- Nothing was done to make it safe: it was not trained to refuse.")
    return ["## Limits", "", *lines, ""]


def _made(view: View) -> list[str]:
    rows = [f"{what} {value}" for what, value in environment.origin(view.nodes)]
    return [
        "## How it was made",
        "",
        f"`make run PROFILE={view.config.profile}`, seed {view.config.seed} ({'; '.join(rows)}).",
        "",
    ]


def _licences(view: View) -> list[str]:
    lines = ["## Licences of the data", ""]
    for name, source in view.config.sources.items():
        if source.use != "benchmark":
            lines.append(
                f"- {name} ({source.use}): {source.licence or 'not stated; ask before publishing weights'}"
            )
    return [*lines, ""] if len(lines) > 2 else []
