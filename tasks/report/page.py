"""From the view to report.html: tables and texts are laid out by templates/report.html.j2.

The page needs nothing outside itself: figures are embedded as data, the style sheet is inline, there
is no script. Numbers are formatted here and in `style`, never in the template.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

from tasks.figures import curves, history, inside, style
from tasks.report import (
    environment,
    figures,
    graph_figure,
    notes,
    paper,
    post_training,
    protocol_facts,
    reading,
    tables,
)
from tasks.report.tables import CONTROL_PROTOCOL, SHUFFLED_PROTOCOL
from tasks.report.view import View
from tasks.settings.config import PipelineRecipe

ALT = {
    "funnel": "Share of each source's records that was kept, dropped or quarantined",
    "operators": "Records dropped by operator",
    "mix": "Tokens per epoch by source",
    "pretrain": "Pre-training loss by step",
    "source_loss": "Pre-training loss by step, one line a source",
    "norms": "Norms of gradient and update by group of parameters, and the load of each expert",
    "sft": "Fine-tuning loss by step, one line a variant",
    "dpo": "DPO loss, reward margin and reward accuracy by step",
    "benchmarks": "Accuracy with 95 % intervals by model and benchmark",
}


def draw(view: View) -> dict[str, str]:
    """The figures that the run has numbers for: name -> SVG text."""
    drawings: dict[str, str] = {}
    if view.funnels:
        drawings["funnel"] = figures.funnel_bars(view.funnels)
        if view.total.dropped_total:
            drawings["operators"] = figures.operator_bars(view.total)
    if any(row["seen"] for row in view.mix):
        drawings["mix"] = figures.source_mix(view.mix)
    if "pretrain" in view.curves:
        drawings["pretrain"] = curves.pretrain_loss(
            view.curves["pretrain"], view.unigram, tables.scores_by_step(view.nodes)
        )
        if view.curves["pretrain"].below("loss_by_source"):
            drawings["source_loss"] = inside.source_loss(view.curves["pretrain"])
        if view.curves["pretrain"].below("grad_norm_by_group"):
            loads = history.last_of(view.nodes, "expert_load_by_layer")
            drawings["norms"] = inside.training_norms(view.curves["pretrain"], loads or [])
    variants = {name: curve for name, curve in view.curves.items() if name.startswith("sft:")}
    if variants:
        drawings["sft"] = curves.sft_loss(variants, view.variant)
    if "dpo:train" in view.curves:
        drawings["dpo"] = curves.dpo_curves(view.curves["dpo:train"])
    if view.benchmarks:
        drawings["benchmarks"] = figures.benchmark_dots(view.benchmarks)
    return drawings


def render(view: View, drawings: dict[str, str]) -> str:
    """The whole page."""
    import jinja2

    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader([Path(__file__).parent / "templates", style.TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    jinja.filters.update(
        count=style.count,
        big=style.big,
        percent=style.percent,
        interval=style.interval,
        p=style.p_value,
        duration=style.duration,
    )
    controls = [row for row in view.benchmarks if tables.is_control(row)]
    removed, shuffled = (
        [{**row, "protocol": row["scoring"]} for row in controls if row["protocol"] == control]
        for control in (CONTROL_PROTOCOL, SHUFFLED_PROTOCOL)
    )
    return jinja.get_template("report.html.j2").render(
        view=view,
        fonts=style.FONTS,
        style=style,
        figures={name: _data_uri(svg) for name, svg in drawings.items()},
        alt=ALT,
        dag=graph_figure.draw(view.nodes),
        tiles=tiles(view),
        node_rows=node_rows(view),
        changed=sorted(view.total.changed.items(), key=lambda item: -item[1]),
        curve_rows=curve_rows(view),
        val_by_source=history.last_of(view.nodes, "val_loss_by_source") or {},
        train_by_source=history.last_of(view.nodes, "loss_by_source") or {},
        ablation=matrix(view.ablation, "variant"),
        scores=matrix([row for row in view.benchmarks if not tables.is_control(row)], "model"),
        removed=matrix(removed, "model"),
        shuffled=matrix(shuffled, "model"),
        held_out=matrix([row for row in controls if "scoring" not in row], "model"),
        protocols=protocol_facts.protocols(view.benchmarks),
        facts=(facts := protocol_facts.letters(view.benchmarks, view.model)),
        parsed=any(fact["unparsed"] is not None for fact in facts),
        guessing=reading.guessing(view.benchmarks),
        steps=protocol_facts.steps(tables.scores_by_step(view.nodes)),
        categories=tables.by_category(view.nodes, view.model) if view.model else [],
        titles=paper.TITLES,
        noise=paper.noise(),
        normalised=protocol_facts.readings(view.benchmarks),
        averages=protocol_facts.averages(view.benchmarks),
        paper=paper.beside(view.benchmarks, view.mixtures),
        subjects=tables.by_subject(view.nodes, view.model) if view.model else [],
        geometry=environment.geometry(view.nodes),
        training=environment.training(view.nodes),
        versions=environment.versions(),
        origin=environment.origin(view.nodes),
        reading=reading,
        effect=tables.dpo_details(view.nodes),
        dpo_rows=post_training.dpo_rows(view.nodes),
        rl_rows=post_training.rl_rows(view.nodes),
        caveats=notes.caveats(view),
        config_yaml=config_yaml(view.config),
    )


def tiles(view: View) -> list[dict[str, str]]:
    """The few numbers on top."""
    shown = []
    if view.total.records_in:
        share = style.percent(view.total.kept / view.total.records_in, 0)
        shown.append(
            {
                "label": "records kept",
                "value": style.count(view.total.kept),
                "note": f"{share} % of {style.count(view.total.records_in)}",
            }
        )
    if view.val_loss is not None:
        note = f"unigram model {view.unigram:.2f}" if view.unigram is not None else "nats per token"
        shown.append({"label": "validation loss", "value": f"{view.val_loss:.2f}", "note": note})
    mine = [r for r in view.benchmarks if r["model"] == view.model and not tables.is_control(r)]
    for row in [r for r in mine if r["protocol"] == "cloze"][:3] or mine[:3]:
        note = f"{style.interval(row['ci95'])} · {row['model']}, {row['protocol']}"
        shown.append(
            {"label": row["benchmark"], "value": f"{style.percent(row['accuracy'])} %", "note": note}
        )
    if view.dpo:
        before, after = (style.percent(view.dpo[k]) for k in ("accuracy_before", "accuracy_after"))
        shown.append(
            {
                "label": "chosen reply likelier, by DPO",
                "value": f"{before} → {after} %",
                "note": f"p {_bound(view.dpo['p_value'])} on {style.count(view.dpo['n'])} pairs",
            }
        )
    return shown[:6]


def node_rows(view: View) -> list[dict[str, Any]]:
    """Every node: time, state, what it said of itself."""
    return [
        {
            "name": name,
            "seconds": history.seconds(artifact),
            "state": "reused" if artifact.cached else "made",
            "headline": artifact.manifest.get("headline", ""),
            "fingerprint": artifact.fingerprint[:12],
        }
        for name, artifact in view.nodes.items()
    ]


def curve_rows(view: View) -> list[dict[str, Any]]:
    """First and last loss of every training; smoothed, as drawn."""
    rows = []
    for name, curve in view.curves.items():
        drawn = curves.smooth(curve.loss)
        rows.append(
            {
                "node": name,
                "steps": curve.loss[-1][0],
                "first": curve.loss[0][1],
                "last": drawn[-1][1],
                "val": curve.last_val,
                "seconds": history.seconds(view.nodes[name]),
            }
        )
    return rows


def matrix(rows: list[dict[str, Any]], by: str) -> dict[str, Any]:
    """Long rows as a table: a line per `by`, a column per benchmark and protocol."""
    names = list(dict.fromkeys(row["benchmark"] for row in rows))
    protocols = list(dict.fromkeys(row["protocol"] for row in rows))
    keys = {(row["benchmark"], row["protocol"]) for row in rows}
    columns = [(name, protocol) for name in names for protocol in protocols if (name, protocol) in keys]
    lines: dict[str, dict[tuple[str, str], Any]] = {}
    for row in rows:
        lines.setdefault(row[by], {})[row["benchmark"], row["protocol"]] = row
    sizes = {name: sorted({row["n"] for row in rows if row["benchmark"] == name}) for name in names}
    heads = [
        (
            name,
            "n = " + style.count(sizes[name][0]) if len(sizes[name]) == 1 else "",
            sum(c[0] == name for c in columns),
        )
        for name in names
    ]
    return {
        "heads": heads,
        "columns": columns,
        "same_n": {name: len(sizes[name]) == 1 for name in names},
        "best": {key: _best([line[key] for line in lines.values() if key in line]) for key in columns},
        "lines": [
            {"name": name, "cells": [cells.get(key) for key in columns]} for name, cells in lines.items()
        ],
    }


def _best(rows: list[dict[str, Any]]) -> float | None:
    """The accuracy to set in bold; none where even the best may be guessing."""
    best = max(rows, key=lambda row: row["accuracy"])
    return best["accuracy"] if best["ci95"][0] > tables.chance(best) else None


def config_yaml(config: PipelineRecipe) -> str:
    """The resolved recipe, as a profile would write it."""
    import yaml

    recipe = config.model_dump(mode="json", include=set(PipelineRecipe.model_fields))
    return yaml.safe_dump(recipe, allow_unicode=True, sort_keys=False, width=110)


def headline(view: View) -> str:
    """A few words for the final table."""
    mine = [r for r in view.benchmarks if r["model"] == view.model and not tables.is_control(r)]
    mine = [r for r in mine if r["protocol"] == "cloze"] or mine
    if mine:
        scores = ", ".join(f"{r['benchmark']} {style.percent(r['accuracy'])} %" for r in mine)
        return f"{view.model}: {scores}"
    return f"{style.count(view.total.kept)} of {style.count(view.total.records_in)} records kept"


def _data_uri(svg: str) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(svg.encode()).decode()


def _bound(p: float) -> str:
    text = style.p_value(p)
    return text if text.startswith("<") else f"= {text}"
