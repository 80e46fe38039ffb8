"""The model card: README.md of an export folder, in the form that model hubs read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from tasks.figures import style
from tasks.report import environment, reading, tables
from tasks.report.notes import PROTOCOLS
from tasks.report.view import View
from tasks.settings.config import Export, Train

NO_LICENCE = "not stated; ask before publishing weights"


def write(view: View, form: str = "steel", changed: Sequence[str] = ()) -> str:
    """Markdown with the usual front matter: geometry, data, recipe, scores with intervals, limits, how it was made.

    The licence and the base model are those of the run's `export` settings; `form` is one of model.export.forms;
    `changed` is what the run's settings have that its profile has not (tasks.settings.differences).
    """
    export = view.config.export
    lines = [front_matter(view, form, export), "", f"# Steel, profile `{view.config.profile}`", ""]
    lines += [view.lead(), ""] + _continued(view, export)
    lines += _geometry(view) + _data(view) + _recipe(view) + _scores(view) + _limits(view)
    lines += _made(view, changed) + _licences(view)
    return "\n".join(lines).rstrip() + "\n"


def of(view: View, model: str) -> View:
    """The view of one of the run's models (a name of history.exports): what came after it is left out."""
    name = f"sft:{view.variant}" if model == "sft" else model
    variant, dpo, left_out = view.variant, view.dpo, {"dpo:train", "rl:train"}
    if name == "base":
        variant, dpo = None, None
        left_out |= {node for node in view.curves if node.startswith("sft:")}
    elif name.startswith("sft:"):
        if name != f"sft:{variant}":  # one that was not chosen: the others do not concern it
            left_out |= {node for node in view.curves if node.startswith("sft:") and node != name}
        variant, dpo = name.removeprefix("sft:"), None
    elif name == "rl":
        left_out = set()
        if view.config.rl.start == "sft":
            left_out, dpo = {"dpo:train"}, None
    else:
        left_out = {"rl:train"}
    return replace(
        view,
        variant=variant,
        dpo=dpo,
        curves={node: curve for node, curve in view.curves.items() if node not in left_out},
        benchmarks=[row for row in view.benchmarks if row["model"] == name],
        nodes={node: one for node, one in view.nodes.items() if node != "rl:train" or node not in left_out},
    )


def front_matter(view: View, form: str, export: Export) -> str:
    """YAML between `---` lines: what hubs read. `model-index` has each score of the model, its protocol, n, interval."""
    from huggingface_hub import ModelCardData

    languages = sorted({f.language for f in view.funnels} & {"zh", "en"}, reverse=True)
    tags = [
        "steel",
        form,
        *(["soft-moe"] if _is_soft(view) else []),
        *(["llama.cpp"] if form == "gguf" else []),
    ]
    relation = "quantized" if form == "gguf" else "finetune"
    data = ModelCardData(
        license=export.licence or None,
        library_name="gguf" if form == "gguf" else "transformers",
        pipeline_tag="text-generation",
        language=languages or None,
        tags=tags,
        base_model=export.base_model or None,
        base_model_relation=relation if export.base_model else None,
        model_name=f"steel-{view.config.profile}",
        eval_results=_results(view) or None,
    )
    return f"---\n{data.to_yaml()}\n---"


def _results(view: View) -> list[Any]:
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type="text-generation",
            dataset_type=row["benchmark"],
            dataset_name=row["benchmark"],
            metric_type="accuracy",
            metric_name=f"accuracy, {row['protocol']}",
            metric_value=round(row["accuracy"], 4),
            metric_args=_conditions(row),
        )
        for row in _scored(view)
    ]


def _conditions(row: Mapping[str, Any]) -> dict[str, Any]:
    """What a score is to be read with."""
    said = {name: row[name] for name in ("protocol", "version", "protocol_hash", "n") if name in row}
    return {**said, "ci95": [round(end, 4) for end in row["ci95"]]}


def _scored(view: View) -> list[dict[str, Any]]:
    return [row for row in view.benchmarks if row["model"] == view.model and not tables.is_control(row)]


def _is_soft(view: View) -> bool:
    return environment.model_config(view.nodes).get("ffn", "dense") != "dense"


def _continued(view: View, export: Export) -> list[str]:
    if view.config.model.pretrained is None:
        return []
    name = f"`{export.base_model}`" if export.base_model else "another model, which its maker has to name"
    return [f"Its training went on from the weights of {name}.", ""]


def _geometry(view: View) -> list[str]:
    rows = environment.geometry(view.nodes)
    if not rows:
        return []
    return ["## Geometry", "", "| | |", "|---|---:|", *(f"| {what} | {value} |" for what, value in rows), ""]


def _data(view: View) -> list[str]:
    if not view.mix:
        return []
    lines = [
        "## Data",
        "",
        "| source | language | raw records | kept | documents | tokens | weight | licence |",
        "|---|---|---:|---:|---:|---:|---:|---|",
    ]
    funnels = {f.source: f for f in view.funnels}
    for row in view.mix:
        way = funnels.get(row["source"])
        records = f"{style.count(way.records_in)} | {style.count(way.kept)}" if way else "– | –"
        numbers = f"{style.count(row['documents'])} | {style.count(row['tokens'])} | {row['weight']}"
        licence = _licence(view, row["source"])
        lines.append(f"| {row['source']} | {row['language']} | {records} | {numbers} | {licence} |")
    lines += [
        "",
        f"{style.count(view.total.records_in)} raw records, {style.count(view.total.kept)} kept after cleaning,",
    ]
    lines += ["deduplication and decontamination against the benchmarks below.", ""]
    if view.variant and view.mixtures.get(view.variant):
        mixture = view.mixtures[view.variant]
        records = f"; {style.count(mixture['total'])} records" if mixture["total"] else ""
        lines += [f"Instruction tuning: mixture `{view.variant}` ({mixture['asked']}{records}).", ""]
    if view.dpo:
        before, after = style.percent(view.dpo["accuracy_before"]), style.percent(view.dpo["accuracy_after"])
        lines += [
            f"Preference tuning: DPO; preferred replies likelier on {before} → {after} % of held-out pairs.",
            "",
        ]
    return lines


def _scores(view: View) -> list[str]:
    rows = _scored(view)
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
    guessing = f"Guessing gives {reading.guessing(rows)} %."
    return [*lines, "", guessing, "", *(f"- {text}" for text in used), ""]


def _recipe(view: View) -> list[str]:
    """How each training was run that left a curve."""
    settings: dict[str, tuple[str, Train]] = {"pretrain": ("pre-training", view.config.pretrain)}
    if view.variant:
        settings[f"sft:{view.variant}"] = (f"instruction tuning, {view.variant}", view.config.sft.train)
    settings["dpo:train"] = (f"DPO, beta {view.config.dpo.beta:g}", view.config.dpo.train)
    settings["rl:train"] = (f"GRPO, {view.config.rl.group} replies to a prompt", view.config.rl.train)
    made = {*view.curves, *({"rl:train"} & set(view.nodes))}
    rows = []
    for node, (title, train) in settings.items():
        if node in made:
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


def _made(view: View, changed: Sequence[str]) -> list[str]:
    rows = [f"{what} {value}" for what, value in environment.origin(view.nodes)]
    given = " SET='" + " ".join(changed) + "'" if changed else ""
    return [
        "## How it was made",
        "",
        f"`make run PROFILE={view.config.profile}{given}`, seed {view.config.seed} ({'; '.join(rows)}).",
        "",
    ]


def _licences(view: View) -> list[str]:
    lines = ["## Licences of the data", ""]
    for name, source in view.config.sources.items():
        if source.use != "benchmark":
            lines.append(f"- {name} ({source.use}): {_licence(view, name)}")
    return [*lines, ""] if len(lines) > 2 else []


def _licence(view: View, source: str) -> str:
    known = view.config.sources.get(source)
    return (known.licence if known else "") or NO_LICENCE
