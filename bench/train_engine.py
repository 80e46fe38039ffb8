"""The engine against Hugging Face's Trainer: the same dense model, rows, precision and thread, in CPU seconds.

    python -m bench.train_step --engine [--quick]

The Trainer in its best setting here: FP32 weights under autocast (BF16) or alone (FP32), fused AdamW, scaled-dot-product
attention, and rows packed by positions, from which transformers sees that a document ends. Both deal a step's rows in
micro-batches of 8 and of 2: speed is that of each one's faster setting, memory is compared at the engine's. Each
contender is a process of its own with one thread; a step is all that happens between two of its beginnings, data included.
Memory is the most that the process held beyond what it had loaded, by the kernel's account. Both see the same rows in each
step, so their losses are held against each other; a bench of two different trainings would say nothing.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from bench.common import child, finish, interleaved, spread, table
from bench.steps import forget_peak, result, train, watch

MODEL = {
    "vocab_size": 4096,
    "hidden_size": 256,
    "intermediate_size": 704,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 4,
    "max_position_embeddings": 512,
    "tie_word_embeddings": False,
    "bos_token_id": 0,
    "eos_token_id": 0,
    "pad_token_id": 0,
}
"""A Qwen2 of 5.5 million parameters."""
ROWS, LENGTH, DOCUMENTS = 8, 256, 4
KEYS = {"bf16": "ratio_vs_hf_trainer", "fp32": "ratio_vs_hf_trainer_fp32"}
"""Precision -> the name of its result."""
MICRO = (8, 2)
"""Rows of a micro-batch."""
WARM = 2
"""Steps before the clock counts."""
LEARNING_RATE = 1e-3
CLOSE = 0.02
"""Largest difference of two losses, in nats: BF16 is rounded in other places."""


def compare(*, quick: bool) -> None:
    """Print the table and the JSON."""
    repeats = 1 if quick else 5
    with tempfile.TemporaryDirectory() as folder:
        child("bench.train_engine", "prepare", folder)
        results, rows = {}, []
        for precision, key in KEYS.items():
            # torch's own products in BF16 take seconds on a CPU without instructions for them
            steps = (5 if precision == "bf16" else 8) if quick else 20
            runs = interleaved(
                {
                    (name, micro): partial(child, "bench.train_engine", name, folder, precision, steps, micro)
                    for micro in MICRO
                    for name in ("engine", "trainer")
                },
                repeats,
            )
            _same_training([told[0]["losses"] for told in runs.values()])
            seconds, memory = (
                {each: median(run[of] for run in told) for each, told in runs.items()}
                for of in ("seconds", "memory")
            )
            best = {
                name: min(MICRO, key=lambda micro, name=name: seconds[name, micro])
                for name in ("engine", "trainer")
            }
            fastest = {name: seconds[name, micro] for name, micro in best.items()}
            results[key] = round(fastest["trainer"] / fastest["engine"], 3)
            shares = {micro: round(memory["engine", micro] / memory["trainer", micro], 3) for micro in MICRO}
            results[f"memory_{key}"] = shares[best["engine"]]
            results |= {f"memory_{key}_micro_{micro}": share for micro, share in shares.items()}
            for name, micro in runs:
                told = runs[name, micro]
                rows.append(
                    [
                        f"{name}, {precision}, micro-batches of {micro}{' *' * (best[name] == micro)}",
                        spread([1e3 * run["seconds"] for run in told], 0),
                        f"{memory[name, micro] / 1e6:.0f}",
                        f"{told[0]['losses'][-1]:.4f}",
                    ]
                )
    print(
        f"\nQwen2 of {MODEL['hidden_size']} x {MODEL['num_hidden_layers']}, {ROWS} x {LENGTH} tokens a step, one thread\n"
    )
    print(table(["", "CPU ms a step", "MB", "last loss"], rows))
    print("* the faster setting\n\n" + ", ".join(f"{name} {value}" for name, value in results.items()))
    finish({"bench": "train_engine", **results})


def _same_training(losses: Sequence[Sequence[float]]) -> None:
    for others in losses[1:]:
        for a, b in zip(losses[0], others, strict=True):
            if abs(a - b) > CLOSE:
                raise SystemExit(f"not the same training: losses {losses[0]} and {others}")


# ------------------------------------------------------------------------------- contenders
def prepare(folder: Path) -> None:
    """A model with random weights, and the rows as a shard and as arrays."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from model.training.shards import Row, write_shard

    torch.manual_seed(0)
    Qwen2ForCausalLM(Qwen2Config(**MODEL)).save_pretrained(folder / "model")
    chance, made = np.random.default_rng(0), []
    for row in range(ROWS):
        cuts = chance.choice(np.arange(8, LENGTH - 8), DOCUMENTS - 1, replace=False)
        starts = np.concatenate([[0], np.sort(cuts)]).astype(np.int32)
        tokens = chance.zipf(1.3, LENGTH + 1).clip(max=MODEL["vocab_size"] - 1).astype(np.uint32)
        ids = [bytes([row, document]).rjust(16, b"\0") for document in range(DOCUMENTS)]
        made.append(Row(tokens, starts, ids, LENGTH + 1))
    write_shard(folder / "rows.arrow", made, LENGTH)
    np.savez(
        folder / "rows.npz", tokens=[row.input_ids for row in made], starts=[row.doc_starts for row in made]
    )


def engine(folder: Path, precision: str, steps: int, micro: int) -> dict[str, Any]:
    """Steel."""
    from transformers import Qwen2ForCausalLM  # noqa: F401  loaded before the account begins, as the Trainer's

    from model.training import loop
    from model.training.config import from_dict
    from model.training.run import run
    from model.training.stop import StopFlag

    work = folder / "engine"
    begins = watch(loop.Prefetch, "batch")
    values = {
        "objective": "pretrain",
        "work_dir": str(work),
        "init_from": str(folder / "model"),
        "data": {"files": [{"path": str(folder / "rows.arrow")}], "verify": False},
        "steps": steps,
        "batch_size": ROWS,
        "micro_batch_size": micro,
        "optim": {"lr": LEARNING_RATE, "schedule": "constant", "warmup_steps": 0, "weight_decay": 0.0},
        "precision": precision,
        "device": "cpu",
        "log_every": 1,
        "save_every": 10 * steps,
    }
    before = forget_peak()
    run(from_dict(values), StopFlag())
    lines = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]  # others look into the model
    (work / "metrics.jsonl").unlink()
    return result(begins, before, losses, WARM)


def trainer(folder: Path, precision: str, steps: int, micro: int) -> dict[str, Any]:
    """Hugging Face's Trainer."""
    import torch
    from transformers import Qwen2ForCausalLM, Trainer, TrainingArguments

    with np.load(folder / "rows.npz") as rows:
        tokens, starts = torch.tensor(rows["tokens"].astype(np.int64)), rows["starts"]
    data = []
    for row, begin in zip(tokens, starts, strict=True):
        ends = np.append(begin[1:], LENGTH + 1)
        positions = torch.cat([torch.arange(end - start) for start, end in zip(begin, ends, strict=True)])
        labels = row[1:].clone()
        labels[begin[1:] - 1] = -100  # a document's first token is not predicted
        data.append(
            {"input_ids": row[:-1], "position_ids": positions[:-1], "labels": labels, "shift_labels": labels}
        )
    before = forget_peak()
    model = Qwen2ForCausalLM.from_pretrained(
        folder / "model", attn_implementation="sdpa", dtype=torch.float32
    )
    settings = TrainingArguments(
        output_dir=str(folder / "trainer"),
        use_cpu=True,
        bf16=precision == "bf16",
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=ROWS // micro,
        max_steps=steps,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant",
        weight_decay=0.0,
        adam_beta2=0.95,
        max_grad_norm=1.0,
        optim="adamw_torch_fused",
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
    begins, losses = train(Trainer(model=model, args=settings, train_dataset=data))
    return result(begins, before, losses, WARM)


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.WARNING)
    name, folder, *rest = arguments
    if name == "prepare":
        print(json.dumps(prepare(Path(folder))))
        return
    contender = {"engine": engine, "trainer": trainer}[name]
    print(json.dumps(contender(Path(folder), rest[0], *map(int, rest[1:]))))


if __name__ == "__main__":
    main(sys.argv[1:])
