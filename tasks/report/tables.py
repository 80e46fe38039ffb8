"""The numbers of post-training: benchmark scores, the SFT ablation, DPO before and after.

Scores come from the evaluate nodes as they are. What is added here is the paired test: a variant and
the base model answered the same questions, so McNemar's test on the discordant ones is used, never
two overlapping intervals.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tasks.figures.history import Nodes, read_lines, units
from tasks.settings.config import PipelineRecipe, Variant
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact

CHANCE = 0.25
"""Four options."""
CONTROL_PROTOCOL = "options-only"
SHUFFLED_PROTOCOL = "options-shuffled"
HELD_OUT = "held-out"
"""Part of the name of a benchmark of facts that no training text states."""
FIELDS = ("model", "benchmark", "protocol", "accuracy", "n", "ci95")
MORE_FIELDS = (
    *(
        "scoring",
        "macro",
        "average",
        "score",
        "version",
        "protocol_hash",
        "form",
        "family",
        "chance",
        "letters",
    ),
    *("unparsed", "agreement", "readings", "same", "prompts_cut", "shots_dropped"),
)
"""What some rows of results.json have, too."""


def model_name(unit: str) -> str:
    """Unit of an evaluate node -> the name of the model in summary.json (`sft-exp4` → `sft:exp4`)."""
    return f"sft:{unit[4:]}" if unit.startswith("sft-") else unit


def model_order(config: PipelineRecipe) -> list[str]:
    """untrained (start, where a model is continued), base, the SFT variants as the profile lists them, dpo, rl."""
    first = "start" if config.model.pretrained else "untrained"
    return [first, "base", *(f"sft:{variant}" for variant in config.sft.variants), "dpo", "rl"]


def is_control(row: Mapping[str, Any]) -> bool:
    return row["protocol"] in (CONTROL_PROTOCOL, SHUFFLED_PROTOCOL) or HELD_OUT in row["benchmark"]


def chance(row: Mapping[str, Any]) -> float:
    """What guessing gives."""
    return row.get("chance", CHANCE)


def benchmarks(config: PipelineRecipe, nodes: Nodes) -> list[dict[str, Any]]:
    """All scores of all models, models in the order of training."""
    rows = []
    for unit, artifact in _models(nodes).items():
        for row in artifact.read_json("results.json"):
            missing = [name for name in FIELDS if name not in row]
            if missing:
                raise NodeError(f"evaluate:{unit}: results.json has a row without {', '.join(missing)}")
            kept = {name: row[name] for name in (*FIELDS, *MORE_FIELDS) if name in row}
            kept["model"] = model_name(str(row["model"]))
            rows.append(kept)
    return sorted(rows, key=lambda row: model_order(config).index(row["model"]))


def _models(nodes: Nodes) -> dict[str, Artifact]:
    """The evaluate nodes that asked a model, by unit."""
    return {unit: node for unit, node in units(nodes, "evaluate").items() if unit != "checkpoints"}


def scores_by_step(nodes: Nodes) -> list[dict[str, Any]]:
    """curve.jsonl of evaluate:checkpoints: step, tokens, and an accuracy for each benchmark and protocol."""
    node = nodes.get("evaluate:checkpoints")
    return list(read_lines(node.path / "curve.jsonl")) if node else []


def by_subject(nodes: Nodes, model: str) -> list[dict[str, Any]]:
    """For each benchmark a table of one model: subjects, protocols, accuracies; last the subjects' mean."""
    rows = [
        row
        for unit, artifact in _models(nodes).items()
        if model_name(unit) == model
        for row in artifact.read_json("results.json")
        if row.get("subjects") and not is_control(row)
    ]
    tables = []
    for name in dict.fromkeys(row["benchmark"] for row in rows):
        mine = [row["subjects"] for row in rows if row["benchmark"] == name]
        names = [subject for subject in mine[0] if all(subject in cells for cells in mine)]
        lines = [
            {"subject": s, "accuracies": [cells[s]["accuracy"] for cells in mine], "n": mine[0][s]["n"]}
            for s in names
        ]
        means = [sum(cells[s]["accuracy"] for s in names) / len(names) for cells in mine]
        lines.append(
            {"subject": "mean of subjects", "accuracies": means, "n": sum(line["n"] for line in lines)}
        )
        protocols = [row["protocol"] for row in rows if row["benchmark"] == name]
        tables.append({"benchmark": name, "protocols": protocols, "lines": lines})
    return tables


def by_category(nodes: Nodes, model: str) -> list[dict[str, Any]]:
    """The categories of the known benchmarks, of one model: mean of subjects, over questions, n."""
    return [
        {"benchmark": row["benchmark"], "protocol": row["protocol"], "category": category, **cell}
        for unit, artifact in _models(nodes).items()
        if model_name(unit) == model
        for row in artifact.read_json("results.json")
        if not is_control(row)
        for category, cell in row.get("categories", {}).items()
    ]


def compare(of: Artifact, against: Artifact, benchmark: str, protocol: str) -> dict[str, Any]:
    """A model (a) against another (b) on the same questions: n, accuracy_a, accuracy_b, p_value …"""
    from tasks.evaluate.statistics import paired

    files = (read_lines(artifact.path / "answers.jsonl") for artifact in (of, against))
    return paired(*files, benchmark=benchmark, protocol=protocol)


def ablation(nodes: Nodes, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The paper's Table 3: one row for each variant, benchmark and protocol."""
    evaluated = {model_name(unit): artifact for unit, artifact in _models(nodes).items()}
    base = evaluated.get("base")
    table = []
    for row in rows:
        if not row["model"].startswith("sft:") or is_control(row):
            continue
        variant = row["model"][4:]
        which = (row["benchmark"], row["protocol"])
        p = compare(evaluated[row["model"]], base, *which)["p_value"] if base else None
        manifest = mixture_digest(nodes[f"sft:{variant}"]) if f"sft:{variant}" in nodes else None
        table.append(
            {
                "variant": variant,
                **{name: row[name] for name in ("benchmark", "protocol", "accuracy", "n", "ci95")},
                "p_vs_base": p,
                "manifest": manifest,
            }
        )
    return table


def mixture_digest(artifact: Artifact) -> str | None:
    """sha256 of the list of record ids that a variant was trained on (its mixture.jsonl)."""
    for entry in artifact.manifest.get("files", []):
        if Path(entry["path"]).name == "mixture.jsonl":
            return entry["sha256"]
    return None


def mixtures(config: PipelineRecipe, nodes: Nodes) -> dict[str, dict[str, Any]]:
    """Variant -> its mixture in words; how many records of each set it took, with how many supervised tokens in which
    language, and the digest of their ids."""
    by_variant = {}
    for name, variant in config.sft.variants.items():
        node = nodes.get(f"sft:{name}")
        taken: dict[str, int] = node.manifest["extra"].get("mixture", {}) if node else {}
        targets: dict[str, dict[str, int]] = node.manifest["extra"].get("targets", {}) if node else {}
        by_variant[name] = {
            "note": variant.note,
            "asked": asked(variant),
            "records": taken,
            "targets": targets,
            "digest": node.manifest["extra"].get("mixture_digest", "") if node else "",
            "total": sum(taken.values()),
        }
    return by_variant


def asked(variant: Variant) -> str:
    """A variant's mixture in words."""
    parts = [f"{name} × {share:g}" for name, share in variant.mixture.items()]
    parts += [f"{name}: {count:,} records" for name, count in variant.counts.items()]
    if variant.zh_share is not None:
        parts.append(f"thinned to {100 * variant.zh_share:g} % of Chinese")
    return ", ".join(parts)


def dpo(nodes: Nodes) -> dict[str, Any] | None:
    """Share of held-out pairs whose chosen reply is likelier, before and after."""
    if "dpo:train" not in nodes:
        return None
    values = nodes["dpo:train"].read_json("dpo.json")
    shown = ("accuracy_before", "accuracy_after", "n", "p_value", "reward_accuracy")
    return {name: values[name] for name in shown if name in values}


def dpo_details(nodes: Nodes) -> dict[str, Any]:
    """What else is known of the effect: intervals, pairs gained and lost."""
    return nodes["dpo:train"].read_json("dpo.json") if "dpo:train" in nodes else {}
