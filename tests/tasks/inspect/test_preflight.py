"""What can be known before any work: each kind of late failure is refused early, and the shipped profiles pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tasks import dag
from tasks.inspect import preflight
from tasks.settings import profiles
from tasks.settings.config import STAGES, Dpo
from tasks.settings.errors import NodeError


def lines(
    overrides: dict, gpus: int = 0, profile: str = "smoke", stages: tuple[str, ...] = STAGES
) -> list[str]:
    return list(preflight.complaints(profiles.load(profile, overrides), stages, gpus))


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("profile", profiles.names())
def test_every_shipped_profile_deals_every_batch(profile: str, gpus: int) -> None:
    if profile == "compare":
        pytest.skip("it trains nothing")
    if profile.startswith("smollm2") and not Path(".steel/smollm2").exists():
        pytest.skip("its folder is made by whoever wants to run it: .steel/smollm2")
    assert lines({}, gpus, profile) == []
    assert lines({}, gpus, profile, (*STAGES[:4], "ablation")) == []


@pytest.mark.parametrize(
    ("overrides", "gpus", "words"),
    [
        ({"runtime": {"nproc": 5}}, 0, "cannot be shared evenly by 5 ranks"),
        ({"runtime": {"micro_batch_size": 4}}, 0, "no multiple of micro_batch_size 4"),
        ({"runtime": {"nproc": None}}, 4, "pretrain: batch_size 6"),
        ({"runtime": {"sft_nproc": 3}}, 0, "sft: batch_size 8"),
        ({"runtime": {"parallel": {"replicate": 3}}}, 0, "dpo: parallel.replicate 3 does not divide 1 ranks"),
        ({"dpo": {"train": {"batch_size": 5}}, "runtime": {"sft_nproc": 2}}, 0, "dpo: batch_size 5"),
        ({"runtime": {"device": "cuda"}}, 0, "no GPU"),
        ({"runtime": {"attention": "flash_attention_2"}}, 0, "GPUs only"),
        ({"runtime": {"attention": "varlen"}}, 0, "GPUs only"),
        ({"pretrain": {"float8": "rowwise"}}, 0, "pretrain.float8 is rowwise, which needs a GPU"),
        ({"sft": {"train": {"float8": "rowwise"}}}, 0, "set sft.train.float8=off"),
        (
            {"dpo": {"train": {"float8": "rowwise"}}, "runtime": {"device": "cpu"}},
            1,
            "set dpo.train.float8=off",
        ),
        ({"runtime": {"attention": "flash_attention_2"}}, 1, "not installed"),
        ({"runtime": {"kernels": "on"}}, 0, "GPUs only"),
        (
            {"tokenize": {"block_size": 4096}, "model": {"max_position_embeddings": 256}},
            0,
            "tokenize.block_size",
        ),
        ({"sft": {"max_tokens": 2000, "packed_tokens": 2000}}, 0, "sft.max_tokens is 2000"),
        ({"dpo": {"max_tokens": 2000}}, 0, "dpo.max_tokens is 2000"),
        ({"dpo": {"max_tokens": 1000}}, 0, "dpo.max_tokens and dpo.trait_tokens together is 1047"),
        ({"rl": {"max_new_tokens": 500}}, 0, "twice rl.max_new_tokens together is"),
        ({"model": {"vocab_size": 512}}, 0, "fewer than the tokenizer's"),
        ({"sft": {"variants": {"plain": {"mixture": {"nothing_here": 1.0}}}}}, 0, "is no source"),
        (
            {"sft": {"variants": {"plain": {"mixture": {"skypile": 1.0}}}}},
            0,
            "whose use is pretrain, not sft",
        ),
        (
            {"sft": {"variants": {"plain": {"mixture": None, "counts": {"nothing_here": 5}}}}},
            0,
            "is no source",
        ),
        (
            {"sft": {"variants": {"more": {"mixture": {"demo_qa_zh": 1.0}, "zh_share": 0.5}}}},
            0,
            "sft.variants.more.zh_share is 0.5, and all of its data sets are Chinese",
        ),
        (
            {"sft": {"variants": {"more": {"mixture": {"demo_qa_en": 1.0}, "zh_share": 0.5}}}},
            0,
            "none of its data sets is Chinese",
        ),
        ({"dpo": {"mixture": {"demo_qa_zh": 1.0}}}, 0, "whose use is sft, not preference"),
    ],
)
def test_late_failures_are_refused_early(overrides: dict, gpus: int, words: str) -> None:
    complaints = lines(overrides, gpus)
    assert [line for line in complaints if words in line], complaints
    with pytest.raises(NodeError, match="\n".join(complaints[:1])[:20]):
        preflight.refuse(profiles.load("smoke", overrides), STAGES, gpus)


@pytest.mark.parametrize(
    ("section", "field", "values"),
    [
        ("pretrain.optim", "betas", ([0.9, 1.0], [1.5, 0.9], [-0.1, 0.9], [0.9, "nan"])),
        ("pretrain.optim", "lr", (0, -1, "inf", "nan")),
        ("sft.train.optim", "eps", (0, -1e-8)),
        ("dpo.train.optim", "weight_decay", (-0.1, "nan")),
        ("pretrain.optim", "grad_clip", (-1, "inf")),
        ("pretrain.optim", "warmup_steps", (-1,)),
        ("pretrain.optim", "min_lr_ratio", (-0.1, 1.5)),
        ("pretrain.optim", "z_loss", (-1,)),
        ("dpo.train.optim", "z_loss", (1e-4,)),
        ("rl.train.optim", "z_loss", (1e-4,)),
        ("rl.train.optim", "max_skipped", (2,)),
        ("pretrain.optim", "spike_factor", (3,)),
        ("pretrain", "log_every", (0,)),
        ("sft.train", "save_every", (0, -1)),
        ("dpo.train", "eval_every", (-1,)),
        ("model", "rope_theta", (0, -1, "nan")),
        ("model", "initializer_range", (0, -0.02, "inf")),
        ("model", "embedding_multiplier", (0,)),
        ("dpo", "beta", (0, -0.1, "nan")),
        ("dpo", "max_tokens", (0, 1, -5)),
        ("dpo", "zh_per_en", (0, -4)),
        ("dpo", "held_out", (-1,)),
        ("evaluate", "protocols", ([], ["cloze", "cloze"])),
        ("evaluate", "benchmarks", (["demo_exam", "demo_exam"],)),
        ("evaluate", "batch_tokens", (0,)),
        ("clean.assets", "sources", ([],)),
        ("clean.assets", "max_chars", (0,)),
        ("clean", "trace_examples", (-1,)),
        ("ablation", "kinds", ([], ["dense", "token", "dense"])),
        ("ablation", "seeds", ([], [1, 2, 1], [-1], [1 << 63])),
        ("runtime.endpoints", "huggingface", ([], ["mirror.example"])),
        ("runtime", "profile_steps", ([5, 2], [0, 1], [1], [1, 2, 3])),
        ("runtime", "export_steps", ([0], [5, -1])),
        ("runtime", "watchdog_seconds", (-1, 1e13, "nan")),
        ("runtime", "backend_timeout_seconds", (0, 1e15)),
        ("sources.skypile", "files", ([],)),
        ("", "seed", (-1, 1 << 64)),
    ],
)
def test_numbers_and_lists_that_no_stage_can_use(section: str, field: str, values: tuple) -> None:
    for value in values:
        overrides: dict = {field: value}
        for part in reversed(section.split(".") if section else []):
            overrides = {part: overrides}
        with pytest.raises(NodeError, match=field) as refused:
            profiles.load("smoke", overrides)
        assert "\n" not in str(refused.value)


def test_a_given_tokenizer_or_model_that_is_none_is_known_before(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "tokenizer.json").write_text("{", "utf-8")
    halves = tmp_path / "halves"
    halves.mkdir()
    (halves / "vocab.json").write_text("[]", "utf-8")
    (halves / "merges.txt").write_text("", "utf-8")
    for folder, words in ((empty, "holds no tokenizer"), (broken, "no JSON"), (halves, "cannot be read")):
        overrides = {"tokenize": {"tokenizer": "folder"}, "runtime": {"folders": {"tokenizer": str(folder)}}}
        assert [line for line in lines(overrides) if words in line], folder
    for folder in (None, str(empty), str(tmp_path / "nowhere")):
        overrides = {"clean": {"assets": {"models": "folder"}}, "runtime": {"folders": {"models": folder}}}
        assert "runtime.folders.models" in " ".join(lines(overrides))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"model_type": "qwen2", "num_hidden_layers": -1}, "num_hidden_layers"),
        ({"model_type": "qwen2", "hidden_size": "16"}, "hidden_size"),
        (
            {"model_type": "qwen2", "num_attention_heads": 3, "num_key_value_heads": 2},
            "cannot share 2 key/value",
        ),
        ({"model_type": "qwen9"}, "no causal language model 'qwen9'"),
        (
            {"model_type": "gpt2", "n_positions": 8},
            "more than the model's context: n_positions is 8",
        ),
    ],
)
def test_another_model_that_cannot_be_built_or_is_too_short(model: dict, words: str) -> None:
    found = lines({"model": {"transformers": model}})
    assert [line for line in found if words in line]
    assert all("\n" not in line for line in found)


def test_a_folder_to_continue_from_is_looked_at(tmp_path: Path) -> None:
    def found(values: object) -> str:
        (tmp_path / "config.json").write_text(json.dumps(values), "utf-8")
        return " ".join(lines({"model": {"pretrained": str(tmp_path)}}))

    gpt2 = {"model_type": "gpt2", "n_embd": 32, "n_head": 4}
    assert found({**gpt2, "n_positions": 4096}) == ""
    assert "more than the model's context" in found({**gpt2, "n_positions": 16})
    assert "no causal language model" in found({"model_type": "clip_vision_model"})
    with pytest.raises(NodeError, match="object of named values"):
        found([])


def test_nothing_left_to_train_on_or_to_write_to(tmp_path: Path) -> None:
    weights = dict.fromkeys(profiles.load("smoke").using("pretrain"), 0)
    assert "all 0" in " ".join(lines({"tokenize": {"weights": weights}}))
    ablation = (*STAGES[:4], "ablation")
    assert "val_share is 0" in " ".join(lines({"tokenize": {"val_share": 0}}, stages=ablation))
    assert lines({"tokenize": {"val_share": 0}}) == []
    (tmp_path / "file").write_text("")
    assert "no folder" in " ".join(lines({"runtime": {"artifacts": str(tmp_path / "file" / "results")}}))
    assert lines({"runtime": {"artifacts": str(tmp_path / "new" / "results")}}) == []
    assert "no field that is held" in " ".join(lines({"runtime": {"allow_changed": ["lr"]}}))
    assert lines({"runtime": {"allow_changed": ["optim.lr", "optim"]}}) == []


@pytest.mark.parametrize(
    "overrides",
    [
        {"model": {"num_attention_heads": 3}},
        {"model": {"num_key_value_heads": 3, "num_attention_heads": 4}},
        {"model": {"num_hidden_layers": 0}},
        {"sft": {"variants": {"plain": {"mixture": {"demo_qa_zh": 2.0}}}}},
        {"sft": {"variants": {"plain": {"mixture": {"demo_qa_zh": 0.0}}}}},
        {"sft": {"variants": {"plain": {"mixture": {"demo_qa_zh": -0.5}}}}},
        {"dpo": {"mixture": {"demo_dpo_zh": 100}}},
        {
            "dpo": {
                "mixture": {"demo_dpo_zh": None, "demo_dpo_en": None},
                "traits": {"demo_dpo_zh": None, "demo_dpo_en": None},
            }
        },
        {"tokenize": {"weights": {"skypyle": 2.0}}},
        {"evaluate": {"benchmarks": ["nope"]}},
        {"evaluate": {"max_questions": 0}},
        {"sources": {"skypile": {"reader": "skypyle"}}},
        {"sft": {"max_tokens": 768, "packed_tokens": 64}},
    ],
)
def test_settings_and_graph_refuse_the_rest(overrides: dict) -> None:
    with pytest.raises(NodeError):
        dag.build(profiles.load("smoke", overrides))


def test_own_pairs_want_a_preference_set_and_room_for_a_prompt() -> None:
    own = {"mixture": {"qa": {}}, "max_new_tokens": 64}
    with pytest.raises(ValueError, match="on_policy.mixture is given and mixture is empty"):
        Dpo.model_validate({"on_policy": own})
    with pytest.raises(
        ValueError, match="on_policy.max_new_tokens 64 leaves no room for a prompt in max_tokens 64"
    ):
        Dpo.model_validate({"mixture": {"likes": 1.0}, "on_policy": own, "max_tokens": 64})
    assert Dpo.model_validate({"mixture": {"likes": 1.0}, "on_policy": own, "max_tokens": 65})
    assert Dpo.model_validate({"on_policy": {"max_new_tokens": 64}, "max_tokens": 32}), (
        "no own pairs are made"
    )


@pytest.mark.parametrize("phrase", ["", " "])
def test_an_empty_phrase_marks_nothing(phrase: str) -> None:
    with pytest.raises(ValueError, match="traits.a has an empty phrase, which every reply contains"):
        Dpo.model_validate({"mixture": {"a": 1.0}, "traits": {"a": ["good", phrase]}})


def test_only_the_stages_that_run_are_asked() -> None:
    late = {"dpo": {"train": {"batch_size": 5}}, "runtime": {"sft_nproc": 2}}
    assert lines(late, stages=STAGES[: STAGES.index("sft")]) == []


def test_a_warm_up_as_long_as_the_training_is_said() -> None:
    def warned(steps: int, warmup: int) -> list[str]:
        config = profiles.load("smoke", {"pretrain": {"steps": steps, "optim": {"warmup_steps": warmup}}})
        return list(preflight.warnings(config, ("pretrain",), 0))

    assert warned(60, 10) == []
    assert "never reaches" in warned(60, 100)[0]
    assert warned(60, 60)


def test_pairs_and_prompts_without_a_model_to_start_from_are_said() -> None:
    config = profiles.load("smoke")
    variants = {"variants": dict.fromkeys(config.sft.variants)}
    told = list(preflight.warnings(profiles.load("smoke", {"sft": variants}), STAGES, 0))
    assert [line.partition(" is given")[0] for line in told] == ["dpo.mixture", "rl.mixture"]
    assert list(preflight.warnings(config, STAGES, 0)) == []


def test_held_out_questions_that_the_start_model_learns_are_said() -> None:
    def said(profile: str, overrides: dict) -> list[str]:
        return list(preflight.warnings(profiles.load(profile, overrides), STAGES, 0))

    (line,) = said("steel-1b", {})
    assert line.startswith(
        "rl: held-out questions of arc, openbookqa may be in the training of the start model"
    )
    assert "sft.variants.exp5, sft.variants.cot:" in line
    assert said("steel-1b", {"rl": {"held_out": 0}}) == []
    taken = {"sft": {"variants": {"exp1": {"mixture": {"demo_rl": 0.5}}}}}
    (line,) = said("demo", taken)
    assert line.startswith("dpo: held-out questions of demo_rl")
    assert "sft.variants.exp1:" in line
    (line,) = said("demo", {"rl": {"held_out": 5, "start": "dpo"}})
    assert line.startswith("rl: held-out questions of demo_rl")
    assert "by dpo.on_policy:" in line


def test_more_ranks_than_gpus_are_cut_to_the_gpus_and_said() -> None:
    config = profiles.load("demo")
    assert preflight.ranks(config, "pretrain", gpus=0) == 2
    assert preflight.ranks(config, "pretrain", gpus=1) == 1
    assert "1 GPUs" in " ".join(preflight.warnings(config, STAGES, 1))


def test_a_missing_torchao_is_said_and_does_not_keep_from_planning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "find_spec", lambda name: None)
    config = profiles.load("demo", {"dpo": {"train": {"float8": "rowwise"}}})
    assert list(preflight.complaints(config, STAGES, 1)) == []
    [said] = [line for line in preflight.warnings(config, STAGES, 1) if "torchao" in line]
    assert said.startswith("dpo.train.float8 is rowwise")


def test_trainings_that_have_to_wait_for_gpus_are_said() -> None:
    def warned(gpus: int, **runtime: int) -> bool:
        config = profiles.load("demo", {"runtime": runtime})
        return "parallel_trainings" in " ".join(preflight.warnings(config, STAGES, gpus))

    assert warned(1)
    assert not warned(0), "on a CPU they share the cores"
    assert not warned(2), "two of one rank each"
    assert warned(2, sft_nproc=2)
    assert not warned(2, sft_nproc=2, parallel_trainings=1)
