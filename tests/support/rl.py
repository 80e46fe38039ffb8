"""A tiny model that answers a question rightly about half of the time, and prompts that ask it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from model.tokenizer import TextTokenizer
from model.training.prompts import Prompt, write_prompts
from model.training.shards import Row, write_shard
from tests.support import engine_helpers as tiny

QUESTIONS = "abcdefgh"
RIGHT, WRONG = "yes", "no!"


def base(folder: Path, steps: int = 40) -> Path:
    """A model trained on dialogues `x?` → RIGHT or WRONG, half each; its tokenizer, and prompts.arrow."""
    tokenizer = TextTokenizer.open(tiny.byte_tokenizer(folder / "tokenizer"))
    end = tokenizer.special_id("<|im_end|>")
    random = np.random.default_rng(0)

    def document() -> list[int]:
        question, answer = random.choice(list(QUESTIONS)), random.choice([RIGHT, WRONG])
        return [*tokenizer.encode(f"{question}?"), *tokenizer.encode(answer), end]

    rows = []
    for r in range(64):
        documents = [document() for _ in range(4)]
        tokens = np.concatenate([*documents, [0]])
        starts = np.arange(4, dtype=np.int32) * len(documents[0])
        ids = [r.to_bytes(15, "big") + bytes([k]) for k in range(4)]
        rows.append(Row(tokens.astype(np.uint32), starts, ids, len(tokens) - 1, None))
    write_shard(folder / "a.arrow", rows, tiny.BLOCK, loss_mask=False)
    values = tiny.settings(
        folder, data={"files": [{"path": str(folder / "a.arrow")}]}, steps=steps,
        tokenizer_dir=str(folder / "tokenizer"), optim={"lr": 1e-2, "warmup_steps": 2}, save_every=1000,
    )  # fmt: skip
    assert tiny.engine(values) == 0
    asked = [
        Prompt(f"{q}{n}", tokenizer.encode(f"{q}{'?' * n}"), RIGHT, "exact")
        for q in QUESTIONS
        for n in (1, 2)
    ]
    write_prompts(folder / "prompts.arrow", asked)
    return folder


def settings(base: Path, work: Path, **more: Any) -> dict[str, Any]:
    """Six steps of eight prompts, four replies to each."""
    return tiny.settings(
        work,
        objective="grpo",
        init_from=str(base / "export"),
        tokenizer_dir=str(base / "tokenizer"),
        data={"files": [{"path": str(base / more.pop("prompts", "prompts.arrow"))}]},
        rl={"group": 4, "max_new_tokens": 6, "inner_steps": 2, **more.pop("rl", {})},
        **{
            "batch_size": 8,
            "log_every": 1,
            "optim": {"lr": 1e-3, "warmup_steps": 2, "schedule": "constant"},
            **more,
        },
    )
