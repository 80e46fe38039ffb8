"""The two sides of bench.posttrain, each run as a process of its own:

    python -m bench.posttrain_sides prepare FOLDER VOCABULARY
    python -m bench.posttrain_sides {steel,trl}_{sft,dpo,grpo} FOLDER MICRO STEPS

A side prints one JSON: `seconds` of a step (CPU, median), `memory` in bytes, `losses` of the steps, `units` of a step,
and for GRPO `sampled` tokens of a step.
"""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from bench.byte_tokenizer import byte_tokenizer
from bench.steps import forget_peak, result, train, watch

LENGTH = 256
"""Tokens of a packed row, and of the longest example."""
EXAMPLES, PAIRS, PROMPTS, GROUP, REPLY = 24, 8, 4, 8, 24
WARM = 1
"""Steps before the clock counts."""
INNER = 2
"""GRPO's updates on the same replies."""
OPTIM = {"lr": 1e-4, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_steps": 0, "schedule": "constant"}
PAD, TURN, END = 256, 257, 258
"""The byte tokenizer's special tokens."""


def prepare(folder: Path, vocabulary: int) -> dict[str, Any]:
    """A model with random weights, a tokenizer, and the data in the form that each side reads."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary, hidden_size=256, intermediate_size=704, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=1024, tie_word_embeddings=False, bos_token_id=None,
        eos_token_id=END, pad_token_id=PAD,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder / "model")
    byte_tokenizer(pad_token="<|endoftext|>").save_pretrained(folder / "model")
    data = {"sft": _examples(vocabulary), "dpo": _pairs(vocabulary), "grpo": _prompts()}
    (folder / "data.json").write_text(json.dumps(data))
    return {"rows": _packed(folder, data["sft"])}


def _lengths(chance: np.random.Generator, n: int, middle: float, least: int, most: int) -> list[int]:
    return chance.lognormal(np.log(middle), 0.6, n).clip(least, most).astype(int).tolist()


def _ids(chance: np.random.Generator, n: int, vocabulary: int) -> list[int]:
    found = chance.zipf(1.2, n) % vocabulary
    return np.where((found >= PAD) & (found <= END), 0, found).tolist()


def _examples(vocabulary: int) -> list[dict[str, list[int]]]:
    """Ids, and labels with -100 on the prompt's 40 %."""
    chance, made = np.random.default_rng(0), []
    for length in _lengths(chance, EXAMPLES, 100, 16, LENGTH):
        ids = [*_ids(chance, length - 1, vocabulary), END]
        cut = int(0.4 * length)
        made.append({"input_ids": ids, "labels": [-100] * cut + ids[cut:]})
    return made


def _pairs(vocabulary: int) -> list[dict[str, list[int]]]:
    chance = np.random.default_rng(1)
    return [
        {
            "prompt_ids": _ids(chance, p, vocabulary),
            **{
                name: [*_ids(chance, n - 1, vocabulary), END]
                for name, n in zip(
                    ("chosen_ids", "rejected_ids"), _lengths(chance, 2, 50, 8, 120), strict=True
                )
            },
        }
        for p in _lengths(chance, PAIRS, 80, 16, 128)
    ]


def _prompts() -> list[str]:
    """Of one length, in letters: a token each."""
    chance = np.random.default_rng(2)
    return ["".join(chr(c) for c in chance.integers(97, 123, 48)) for _ in range(PROMPTS)]


def _packed(folder: Path, examples: Sequence[dict[str, list[int]]]) -> int:
    """Rows as the pipeline packs them, filled up to a multiple of the micro-batches with rows without a target."""
    from model.training.shards import Row, write_shard
    from tasks.tokenize.packing import Document, pack_whole

    documents = (
        Document(
            number.to_bytes(16, "big"), np.array(each["input_ids"], np.uint32),
            np.array([label != -100 for label in each["labels"]], np.uint8), 0,
        )
        for number, each in enumerate(examples)
    )  # fmt: skip
    rows = list(pack_whole(documents, LENGTH, PAD))
    while len(rows) % 4:
        like = rows[0]
        rows.append(
            Row(
                np.full_like(like.input_ids, PAD), np.zeros(1, np.int32), [len(rows).to_bytes(16, "little")], 2,
                np.zeros_like(like.loss_mask), None if like.doc_sources is None else np.zeros(1, np.uint8),
            )
        )  # fmt: skip
    write_shard(folder / "rows.arrow", rows, LENGTH, loss_mask=True)
    return len(rows)


# ---------------------------------------------------------------------------------------- Steel
def steel_sft(folder: Path, micro: int, steps: int) -> dict[str, Any]:
    from model.training import loop
    from model.training.shards import ShardFile

    begins = watch(loop.Prefetch, "batch")
    data = folder / "rows.arrow"
    before = forget_peak()
    losses = _engine(folder, "sft", data, ShardFile(data).rows, steps, micro_batch_size=micro)
    labels = [x for each in _data(folder, "sft") for x in each["labels"][1:]]
    return _result(begins, before, losses, sum(x != -100 for x in labels))


def steel_dpo(folder: Path, micro: int, steps: int) -> dict[str, Any]:
    from model.training import loop
    from model.training.pairs import Pair, write_pairs

    data = folder / "pairs.arrow"
    pairs = _data(folder, "dpo")
    write_pairs(
        data,
        [
            Pair(str(i), p["prompt_ids"], p["chosen_ids"], p["rejected_ids"])
            for i, p in enumerate(pairs)
        ],
    )  # fmt: skip
    _engine(folder, "logprobs", data, len(pairs), None, micro_batch_size=micro)
    reference = {"beta": 0.1, "reference": str(folder / "logprobs" / "logprobs.arrow")}
    begins = watch(loop.Prefetch, "batch")
    before = forget_peak()
    losses = _engine(folder, "dpo", data, len(pairs), steps, micro_batch_size=micro, dpo=reference)
    return _result(begins, before, losses, len(pairs))


def steel_grpo(folder: Path, micro: int, steps: int) -> dict[str, Any]:
    from model.training import reinforce
    from model.training.grpo import Group
    from model.training.prompts import Prompt, write_prompts

    def group(self: Any, prompt: Any, replies: Sequence[Any]) -> Group:
        sampled.append(sum(len(r.ids) for r in replies))
        return Group(
            prompt=prompt.prompt, replies=[r.ids for r in replies], rewards=[_coin(r.ids) for r in replies],
            trained=[True] * len(replies), logps=[r.logps for r in replies],
        )  # fmt: skip

    sampled: list[int] = []
    reinforce.Sampler._group = group  # type: ignore[method-assign]
    begins = watch(reinforce.Sampler, "refresh")
    data = folder / "prompts.arrow"
    prompts = [list(text.encode()) for text in _data(folder, "grpo")]
    write_prompts(data, [Prompt(str(i), _bytes(p), "a", "exact") for i, p in enumerate(prompts)])
    rl = {"group": GROUP, "max_new_tokens": REPLY, "inner_steps": INNER, "mask_truncated": False}
    before = forget_peak()
    _engine(folder, "grpo", data, len(prompts), steps + 1, rl=rl)
    return {**_result(begins, before, [], PROMPTS * GROUP), "sampled": sum(sampled) / (steps + 1)}


def _bytes(text: Sequence[int]) -> list[int]:
    """Ids of letters in the tokenizer."""
    from tokenizers import pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return [letters.index(chr(byte)) for byte in text]


def _engine(
    folder: Path, objective: str, data: Path, batch: int, steps: int | None, **more: Any
) -> list[float]:
    """Run the engine; the losses of its steps."""
    from model.training.config import from_dict
    from model.training.run import run
    from model.training.stop import StopFlag

    work = folder / objective
    values = {
        "objective": objective, "work_dir": str(work), "init_from": str(folder / "model"),
        "tokenizer_dir": str(folder / "model"), "data": {"files": [{"path": str(data)}], "verify": False},
        "steps": steps, "batch_size": batch, "optim": OPTIM, "precision": "fp32", "device": "cpu", "log_every": 1,
        "detail_every": 0, "save_every": 1000, **more,
    }  # fmt: skip
    (work / "metrics.jsonl").unlink(missing_ok=True)
    if run(from_dict(values), StopFlag()):
        raise RuntimeError(f"the engine did not finish {objective}")
    lines = [json.loads(x) for x in (work / "metrics.jsonl").read_text().splitlines()]
    return [x["loss"] for x in lines if "loss" in x]


# ------------------------------------------------------------------------------------------ TRL
def trl_sft(folder: Path, micro: int, steps: int) -> dict[str, Any]:
    import trl
    from datasets import Dataset

    model, tokenizer = _loaded(folder)
    examples = _data(folder, "sft")
    before = forget_peak()
    trainer = trl.SFTTrainer(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(examples),
        args=trl.SFTConfig(
            **_arguments(folder, micro, 10_000, steps), packing=True, packing_strategy="bfd", max_length=LENGTH
        ),
    )  # fmt: skip
    begins, losses = train(trainer)
    labels = [x for each in examples for x in each["labels"][1:]]
    return _result(begins, before, losses, sum(x != -100 for x in labels))


def trl_dpo(folder: Path, micro: int, steps: int) -> dict[str, Any]:
    import trl
    from datasets import Dataset

    class Given(trl.DPOTrainer):
        """The ids as they are."""

        def _prepare_dataset(self, dataset: Any, *_: Any, **__: Any) -> Any:
            return dataset

    model, tokenizer = _loaded(folder)
    pairs = _data(folder, "dpo")
    before = forget_peak()
    trainer = Given(
        model=model, processing_class=tokenizer, train_dataset=Dataset.from_list(pairs),
        args=trl.DPOConfig(
            **_arguments(folder, micro, len(pairs) // micro, steps), beta=0.1, precompute_ref_log_probs=True,
            disable_dropout=True, max_length=None,
        ),
    )  # fmt: skip
    begins, losses = train(trainer)
    return _result(begins, before, losses, len(pairs))


def trl_grpo(folder: Path, micro: int, steps: int) -> dict[str, Any]:
    import trl
    from datasets import Dataset

    def reward(completion_ids: Sequence[Sequence[int]], **_: Any) -> list[float]:
        sampled.append(sum(map(len, completion_ids)))
        return [_coin(ids) for ids in completion_ids]

    sampled: list[int] = []
    model, tokenizer = _loaded(folder)
    model.config._name_or_path = str(folder / "model")
    before = forget_peak()
    prompts = [{"prompt": text} for text in _data(folder, "grpo")]
    trainer = trl.GRPOTrainer(
        model=model, processing_class=tokenizer, reward_funcs=reward, train_dataset=Dataset.from_list(prompts),
        args=trl.GRPOConfig(
            **_arguments(folder, PROMPTS * GROUP, 1, (steps + 1) * INNER), num_generations=GROUP,
            max_completion_length=REPLY, num_iterations=INNER, steps_per_generation=1, beta=0.0, epsilon=0.2,
            epsilon_high=0.28, loss_type="dapo", mask_truncated_completions=False, disable_dropout=True,
        ),
    )  # fmt: skip
    begins, _ = train(trainer)
    return {
        **_result(begins[::INNER], before, [], PROMPTS * GROUP),
        "sampled": sum(sampled) / len(sampled),
    }


def _loaded(folder: Path) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(
        folder / "model", dtype=torch.float32, attn_implementation="sdpa", trust_remote_code=False
    )
    return model, AutoTokenizer.from_pretrained(folder / "model", trust_remote_code=False)


def _arguments(folder: Path, micro: int, accumulation: int, steps: int) -> dict[str, Any]:
    return {
        "output_dir": str(folder / "trl"), "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": accumulation, "max_steps": steps, "learning_rate": OPTIM["lr"],
        "lr_scheduler_type": "constant", "warmup_steps": 0, "weight_decay": 0.0, "max_grad_norm": 1.0,
        "optim": "adamw_torch_fused", "bf16": False, "gradient_checkpointing": False, "use_cpu": True,
        "save_strategy": "no", "report_to": "none", "logging_steps": 1, "disable_tqdm": True, "seed": 0,
    }  # fmt: skip


# --------------------------------------------------------------------------------------- shared
def _coin(ids: Sequence[int]) -> float:
    """A reward that half of all replies get."""
    return float(sum(ids) % 2)


def _data(folder: Path, name: str) -> Any:
    return json.loads((folder / "data.json").read_text())[name]


def _result(begins: Sequence[float], before: int, losses: list[float], units: int) -> dict[str, Any]:
    return {**result(begins, before, losses, WARM), "units": units}


def main(arguments: list[str]) -> None:
    logging.basicConfig(level=logging.WARNING)
    name, folder, *rest = arguments
    found = globals()[name](Path(folder), *map(int, rest))
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1:])
