"""On equal token ids SFT, DPO and GRPO are TRL's: losses, metrics, gradients and weights over three steps.

TRL is an optional peer (`make peers`); without it these tests are skipped.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from model.training import parallel
from model.training.config import from_dict
from model.training.grpo import Group
from model.training.pairs import Pair, write_pairs
from model.training.reinforce import Trainer
from model.training.shards import Row, write_shard
from tests.support import engine_helpers as tiny

os.environ.setdefault("HF_HUB_OFFLINE", "1")
trl = pytest.importorskip("trl", reason="TRL is an optional peer: make peers installs it")
datasets = pytest.importorskip("datasets")

STEPS = 3
OPTIM = {"lr": 1e-3, "betas": [0.9, 0.999], "weight_decay": 0.0, "warmup_steps": 0, "schedule": "constant"}
END = 258
"""The byte tokenizer's <|im_end|>."""


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """A small stock model with its tokenizer."""
    folder = tmp_path_factory.mktemp("qwen")
    tiny.byte_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.pad_token = "<|endoftext|>"
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=272, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=128, tie_word_embeddings=False, initializer_range=0.2,
        eos_token_id=END, pad_token_id=256, bos_token_id=None,
    )  # fmt: skip
    Qwen2ForCausalLM(config).save_pretrained(folder)
    return folder


def loaded(folder):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), AutoTokenizer.from_pretrained(
        folder
    )


def arguments(work, **more):
    return {
        "output_dir": str(work), "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1,
        "max_steps": STEPS, "learning_rate": OPTIM["lr"], "lr_scheduler_type": "constant", "warmup_steps": 0,
        "weight_decay": 0.0, "max_grad_norm": 1.0, "optim": "adamw_torch", "bf16": False,
        "gradient_checkpointing": False, "use_cpu": True, "save_strategy": "no", "report_to": "none",
        "logging_steps": 1, "disable_tqdm": True, "seed": 0, "disable_dropout": True, **more,
    }  # fmt: skip


def watched(trainer, found):
    """Keep the loss, the gradient's norm and the metrics of each step."""
    log, compute = trainer.log, trainer.compute_loss

    def keep_loss(*args, **kwargs):
        loss = compute(*args, **kwargs)
        found["loss"].append(loss.item())
        return loss

    def keep_log(logs, *args, **kwargs):
        mode = {k: sum(v) / len(v) for k, v in trainer._metrics["train"].items() if v}
        if "grad_norm" in logs:
            found["steps"].append({**mode, "grad_norm": float(logs["grad_norm"])})
        return log(logs, *args, **kwargs)

    trainer.compute_loss, trainer.log = keep_loss, keep_log
    return trainer


def close(ours, theirs, tolerance=1e-5):
    for name, weight in theirs.items():
        np.testing.assert_allclose(ours[name], weight.detach().numpy(), atol=tolerance, rtol=0, err_msg=name)


# ------------------------------------------------------------------------------------------- sft
def uneven_examples(count=8, longest=40):
    """Ids and masks: replies of 1 to 30 tokens behind prompts of any length."""
    rng = np.random.default_rng(1)
    made = []
    for reply in rng.permutation(np.linspace(1, 30, count).astype(int)):
        prompt = rng.integers(2, longest - reply)
        ids = [*rng.integers(0, 255, prompt + reply - 1).tolist(), END]
        made.append((ids, [0] * int(prompt) + [1] * int(reply)))
    return made


@pytest.mark.parametrize(("packed", "micro"), [(False, 2), (True, 1)], ids=["a row each", "packed"])
def test_sft_with_accumulation_is_trls(start, tmp_path, packed, micro):
    examples, length = uneven_examples(), 81
    rows = [
        {"input_ids": ids, "labels": [i if m else -100 for i, m in zip(ids, mask, strict=True)]}
        for ids, mask in examples
    ]
    model, tokenizer = loaded(start)
    found = {"loss": [], "steps": []}
    # all examples in each step, in four micro-batches
    batch = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    given = {k: v for k, v in arguments(tmp_path / "trl", **batch).items() if k != "disable_dropout"}
    trainer = trl.SFTTrainer(
        model=model, args=trl.SFTConfig(**given, max_length=None), processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    watched(trainer, found).train()
    theirs = [sum(found["loss"][4 * s : 4 * s + 4]) for s in range(STEPS)]

    groups = [examples[i : i + 2] if packed else [examples[i]] for i in range(0, 8, 2 if packed else 1)]
    made = []
    for number, group in enumerate(groups):
        ids, mask = (sum((each[part] for each in group), []) for part in (0, 1))
        starts = np.cumsum([0, *(len(each[0]) for each in group[:-1])]).astype(np.int32)
        padding = [0] * (length - len(ids))
        made.append(
            Row(
                np.array([*ids, *padding], np.uint32), starts,
                [bytes([number, k]).rjust(16, b"\0") for k in range(len(group))],
                len(ids), np.array([*mask, *padding], np.uint8),
            )
        )  # fmt: skip
    write_shard(tmp_path / "rows.arrow", made, length - 1, loss_mask=True)
    run = tiny.settings(
        tmp_path / "run", objective="sft", init_from=str(start), tokenizer_dir=str(start), steps=STEPS,
        data={"files": [{"path": str(tmp_path / "rows.arrow")}]}, batch_size=len(made), micro_batch_size=micro,
        optim=OPTIM, log_every=1,
    )  # fmt: skip
    assert tiny.engine(run) == 0

    lines = [line for line in tiny.metrics(tmp_path / "run") if "loss" in line]
    assert [line["loss"] for line in lines] == pytest.approx(theirs, abs=1e-5)
    for line, step in zip(lines, found["steps"], strict=True):
        assert line["grad_norm"] == pytest.approx(step["grad_norm"], rel=1e-4)
    close(tiny.weights(tmp_path / "run"), dict(model.named_parameters()))
    # the mean of the micro-batches' means, which this is not, lies far off
    costs = [unweighted(start, rows[i : i + 2]) for i in range(0, 8, 2)]
    assert abs(float(np.mean(costs)) - theirs[0]) > 1e-3


def unweighted(start, rows):
    """Mean loss over the targets of some examples."""
    model, _ = loaded(start)
    sums = [
        (model(input_ids=torch.tensor([r["input_ids"]]), labels=torch.tensor([r["labels"]])).loss.item(), n)
        for r in rows
        for n in [sum(label != -100 for label in r["labels"])]
    ]
    return sum(loss * n for loss, n in sums) / sum(n for _, n in sums)


# ------------------------------------------------------------------------------------------- dpo
def some_pairs():
    rng = np.random.default_rng(0)
    return [
        Pair(
            str(i),
            rng.integers(0, 255, rng.integers(2, 12)).tolist(),
            [*rng.integers(0, 255, rng.integers(1, 30)).tolist(), END],
            [*rng.integers(0, 255, rng.integers(1, 30)).tolist(), END],
        )
        for i in range(8)
    ]


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ({"loss": "sigmoid"}, {"loss_type": "sigmoid"}),
        ({"loss": "sigmoid_norm", "beta": 2.0}, {"loss_type": "sigmoid_norm", "beta": 2.0}),
        ({"loss": "ipo"}, {"loss_type": "ipo"}),
    ],
    ids=lambda v: v.get("loss", ""),
)
def test_dpo_is_trls(start, tmp_path, ours, theirs):
    pairs = some_pairs()
    rows = [{"prompt_ids": p.prompt, "chosen_ids": p.chosen, "rejected_ids": p.rejected} for p in pairs]

    class Given(trl.DPOTrainer):
        """The ids as they are."""

        def _prepare_dataset(self, dataset, *args, **kwargs):
            return dataset

    model, tokenizer = loaded(start)
    found = {"loss": [], "steps": []}
    config = trl.DPOConfig(**arguments(tmp_path / "trl", **{"beta": 0.1, **theirs}))
    trainer = Given(
        model=model, ref_model=loaded(start)[0], args=config, processing_class=tokenizer,
        train_dataset=datasets.Dataset.from_list(rows),
    )  # fmt: skip
    watched(trainer, found).train()

    write_pairs(tmp_path / "pairs.arrow", pairs)
    data = {"files": [{"path": str(tmp_path / "pairs.arrow")}]}
    shared = {
        "init_from": str(start), "data": data, "batch_size": 8, "optim": OPTIM, "log_every": 1,
        "tokenizer_dir": str(start),
    }  # fmt: skip
    reference = tiny.settings(tmp_path / "ref", objective="logprobs", **{**shared, "steps": None})
    assert tiny.engine(reference) == 0
    dpo = {"beta": 0.1, "reference": str(tmp_path / "ref" / "logprobs.arrow"), **ours}
    assert tiny.engine(tiny.settings(tmp_path / "run", objective="dpo", **shared, steps=STEPS, dpo=dpo)) == 0

    lines = tiny.steps(tmp_path / "run")
    assert [line["loss"] for line in lines] == pytest.approx(found["loss"], rel=1e-5, abs=1e-5)
    for line, step in zip(lines, found["steps"], strict=True):
        for name in ("rewards/chosen", "rewards/rejected", "rewards/margins", "grad_norm"):
            assert line[name] == pytest.approx(step[name], rel=1e-4, abs=1e-5), name
        for name in ("logps/chosen", "logps/rejected"):
            assert line[name] == pytest.approx(step[name], rel=1e-6), name
    # before the first update all pairs tie: TRL's sums leave rounding, ours leave none
    assert lines[0]["rewards/ties"] == 1
    assert lines[0]["rewards/accuracies"] == 0
    for line, step in zip(lines[1:], found["steps"][1:], strict=True):
        assert line["rewards/accuracies"] == step["rewards/accuracies"]
    close(tiny.weights(tmp_path / "run"), dict(model.named_parameters()))


# ------------------------------------------------------------------------------------------ grpo
def rollouts(number, *, zero_variance=False):
    """Two groups of four replies to prompts of one length, other ones in each rollout; one reply has not ended."""
    rng = np.random.default_rng(number)
    groups = []
    for g in range(2):
        prompt = rng.integers(0, 255, 5).tolist()
        replies = [[*rng.integers(0, 255, n).tolist(), END] for n in rng.permutation([1, 3, 6, 9])]
        if g == 0:
            replies[0] = rng.integers(0, 255, 12).tolist()  # cut at the limit
        rewards = [0.0, 1.0, 0.0, 1.0] if g == 0 else [1.0, 0.0, 0.0, 0.0]
        if g == 1 and zero_variance:
            rewards = [1.0] * 4
        groups.append(Group(prompt, replies, rewards, [r[-1] == END for r in replies]))
    return groups


def theirs(start, work, rolled, inner, kl):
    """TRL on the same replies: losses, metrics of each update, weights after each."""
    model, tokenizer = loaded(start)
    model.config._name_or_path = str(start)
    worth = {
        tuple(reply): r for gs in rolled for g in gs for reply, r in zip(g.replies, g.rewards, strict=True)
    }
    asked = iter(rolled)

    def rollout(prompts, trainer):
        groups = next(asked)
        assert len(prompts) == 8
        return {
            "prompt_ids": [g.prompt for g in groups for _ in g.replies],
            "completion_ids": [list(r) for g in groups for r in g.replies],
            "logprobs": None,
        }

    config = trl.GRPOConfig(
        **arguments(work, max_steps=len(rolled) * inner, shuffle_dataset=False),
        num_generations=4, max_completion_length=12, num_iterations=inner, steps_per_generation=1, beta=kl,
        epsilon=0.2, epsilon_high=0.28, loss_type="dapo", scale_rewards="group", mask_truncated_completions=True,
        use_bias_correction_kl=False,
    )  # fmt: skip
    found = {"loss": [], "steps": []}
    trainer = trl.GRPOTrainer(
        model=model, args=config, processing_class=tokenizer, rollout_func=rollout,
        reward_funcs=lambda completion_ids, **_: [worth[tuple(ids)] for ids in completion_ids],
        train_dataset=datasets.Dataset.from_list([{"prompt": "a"}] * 64),
    )  # fmt: skip
    watched(trainer, found).train()
    return found, dict(model.named_parameters())


def ours(start, work, rolled, inner, kl):
    """The engine's own update on the same replies."""
    (work / "x").mkdir(parents=True)
    config = from_dict(
        tiny.settings(
            work, objective="grpo", init_from=str(start), tokenizer_dir=str(start), batch_size=2, steps=len(rolled),
            data={"files": [{"path": str(Path(work) / "x")}]}, optim=OPTIM,
            rl={"group": 4, "max_new_tokens": 12, "inner_steps": inner, "kl_weight": kl},
        )
    )  # fmt: skip
    world = parallel.start(config)
    try:
        trainer = Trainer(config, world)
        lines = [trainer.learn(groups, 2, OPTIM["lr"], step)[0] for step, groups in enumerate(rolled)]
        weights = {
            name: parameter.detach().numpy()  # one CPU rank in FP32 is not sharded
            for name, parameter in trainer.scorer.lm.named_parameters()
        }
    finally:
        torch.distributed.destroy_process_group()
    return lines, weights


@pytest.mark.parametrize(("inner", "kl"), [(1, 0.0), (2, 0.0), (2, 0.1)])
def test_grpo_is_trls(start, tmp_path, inner, kl):
    rolled = [rollouts(n) for n in range(STEPS)]
    found, weights = theirs(start, tmp_path / "trl", rolled, inner, kl)
    lines, mine = ours(start, tmp_path / "run", rolled, inner, kl)

    def each(name):
        steps = [step[name] for step in found["steps"]]
        return [np.mean(steps[i : i + inner]) for i in range(0, len(steps), inner)]

    losses = [np.mean(found["loss"][i : i + inner]) for i in range(0, len(found["loss"]), inner)]
    assert [line["loss"] for line in lines] == pytest.approx(losses, abs=1e-5)
    assert [line["grad_norm"] for line in lines] == pytest.approx(each("grad_norm"), rel=1e-4)
    assert [line["clip_ratio/region_mean"] for line in lines] == pytest.approx(
        each("clip_ratio/region_mean"), abs=1e-6
    )
    if kl:
        assert [line["kl"] for line in lines] == pytest.approx(each("kl"), abs=1e-5)
    if inner > 1:
        assert any(line["clip_ratio/region_mean"] > 0 for line in lines), "the clip had something to do"
    close(mine, weights)


def test_groups_without_signal_are_left_out_of_the_mean(start, tmp_path):
    """TRL divides by the tokens of all replies, here those that teach nothing do not count: a known factor apart."""
    rolled = [rollouts(0, zero_variance=True)]
    found, _ = theirs(start, tmp_path / "trl", rolled, 1, 0.0)
    (line,), _ = ours(start, tmp_path / "run", rolled, 1, 0.0)
    assert found["steps"][0]["frac_reward_zero_std"] == 0.5
    tokens = [sum(len(r) for r, on in zip(g.replies, g.trained, strict=True) if on) for g in rolled[0]]
    assert line["trained_tokens"] == tokens[0]
    assert line["grad_norm"] == pytest.approx(
        found["steps"][0]["grad_norm"] * sum(tokens) / tokens[0], rel=1e-4
    )


def test_advantages_are_trls():
    from model.training.grpo import advantages

    assert advantages([1, *[0] * 7]) == pytest.approx([2.47418, *[-0.35345] * 7], abs=1e-5)
    assert advantages([1, 1, 1, 1, 0, 0, 0, 0]) == pytest.approx([0.93524] * 4 + [-0.93524] * 4, abs=1e-5)
    assert advantages([1, 1]) == [0, 0]
