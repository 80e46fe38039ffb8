"""The model card: README.md of an export folder, in the form that model hubs read."""

from __future__ import annotations

from tasks.figures import style
from tasks.report import environment, tables
from tasks.report.notes import PROTOCOLS
from tasks.report.view import View


def write(view: View) -> str:
    """Markdown with the usual front matter: data, geometry, scores with intervals, licences."""
    languages = sorted({f.language for f in view.funnels} & {"zh", "en"}, reverse=True)
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation"]
    lines += ["language:", *(f"- {language}" for language in languages)] if languages else []
    lines += ["---", "", f"# Steel, profile `{view.config.profile}`", "", view.lead(), ""]
    lines += _geometry(view) + _data(view) + _scores(view) + _licences(view)
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
        shares = ", ".join(f"{name} × {share:g}" for name, share in view.mixtures[view.variant]["shares"])
        lines += [f"Instruction tuning: mixture `{view.variant}` ({shares}).", ""]
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


def _licences(view: View) -> list[str]:
    lines = ["## Licences of the data", ""]
    for name, source in view.config.sources.items():
        if source.use != "benchmark":
            lines.append(
                f"- {name} ({source.use}): {source.licence or 'not stated; ask before publishing weights'}"
            )
    return [*lines, ""] if len(lines) > 2 else []
