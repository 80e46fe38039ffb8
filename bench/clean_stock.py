"""Data-Juicer's side of bench.clean, in a process of its own: `python -m bench.clean_stock OUT MODELS FOLDER…`.

Nothing of Steel runs here but the recipe's parameters. Models are found the way Data-Juicer documents
and kept between runs, which it does not do: loading them belongs to start-up.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import yaml

from bench.common import cpu_seconds, emptied
from tasks.clean.recipe import load_set


def main() -> None:
    out, models, *folders = (Path(path).resolve() for path in sys.argv[1:])
    few = emptied(out, "few.jsonl") / "few.jsonl"
    os.environ |= {
        "DATA_JUICER_EXTERNAL_MODELS_HOME": str(models),
        "RAY_USAGE_STATS_ENABLED": "0",
        "HF_DATASETS_CACHE": str(out / "cache"),
    }
    started = cpu_seconds()
    from data_juicer.utils import model_utils

    mapping = model_utils.MODEL_FUNCTION_MAPPING
    for kind in ("sentencepiece", "kenlm"):
        mapping[kind] = cache(mapping[kind])
        mapping[kind](lang="zh")  # here, for the worker processes that are forked from this one
    with (folders[0] / "stock.jsonl").open("rb") as lines:
        few.write_bytes(b"".join(islice(lines, 50)))
    with contextlib.redirect_stdout(io.StringIO()):
        execute(few, out / "warm")
        startup = cpu_seconds() - started
        seconds = []
        for i, folder in enumerate(folders):
            started = cpu_seconds()
            execute(folder / "stock.jsonl", out / str(i))
            seconds.append(cpu_seconds() - started)
    print(json.dumps({"startup": startup, "seconds": seconds}))


def execute(data: Path, out: Path) -> None:
    from data_juicer.config import init_configs
    from data_juicer.core import DefaultExecutor

    recipe = load_set("paper")["text"]
    near = recipe.near_duplicates.model_dump(exclude={"min_similarity", "every_length"})
    steps = [{step.operator: step.settings() or None} for step in recipe.steps]
    steps.append({"document_simhash_deduplicator": {"lowercase": True, **near}})
    config = {
        "project_name": "bench",
        "dataset_path": str(data),
        "export_path": str(out / "records.jsonl"),
        "work_dir": str(out / "work"),
        "np": 1,
        "text_keys": "text",
        "op_fusion": False,
        "open_tracer": False,
        "use_cache": False,
        "use_checkpoint": False,
        "skip_op_error": False,
        "auto_op_parallelism": False,
        "process": steps,
    }
    out.mkdir()
    path = out / "config.yaml"
    path.write_text(yaml.safe_dump(config, allow_unicode=True), "utf-8")
    DefaultExecutor(init_configs(["--config", str(path)])).run()


if __name__ == "__main__":
    main()
