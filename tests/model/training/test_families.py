"""Other architectures: packed training is exact, the export is the model, and what cannot be exact is refused."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM

from model.families import FamilyError, attention, configuration, counts, network
from model.training.batch import Batch
from model.training.config import ConfigError, DataConfig, FileConfig, RlConfig, TrainConfig
from model.training.convert import convert
from model.training.loader import DataError
from model.training.objectives import FamilyScorer
from model.training.pairs import Pair, write_pairs
from model.training.parallel import refuse_longer
from model.training.prompts import Prompt, write_prompts
from tests.support import engine_helpers as tiny
from tests.support import ranks
from tests.support.families import BASE, MODELS, built, loss_of_documents


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shards")
    return {
        "files": [tiny.shard(folder / "a.arrow", 12)],
        "val_files": [tiny.shard(folder / "v.arrow", 5, seed=2)],
    }


def settings(work: Path, data: dict, **more) -> dict:
    return tiny.settings(work, data=data, steps=3, log_every=1, **more)


def val_loss(work: Path) -> float:
    return [line["val_loss"] for line in tiny.metrics(work) if "val_loss" in line][-1]


RARE = ("cwm", "deepseek3", "gemma4", "jetmoe", "opt")


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in RARE else name for name in MODELS]
)
def test_packed_loss_is_that_of_each_document_alone(name, data, tmp_path):
    first, second = tmp_path / "first", tmp_path / "second"
    assert tiny.engine(settings(first, data, model=MODELS[name])) == 0
    lines = [line["loss"] for line in tiny.metrics(first) if "loss" in line]
    assert lines[-1] < lines[0]
    assert json.loads((first / "export/config.json").read_text())["model_type"] == MODELS[name]["model_type"]
    expected = loss_of_documents(first / "export", [Path(data["val_files"][0]["path"])])
    assert val_loss(first) == pytest.approx(expected, abs=1e-5)

    frozen = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    assert tiny.engine(settings(second, data, model=None, init_from=str(first / "export"), optim=frozen)) == 0
    assert val_loss(second) == pytest.approx(expected, abs=1e-5)
    assert (second / "export/model.safetensors").read_bytes() == (
        first / "export/model.safetensors"
    ).read_bytes()


BIAS = "model.layers.1.mlp.gate.e_score_correction_bias"


def test_the_bias_of_a_router_counts_and_stays_through_stop_export_and_conversion(data, tmp_path, caplog):
    fresh, whole, cut = (tmp_path / name for name in ("fresh", "whole", "cut"))
    assert tiny.engine(settings(fresh, data, model=MODELS["glm4-moe"])) == 0
    file = fresh / "export/model.safetensors"
    tensors = load_file(file)
    assert not tensors[BIAS].any()
    plain = loss_of_documents(fresh / "export", [Path(data["val_files"][0]["path"])])
    tensors[BIAS] = torch.tensor([3.0, -3.0, 0.001, -0.001])  # the first expert is taken by every token
    save_file(tensors, file, metadata={"format": "pt"})
    more = {"model": None, "init_from": str(fresh / "export"), "save_every": 1, "keep_final": True}
    more["export_dtype"] = "bfloat16"
    assert tiny.engine(settings(whole, data, **more)) == 0
    assert "no gradient reaches " + BIAS in caplog.text
    assert tiny.engine(settings(cut, data, **more), tiny.StopAt(2)) == 75
    # what the checkpoint has is taken, whatever has become of the folder since
    save_file({**tensors, BIAS: torch.zeros(4)}, file, metadata={"format": "pt"})
    assert tiny.engine(settings(cut, data, **more)) == 0
    convert(whole / "checkpoints/step-000003", tmp_path / "converted")
    for export in (whole / "export", cut / "export", tmp_path / "converted"):
        assert torch.equal(load_file(export / "model.safetensors")[BIAS], tensors[BIAS])
        assert (export / "model.safetensors").read_bytes() == (
            whole / "export/model.safetensors"
        ).read_bytes()
    frozen = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    save_file(tensors, file, metadata={"format": "pt"})
    last = settings(tmp_path / "last", data, model=None, init_from=str(fresh / "export"), optim=frozen)
    assert tiny.engine(last) == 0
    expected = loss_of_documents(fresh / "export", [Path(data["val_files"][0]["path"])])
    assert val_loss(tmp_path / "last") == pytest.approx(expected, abs=1e-5)
    assert abs(expected - plain) > 1e-4


def test_a_folder_without_the_bias_of_its_router_begins_with_transformers_own(data, tmp_path, caplog):
    assert tiny.engine(settings(tmp_path / "fresh", data, model=MODELS["glm4-moe"])) == 0
    file = tmp_path / "fresh/export/model.safetensors"
    tensors = load_file(file)
    assert not tensors.pop(BIAS).any()
    save_file(tensors, file, metadata={"format": "pt"})
    frozen = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    again = settings(tmp_path / "again", data, model=None, init_from=str(file.parent), optim=frozen)
    assert tiny.engine(again) == 0
    assert f"has no {BIAS}" in caplog.text
    assert val_loss(tmp_path / "again") == pytest.approx(val_loss(tmp_path / "fresh"), abs=1e-6)
    assert not load_file(tmp_path / "again/export/model.safetensors")[BIAS].any()


def test_a_folder_without_a_state_that_no_rule_sets_begins_with_that_of_a_fresh_model(tmp_path):
    config = configuration.from_fields({"model_type": "apertus", **BASE})
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    tensors = load_file(file)
    due = {name: tensors.pop(name) for name in list(tensors) if name.endswith((".beta", ".eps"))}
    assert len(due) == 4
    save_file(tensors, file, metadata={"format": "pt"})
    tensor_of = network.from_folder(tmp_path, network.build(config))
    assert {name: tensor_of(name).item() for name in due} == {name: t.item() for name, t in due.items()}


def test_a_bias_keeps_its_precision_where_the_weights_have_less(tmp_path):
    config = configuration.from_fields({
        "model_type": "minimax_m2", **BASE, "head_dim": 8, "num_local_experts": 4, "num_experts_per_tok": 2,
    })  # fmt: skip
    lm = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    bias = torch.tensor([3.001, 8.7654, -1.0001, 0.3333])
    network.put_kept(lm, {name: bias for name in network.kept(lm)})
    lm.save_pretrained(tmp_path)  # experts one by one, as its authors have them
    with safe_open(tmp_path / "model.safetensors", "pt") as place:
        assert not {name for name, _ in lm.named_parameters()} <= set(place.keys())
    built_again = network.build(config)
    tensor_of = network.from_folder(tmp_path, built_again)
    for name in network.kept(built_again):
        assert torch.equal(tensor_of(name), bias)
    assert tensor_of("lm_head.weight").dtype == torch.float32


@pytest.mark.parametrize("name", attention.OTHERS)
def test_what_else_changes_the_scores_is_refused(name):
    rows = attention.PackedRows(
        torch.zeros(1, 4, dtype=torch.long), torch.arange(4)[None], "sdpa", None, None
    )
    q = torch.zeros(1, 2, 4, 8)
    with pytest.raises(FamilyError, match=f"its attention uses {name}"):
        attention.attend(torch.nn.Module(), q, q, q, None, documents=rows, **{name: torch.zeros(2)})


def test_operations_of_attention_go_by_each_layers_own_width_and_window():
    kinds = ["sliding_attention"] * 2 + ["full_attention", "sliding_attention", "full_attention"]
    fields = {**MODELS["gemma4"], "num_hidden_layers": 5, "layer_types": kinds}
    lm = network.build(configuration.from_fields(fields))
    length, window = 64, MODELS["gemma4"]["sliding_window"]
    seen_in_window = sum(min(place + 1, window) for place in range(length)) / length
    attended = 3 * 4 * (3 * 32 * seen_in_window + 2 * 4 * 512 * (length + 1) / 2)
    assert counts.flops_per_token(lm)(length) == pytest.approx(3 * 2 * counts.matrix_weights(lm) + attended)


@pytest.mark.slow
def test_two_ranks_keep_it_when_they_are_stopped_and_go_on(data, tmp_path):
    whole, cut = (settings(tmp_path / name, data, model=MODELS["glm4-moe"]) for name in ("whole", "cut"))
    ranks.trained(tmp_path / "ranks", 2, [{"values": whole}, {"values": cut, "stop": 2}, {"values": cut}])
    once, twice = (tmp_path / name / "export/model.safetensors" for name in ("whole", "cut"))
    assert once.read_bytes() == twice.read_bytes()
    assert BIAS in load_file(once)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (
            {**MODELS["gemma3"], "attn_logit_softcapping": 2.0},
            "gemma3_text .* does not get the soft cap that it names",
        ),
        ({"model_type": "musicgen"}, "musicgen is no plain language model"),
        ({**MODELS["deepseek2-latent"], "num_key_value_heads": 2}, "transformers' own forward fails"),
        ({"model_type": "qwen3_next", **BASE}, "qwen3_next .* linear_attention"),
        ({"model_type": "mamba2", "vocab_size": tiny.VOCAB}, "mamba2"),
        ({"model_type": "bloom", "vocab_size": tiny.VOCAB, "hidden_size": 32}, "bloom .* attention"),
        ({"model_type": "t5", "vocab_size": tiny.VOCAB}, "no causal language model"),
        ({"model_type": "qwen9"}, "no causal language model"),
        ({"model_type": "qwen2", **BASE, "hidden_sise": 32}, "model.hidden_sise"),
    ],
    ids=lambda value: value.get("model_type", "") if isinstance(value, dict) else "",
)
def test_what_cannot_be_exact_is_refused_by_name(model, words, data, tmp_path):
    with pytest.raises(FamilyError, match=words) as error:
        tiny.engine(settings(tmp_path, data, model=model))
    assert "\n" not in str(error.value)
    assert not (tmp_path / "export").exists()


@pytest.mark.parametrize("name", ["gemma2", "deepseek2-latent", "gpt-oss"])
def test_a_kernel_without_a_soft_cap_sinks_or_a_width_of_the_values_is_refused(name):
    wide = {"sliding_window": 64} if "sliding_window" in MODELS[name] else {}
    scorer = built({**MODELS[name], **wide})
    scorer.how = "varlen"
    with pytest.raises(
        FamilyError, match="soft cap, sinks, or values of another width.*choose attention sdpa"
    ):
        scorer(None)


@pytest.mark.parametrize(
    ("name", "due"), [("gemma2", True), ("deepseek2-latent", True), ("gpt-oss", True), ("llama", False)]
)
def test_auto_takes_what_has_them(name, due):
    assert attention.plain_only(network.build(configuration.from_fields(MODELS[name]))) == due


class Leaky(FamilyScorer):
    """One document where there are two."""

    def _body(self, ids, packed, **more):
        packed.doc_index = torch.zeros_like(packed.doc_index)
        return super()._body(ids, packed, **more)


class Unscaled(FamilyScorer):
    """Every position counted from the row's start, not from the document's."""

    def _body(self, ids, packed, **more):
        packed.position_ids = torch.arange(ids.shape[1])[None] * 3
        return super()._body(ids, packed, **more)


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen3-moe"])
@pytest.mark.parametrize("wrong", [Leaky, Unscaled])
def test_the_probe_finds_a_packed_forward_that_is_not_exact(name, wrong):
    scorer = built(MODELS[name])
    scorer(None)
    scorer.__class__ = wrong
    with pytest.raises(FamilyError, match="differ by"):
        scorer(None)


@pytest.mark.parametrize(
    "change",
    [
        lambda logits: torch.tanh(logits / 30) * 30,
        lambda logits: logits * 1.1,
        lambda logits: logits + torch.arange(logits.shape[-1]),
    ],
    ids=["soft cap", "factor", "bias"],
)
def test_the_probe_finds_a_head_that_does_more(change, monkeypatch):
    scorer = built({**MODELS["llama"], "initializer_range": 0.002})
    forward = scorer.lm.forward

    def changed(*arguments, **more):
        out = forward(*arguments, **more)
        out.logits = change(out.logits)
        return out

    monkeypatch.setattr(scorer.lm, "forward", changed)
    with pytest.raises(FamilyError, match="differ by"):
        scorer(None)


@pytest.mark.parametrize(("name", "more"), [("opt", {"layerdrop": 0.5}), ("gpt2", {})])
def test_nothing_is_dropped_by_chance(name, more, caplog):
    """Neither by modules (GPT-2) nor by functions and whole layers (OPT); both have dropout by default."""
    scorer = built({**MODELS[name], **more})
    assert "what it drops by chance is off" in caplog.text
    ids = torch.randint(0, tiny.VOCAB, (2, 13), generator=torch.Generator().manual_seed(1))
    batch = Batch(
        tokens=ids.int(), starts=torch.tensor([0, 13]), valid=torch.tensor([13, 13]).int(), loss_mask=None,
        targets=24, blocks=torch.zeros(2), files=torch.zeros(2).int(),
    )  # fmt: skip
    due = scorer(batch)[1]
    scorer.train()
    assert all(torch.equal(scorer(batch)[1], due) for _ in range(3))


@pytest.mark.parametrize("name", ["mixtral", "qwen3-moe", "jetmoe"])
def test_the_auxiliary_loss_is_the_models_own(name, data, tmp_path):
    """Loss and gradient of rows of one document, against transformers' forward with labels."""
    scorer = built(MODELS[name]).train()
    ids = torch.randint(0, tiny.VOCAB, (2, 13), generator=torch.Generator().manual_seed(1))
    batch = Batch(
        tokens=ids.int(), starts=torch.tensor([0, 13]), valid=torch.tensor([13, 13]).int(), loss_mask=None,
        targets=24, blocks=torch.zeros(2), files=torch.zeros(2).int(),
    )  # fmt: skip
    loss, nll = scorer(batch, per_token=False, scale=1 / 24)
    loss.backward()
    ours = {n: p.grad.clone() for n, p in scorer.lm.named_parameters()}
    scorer.zero_grad()
    scorer.lm.config._attn_implementation = "eager"
    # its own labels are shifted by it; the last position, without a label, is routed in both
    out = scorer.lm(input_ids=ids[:, :-1], output_router_logits=True, use_cache=False)
    ce = torch.nn.functional.cross_entropy(out.logits.flatten(0, 1), ids[:, 1:].flatten())
    config = scorer.lm.config
    (
        ce + (config.aux_loss_coef if name == "jetmoe" else config.router_aux_loss_coef) * out.aux_loss
    ).backward()
    assert out.aux_loss > 0
    assert loss.item() == pytest.approx((ce + scorer.auxiliary * out.aux_loss).item(), abs=1e-5)
    assert nll.item() / 24 == pytest.approx(ce.item(), abs=1e-5)
    for parameter_name, parameter in scorer.lm.named_parameters():
        assert torch.allclose(ours[parameter_name], parameter.grad, atol=1e-5), parameter_name


def test_fresh_weights_follow_the_models_own_rule():
    """GPT-2 scales the projections into the residual stream; and a seed gives the same weights each time."""
    first, again, other = (dict(built(MODELS["gpt2"], seed).lm.named_parameters()) for seed in (7, 7, 8))
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), name
    assert not torch.equal(first["transformer.wte.weight"], other["transformer.wte.weight"])
    assert first["transformer.h.0.mlp.c_fc.weight"].std().item() == pytest.approx(0.15, rel=0.05)
    assert first["transformer.h.0.mlp.c_proj.weight"].std().item() == pytest.approx(0.15 / 2, rel=0.05)
    assert not torch.equal(first["transformer.h.0.mlp.c_fc.weight"], first["transformer.h.1.mlp.c_fc.weight"])


@pytest.mark.parametrize("name", MODELS)
def test_operations_are_those_that_torch_counts(name):
    fields = dict(MODELS[name])
    fields |= {"sliding_window": 64} if "sliding_window" in fields else {}  # longer than the row
    fields |= {"output_router_logits": False} if "output_router_logits" in fields else {}
    lm = built(fields).lm
    lm.config._attn_implementation = lm.config._experts_implementation = (
        "eager"  # torch counts no grouped products
    )
    length = 32
    with FlopCounterMode(display=False) as counter:
        lm(input_ids=torch.zeros(1, length, dtype=torch.long), use_cache=False)
    # eager attention computes the whole square: 4 * width * length a token and layer
    widths = {"deepseek2-latent": [56, 56], "deepseek3": [56, 56], "gemma4": [32, 4 * 512]}.get(
        name, [32, 32]
    )
    square = 4 * sum(widths) * (length - (length + 1) / 2)
    assert counts.flops_per_token(lm)(length) / 3 + square == pytest.approx(
        counter.get_total_flops() / length, rel=0.02
    )


def test_a_tokenizer_of_its_own_special_tokens_is_kept_on_continuing(data, tmp_path):
    tokenizer = tiny.byte_tokenizer(tmp_path / "tokenizer")
    first, second = tmp_path / "first", tmp_path / "second"
    assert tiny.engine(settings(first, data, model=MODELS["qwen2"], tokenizer_dir=str(tokenizer))) == 0
    config = json.loads((first / "export/config.json").read_text())
    assert (config["eos_token_id"], config["pad_token_id"]) == (258, 256)
    changed = {**config, "eos_token_id": 200}
    (first / "export/config.json").write_text(json.dumps(changed))
    values = settings(second, data, init_from=str(first / "export"), tokenizer_dir=str(tokenizer))
    assert tiny.engine(values) == 0
    assert json.loads((second / "export/config.json").read_text())["eos_token_id"] == 200
    assert (second / "export/tokenizer.json").is_file()
    lm = AutoModelForCausalLM.from_pretrained(second / "export")
    assert type(lm).__name__ == "Qwen2ForCausalLM"


@pytest.mark.parametrize(
    ("dtype", "shards"), [(torch.float32, "20KB"), (torch.bfloat16, "20KB"), (torch.bfloat16, "5GB")]
)
def test_a_folder_in_shards_or_in_bf16_is_continued(dtype, shards, data, tmp_path):
    """Starts from the very numbers of the folder (a step at a rate of 1e-30 moves a zero)."""
    lm = built(MODELS["qwen2-tied"]).lm.to(dtype)
    lm.save_pretrained(tmp_path / "folder", max_shard_size=shards)
    files = list((tmp_path / "folder").glob("*.safetensors"))
    assert (len(files) > 1) == (shards == "20KB")
    frozen = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    values = settings(tmp_path / "run", data, model=None, init_from=str(tmp_path / "folder"), optim=frozen)
    assert tiny.engine(values) == 0
    made = AutoModelForCausalLM.from_pretrained(tmp_path / "run/export", dtype=torch.float32)
    for name, weight in lm.named_parameters():
        assert torch.allclose(made.get_parameter(name), weight.float(), rtol=0, atol=1e-28), name
    expected = loss_of_documents(tmp_path / "folder", [Path(data["val_files"][0]["path"])])
    assert val_loss(tmp_path / "run") == pytest.approx(expected, abs=1e-5)


def test_stopped_and_resumed_is_uninterrupted_to_the_bit(data, tmp_path):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert tiny.engine(settings(whole, data, model=MODELS["gpt2"])) == 0
    values = settings(parts, data, model=MODELS["gpt2"])
    assert tiny.engine(values, tiny.StopAt(2)) == 75
    assert tiny.engine(values) == 0
    assert tiny.metrics(parts) == tiny.metrics(whole)
    assert (parts / "export/model.safetensors").read_bytes() == (
        whole / "export/model.safetensors"
    ).read_bytes()


def test_shards_beyond_the_vocabulary_are_refused(data, tmp_path):
    with pytest.raises(DataError, match="the model has 100 tokens"):
        tiny.engine(settings(tmp_path, data, model={**MODELS["qwen2"], "vocab_size": 100}))


@pytest.mark.slow
@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_train_the_same_model(name, data, tmp_path):
    work, alone = tmp_path / "two", tmp_path / "one"
    assert tiny.start(settings(work, data, model=MODELS[name]), 2).wait(300) == 0, (work / "log").read_text()
    assert tiny.engine(settings(alone, data, model=MODELS[name])) == 0
    expected = loss_of_documents(work / "export", [Path(data["val_files"][0]["path"])])
    assert val_loss(work) == pytest.approx(expected, abs=1e-5)
    # an auxiliary loss is of a micro-batch, and two ranks cut the batch in two
    assert val_loss(work) == pytest.approx(
        val_loss(alone), abs=1e-2 if "output_router_logits" in MODELS[name] else 1e-4
    )


GPT2 = {"model_type": "gpt2", "vocab_size": tiny.VOCAB, "n_embd": 32, "n_layer": 1, "n_head": 4}


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({**MODELS["qwen2"], "hidden_size": "32"}, "Field 'hidden_size' expected int"),
        ({**MODELS["qwen2"], "num_hidden_layers": -1}, "num_hidden_layers"),
        (
            {**MODELS["qwen2"], "num_hidden_layers": 0},
            "num_hidden_layers must be a whole number of at least 1",
        ),
        ({**MODELS["qwen2"], "num_attention_heads": 3}, "3 heads cannot share 2 key/value heads evenly"),
        ({"model_type": "phi3", "vocab_size": tiny.VOCAB}, "Padding_idx"),
        ({**GPT2, "n_positions": 8}, f"texts of up to {tiny.BLOCK} tokens; gpt2 has 8 positions"),
    ],
)
def test_a_geometry_that_cannot_be_trained_is_one_line(model, words, data, tmp_path):
    with pytest.raises((FamilyError, ConfigError), match=words) as error:
        tiny.engine(settings(tmp_path, data, model=model))
    assert "\n" not in str(error.value)


def test_pairs_and_prompts_are_held_against_the_positions_too(tmp_path):
    model = {"model_type": "gpt2", "n_positions": 8}
    pair = Pair("a", [1, 2, 3], [4, 5], [4, 5, 6, 7, 8, 9])
    prompt = Prompt("a", [1, 2, 3], "7", "exact")
    write_pairs(tmp_path / "pairs.arrow", [pair])
    write_prompts(tmp_path / "prompts.arrow", [prompt])
    for name, objective, rl, longest in [
        ("pairs", "logprobs", RlConfig(), 9),
        ("prompts", "grpo", RlConfig(max_new_tokens=6), 9),
    ]:
        file = str(tmp_path / f"{name}.arrow")
        (tmp_path / "config.json").write_text(json.dumps(model))
        config = TrainConfig(
            objective, "", init_from=str(tmp_path), tokenizer_dir="", steps=1, rl=rl,
            data=DataConfig([FileConfig(file)]),
        )  # fmt: skip
        world = SimpleNamespace(rank=0, size=1)
        with pytest.raises(ConfigError, match=f"texts of up to {longest} tokens; gpt2 has 8 positions"):
            refuse_longer(config, world)
        (tmp_path / "config.json").write_text(json.dumps({**model, "n_positions": 9}))
        refuse_longer(config, world)


@pytest.mark.parametrize(
    "text", [b"", b"[]", b"{", b"\xff\xfe", b'{"model_type": "qwen2", "hidden_size": "16"}']
)
def test_a_config_that_cannot_be_read_is_named(text, data, tmp_path):
    (tmp_path / "config.json").write_bytes(text)
    with pytest.raises((FamilyError, ConfigError), match=f"init_from: {tmp_path}") as error:
        tiny.engine(settings(tmp_path / "run", data, init_from=str(tmp_path)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("model", [tiny.MODEL, MODELS["qwen2"]], ids=["steel", "qwen2"])
def test_weights_that_were_cut_off_are_one_line(model, data, tmp_path):
    assert tiny.engine(settings(tmp_path / "first", data, model=model)) == 0
    file = tmp_path / "first/export/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises((FamilyError, ConfigError), match=r"init_from: .*model\.safetensors cannot be read"):
        tiny.engine(settings(tmp_path / "second", data, init_from=str(tmp_path / "first/export")))


def beside(folder: Path, change) -> Path:
    """A file of other weights beside those of a model."""
    weights = load_file(folder / "model.safetensors")
    save_file({name: change(w) for name, w in weights.items()}, folder / "zz_old.safetensors")
    return folder


@pytest.mark.parametrize("model", [tiny.MODEL, MODELS["qwen2"]], ids=["steel", "qwen2"])
def test_weights_of_another_model_beside_are_not_read(model, data, tmp_path):
    assert tiny.engine(settings(tmp_path / "first", data, model=model)) == 0
    folder = beside(tmp_path / "first/export", torch.zeros_like)
    frozen = {"lr": 1e-30, "warmup_steps": 0, "weight_decay": 0.0}
    assert tiny.engine(settings(tmp_path / "second", data, init_from=str(folder), optim=frozen)) == 0
    assert val_loss(tmp_path / "second") == pytest.approx(val_loss(tmp_path / "first"), abs=1e-5)


def test_no_code_of_a_folder_is_run(tmp_path, monkeypatch):
    """transformers would ask on the terminal."""
    auto = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "own", "auto_map": auto}))
    (tmp_path / "own.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\nclass Config: pass\n")
    monkeypatch.setattr("builtins.input", lambda _: "y")
    monkeypatch.setenv("HF_MODULES_CACHE", str(tmp_path / "cache"))
    with pytest.raises(FamilyError, match="custom code"):
        configuration.from_folder(tmp_path)
    assert not (tmp_path / "ran").exists()
