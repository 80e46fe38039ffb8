"""compare:table: all models side by side, as one JSON document, Markdown and a page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import orjson

from tasks.compare import contamination, document
from tasks.compare.answer import IDENTITY, answers_of
from tasks.settings.config import Section
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome
from tasks.stage.store import file_digest

NUMBERS, PAGE, TEXT = "truth-table.json", "compare.html", "truth-table.md"
TEMPLATE = Path(__file__).parent / "templates" / "compare.html.j2"


class Recipe(Section):
    """What stands in the table."""

    models: list[str]
    benchmarks: list[str]
    profile: str
    """Shown on the page."""


def body(ctx: Context) -> Outcome:
    """Read every model's answers; write truth-table.{json,md} and compare.html."""
    recipe: Recipe = ctx.config
    if not recipe.models:
        raise NodeError("there is no model to compare: give MODELS='name=path name=path'")
    models = {}
    for name in recipe.models:
        artifact = ctx.inputs[f"model:{name}"]
        models[name] = {
            **artifact.read_json(IDENTITY),
            "rows": artifact.read_json("results.json"),
            "answers": answers_of(artifact),
        }
    digests = {
        name: file_digest(ctx.inputs[f"questions:{name}"].path / "questions.jsonl")
        for name in recipe.benchmarks
    }
    searched = ctx.inputs["texts"].read_json(contamination.FILE) if "texts" in ctx.inputs else None
    told = document.document(models, digests, searched, {"profile": recipe.profile})
    costs = {name: cost_of(ctx.inputs[f"model:{name}"].manifest) for name in recipe.models}
    (ctx.out / NUMBERS).write_bytes(orjson.dumps(told, option=orjson.OPT_INDENT_2) + b"\n")
    text = markdown(told, costs)
    (ctx.out / TEXT).write_text(text, "utf-8")
    (ctx.out / PAGE).write_text(page(told, costs), "utf-8")
    return Outcome(
        headline=f"{len(models)} models, {sum(len(m['answers']) for m in models.values()):,} answers",
        metrics={
            f"accuracy/{name}/{row['benchmark']}/{row['protocol']}": row["accuracy"]
            for name, model in told["models"].items()
            for row in model["rows"]
            if not row.get("scoring")
        },
        summary=text,
        files=[NUMBERS, TEXT, PAGE],
    )


def cost_of(manifest: Mapping[str, Any]) -> dict[str, float]:
    """Tokens asked, seconds and CPU seconds of the workers, of a model's manifest."""
    return {
        key.removeprefix("cost/"): value
        for key, value in manifest.get("metrics", {}).items()
        if key.startswith("cost/")
    }


WORDS = ("model", "a", "b", "benchmark", "protocol", "more")
"""Columns of text; the others are numbers, to the right."""
HEAD = ("model", "benchmark", "protocol", "accuracy", "95 % interval", "macro", "n", "more")


def lines(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The rows of the table as text, control rows behind what they control."""
    found: list[tuple[str, ...]] = []
    for name, model in told["models"].items():
        for row in model["rows"]:
            low, high = (100 * x for x in row["ci95"])
            protocol = row["protocol"] + (f" ({row['scoring']})" if row.get("scoring") else "")
            cells = (
                f"{100 * row['accuracy']:.1f} %",
                f"{low:.1f} to {high:.1f} %",
                f"{100 * row['macro']:.1f} %",
            )
            found.append((name, row["benchmark"], protocol, *cells, f"{row['n']:,}", "; ".join(_more(row))))
    return found


def _more(row: Mapping[str, Any]) -> list[str]:
    """What only some rows have to say."""
    said = []
    if "favourite" in row:
        said.append(f"{row['favourite']} taken {100 * row['favourite_share']:.0f} %")
    if "same" in row:
        said.append(f"same option in every order {100 * row['same']:.0f} %")
    if "parse_rate" in row:
        said.append(
            f"replies read {100 * row['parse_rate']:.0f} %, refused {100 * row['refusal_rate']:.0f} %"
        )
    if "agreement" in row:
        said.append(f"as the first token {100 * row['agreement']:.0f} %")
    if "readings" in row:
        said.append(", ".join(f"{name} {100 * value:.1f} %" for name, value in row["readings"].items()))
    if row.get("held", {}).get("n"):
        held, other = row["held"], row["not_held"]
        rest = "none" if other["accuracy"] is None else f"{100 * other['accuracy']:.1f} %"
        said.append(
            f"in the training text {100 * held['accuracy']:.1f} % of {held['n']}, others {rest} of {other['n']} "
            f"(p = {row['held_p_value']:.2g})"
        )
    if "prompts_cut" in row:
        said.append(f"{row['prompts_cut']} prompts cut")
    return said


PAIRED = ("a", "b", "benchmark", "protocol", "a − b", "only a right", "only b right", "p (McNemar)")


def pair_lines(told: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """The paired tests as text."""
    return [
        (
            *(pair[key] for key in ("a", "b", "benchmark", "protocol")),
            f"{100 * (pair['accuracy_a'] - pair['accuracy_b']):+.1f}",
            str(pair["only_a"]),
            str(pair["only_b"]),
            f"{pair['p_value']:.3g}",
        )
        for pair in told["pairs"]
    ]


def cost_lines(costs: Mapping[str, Mapping[str, float]]) -> list[tuple[str, ...]]:
    """Cost as text; a model that was asked before has the cost of then."""
    return [
        (
            name,
            f"{cost.get('tokens', 0):,.0f}",
            f"{cost.get('seconds', 0):,.1f}",
            f"{cost.get('cpu_seconds', 0):,.1f}",
        )
        for name, cost in costs.items()
    ]


COST = ("model", "tokens asked", "seconds", "CPU seconds")


def markdown(told: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]]) -> str:
    """All tables for a terminal and for Prefect."""
    parts = [_table(HEAD, lines(told))]
    if told["pairs"]:
        parts.append(_table(PAIRED, pair_lines(told)))
    parts.append(_table(COST, cost_lines(costs)))
    return "\n\n".join(parts) + f"\n\nsha256 of {NUMBERS}: {told['sha256']}\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(row) + " |" for row in cells)


def page(told: Mapping[str, Any], costs: Mapping[str, Mapping[str, float]]) -> str:
    """The self-contained page."""
    import jinja2

    from tasks.figures import style

    jinja = jinja2.Environment(
        loader=jinja2.FileSystemLoader([TEMPLATE.parent, style.TEMPLATES]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    tables = [
        ("Scores", HEAD, lines(told)),
        ("Two by two, on the same questions", PAIRED, pair_lines(told)),
        ("Cost", COST, cost_lines(costs)),
    ]
    return jinja.get_template(TEMPLATE.name).render(
        fonts=style.FONTS,
        style=style,
        profile=told["profile"],
        tables=tables,
        words=WORDS,
        sha256=told["sha256"],
    )
