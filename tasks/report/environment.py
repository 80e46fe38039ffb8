"""What was run on what: geometry and size of the model, versions, ranks, precision."""

from __future__ import annotations

import json
import math
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

from tasks.figures.history import Nodes
from tasks.figures.style import big, count

PACKAGES = ("torch", "transformers", "pyarrow", "py-data-juicer", "prefect", "mlflow", "matplotlib")
TRAINING_FACTS = (
    "ranks",
    "threads_per_rank",
    "device",
    "precision",
    "micro_batch_size",
    "compile",
    "tokens_per_s",
)


def model_config(nodes: Nodes) -> dict[str, Any]:
    """config.json of the exported base model; empty when nothing was trained."""
    path = nodes["pretrain"].path / "export" / "config.json" if "pretrain" in nodes else None
    return json.loads(path.read_text("utf-8")) if path and path.exists() else {}


def parameters(export: Path) -> int:
    """Number of weights in a folder of safetensors files, read from their headers alone."""
    total = 0
    for path in sorted(export.glob("*.safetensors")):
        with open(path, "rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        total += sum(math.prod(t["shape"]) for name, t in header.items() if name != "__metadata__")
    return total


def geometry(nodes: Nodes) -> list[tuple[str, str]]:
    """The model in a few lines: (what, value)."""
    config = model_config(nodes)
    if not config:
        return []
    rows = [("parameters", count(n))] if (n := parameters(nodes["pretrain"].path / "export")) else []
    ffn = config.get("ffn")
    if ffn:
        experts = f", {config.get('num_experts')} experts" if ffn != "dense" else ""
        rows.append(("feed-forward", f"{ffn}{experts}, {config.get('expert', '')}".rstrip(", ")))
    for key, label in (
        ("num_hidden_layers", "layers"),
        ("hidden_size", "width"),
        ("num_attention_heads", "attention heads"),
        ("num_key_value_heads", "key/value heads"),
        ("vocab_size", "vocabulary"),
    ):
        if key in config:
            rows.append((label, count(config[key])))
    if "tie_word_embeddings" in config:
        rows.append(("embeddings", "tied" if config["tie_word_embeddings"] else "untied"))
    return rows


def training(nodes: Nodes) -> tuple[list[str], list[tuple[str, list[str]]]]:
    """How the trainings were executed, as their manifests say it: (columns, [(node, facts)])."""
    facts_of = {}
    for name, artifact in nodes.items():
        known = {**artifact.manifest.get("extra", {}), **artifact.manifest.get("metrics", {})}
        if "ranks" in known:
            facts_of[name] = {key: known[key] for key in TRAINING_FACTS if key in known}
    columns = [key for key in TRAINING_FACTS if any(key in facts for facts in facts_of.values())]
    return columns, [(name, [_fact(facts.get(key)) for key in columns]) for name, facts in facts_of.items()]


def _fact(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return big(value) if isinstance(value, float) else str(value)


def versions() -> list[tuple[str, str]]:
    """Python and the packages that decide results, where they are installed."""
    rows = [("Python", platform.python_version())]
    for package in PACKAGES:
        try:
            rows.append((package, metadata.version(package)))
        except metadata.PackageNotFoundError:  # a report can be made where not every stage can run
            continue
    return rows


def origin(nodes: Nodes) -> list[tuple[str, str]]:
    """Host, platform, version and commit of the nodes, as their manifests have them: (what, value)."""
    hosts = sorted({h for a in nodes.values() if (h := a.manifest.get("host"))})
    made = [artifact.manifest for artifact in nodes.values()]
    commits = sorted({_short(commit) for m in made if (commit := m.get("code_commit"))})
    releases = sorted({release for m in made if (release := m.get("steel_version"))})
    rows = [("platform", f"{platform.system()} {platform.machine()}")]
    rows += [("made on", ", ".join(hosts))] if hosts else []
    rows += [("version", ", ".join(releases))] if releases else []
    rows += [("code", ", ".join(commits))] if commits else []
    return rows


def _short(commit: str) -> str:
    """Twelve digits of a commit, and whether the files differed from it."""
    digits, dash, mark = commit.partition("-")
    return digits[:12] + dash + mark
