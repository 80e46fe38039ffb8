"""The published weights' names: a made-up checkpoint in them computes what the original's layer would."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from model.steel import SteelForCausalLM
from model.steel.import_original import convert_config, convert_weights, import_folder, main
from tests.support.kinds import tokens

EXPERTS, WIDTH, HIDDEN, LAYERS = 3, 8, 32, 2


def original_config(**fields) -> dict:
    return {
        "model_type": "qwen2",
        "architectures": ["SteelForCausalLM"],
        "vocab_size": 97,
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "intermediate_size": 4 * WIDTH,
        "mlp_div_ratio": 4,
        "n_experts": EXPERTS,
        "slots_per_expert": 1,
        "FFN_type": "softmoe_v3",
        "mlp_type": "senet",
        "rope_theta": 1e6,
        "rms_norm_eps": 1e-6,
        "eos_token_id": 90,
        "bos_token_id": 91,
        **fields,
    }


def original_weights(mlp: str = "senet", slots: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return 0.3 * torch.randn(*shape, generator=generator)

    made = {"model.embed_tokens.weight": normal(97, HIDDEN), "lm_head.weight": normal(97, HIDDEN)}
    made["model.norm.weight"] = 1 + normal(HIDDEN)
    up = ("gate_up_proj", "up_proj") if mlp == "senet" else ("gate_proj", "up_proj")
    down = ("gate_down_proj", "down_proj") if mlp == "senet" else ("down_proj",)
    for i in range(LAYERS):
        layer = f"model.layers.{i}"
        for name in ("input_layernorm", "post_attention_layernorm"):
            made[f"{layer}.{name}.weight"] = 1 + normal(HIDDEN)
        for name in "qkvo":
            made[f"{layer}.self_attn.{name}_proj.weight"] = normal(HIDDEN, HIDDEN)
            if name != "o":
                made[f"{layer}.self_attn.{name}_proj.bias"] = normal(HIDDEN)
        made[f"{layer}.self_attn.rotary_emb.inv_freq"] = torch.ones(4)
        made[f"{layer}.mlp.phi"] = normal(HIDDEN, EXPERTS, slots)
        made[f"{layer}.mlp.scale"] = torch.tensor([5.0])
        for e in range(EXPERTS):
            for name in up:
                made[f"{layer}.mlp.experts.{e}.{name}.weight"] = 5 * normal(WIDTH, HIDDEN)
            for name in down:
                made[f"{layer}.mlp.experts.{e}.{name}.weight"] = 5 * normal(HIDDEN, WIDTH)
    return made


def original_layer(
    w: dict[str, torch.Tensor], prefix: str, x: torch.Tensor, slots: int, mlp: str
) -> torch.Tensor:
    """original.md 5.3, `softmoe_v3`: x [B, T, D] -> [B, T, D], one sequence a row."""
    unit = x / x.norm(dim=-1, keepdim=True)
    phi = w[f"{prefix}.phi"].flatten(1)
    logits = unit @ (w[f"{prefix}.scale"] * phi / phi.norm(dim=0))
    z = torch.softmax(logits, dim=1).mT @ unit
    y = []
    for s in range(EXPERTS * slots):
        part = {n: w[f"{prefix}.experts.{s // slots}.{n}.weight"] for n in ("up_proj", "down_proj")}
        gate = w[f"{prefix}.experts.{s // slots}.{'gate_up_proj' if mlp == 'senet' else 'gate_proj'}.weight"]
        h = F.silu(z[:, s] @ gate.T) * (z[:, s] @ part["up_proj"].T)
        out = h @ part["down_proj"].T
        if mlp == "senet":
            out = F.silu(h @ w[f"{prefix}.experts.{s // slots}.gate_down_proj.weight"].T) * out
        y.append(out)
    return torch.softmax(logits, dim=-1) @ torch.stack(y, dim=1)


@pytest.mark.parametrize(("mlp", "slots"), [("senet", 1), ("senet", 2), ("raw", 1)])
@torch.inference_mode()
def test_an_imported_layer_computes_the_originals_formula(mlp, slots):
    weights = original_weights(mlp, slots)
    config = convert_config(original_config(mlp_type=mlp, slots_per_expert=slots))
    lm = SteelForCausalLM(config).eval()
    lm.load_state_dict(convert_weights(weights, config))
    x = torch.randn(2, 11, HIDDEN, generator=torch.Generator().manual_seed(1))
    for i, layer in enumerate(lm.model.layers):
        expected = original_layer(weights, f"model.layers.{i}.mlp", x, slots, mlp)
        torch.testing.assert_close(layer.mlp(x), expected, atol=1e-5, rtol=1e-4)
        assert torch.equal(layer.self_attn.k_proj.bias, weights[f"model.layers.{i}.self_attn.k_proj.bias"])


@pytest.mark.parametrize("as_bin", [False, True])
@torch.inference_mode()
def test_a_folder_is_imported_whole(tmp_path, as_bin):
    source, target = tmp_path / "published", tmp_path / "steel"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(original_config()), "utf-8")
    weights = original_weights()
    names, places = sorted(weights), {}
    for part in range(2):
        shard = {name: weights[name] for name in names[part::2]}
        if as_bin:
            torch.save(shard, source / f"pytorch_model-{part}.bin")
        else:
            save_file(shard, source / f"model-{part}.safetensors")
            places |= dict.fromkeys(shard, f"model-{part}.safetensors")
            (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    made = import_folder(source, target).eval()
    read = SteelForCausalLM.from_pretrained(target).eval()
    assert (read.config.ffn, read.config.expert, read.config.expert_width) == (
        "released",
        "double_swiglu",
        WIDTH,
    )
    assert read.generation_config.eos_token_id == [90, 91]
    assert torch.equal(read(tokens(1, 9)).logits, made(tokens(1, 9)).logits)
    with pytest.raises(ValueError, match="allow_future_leakage"):
        read.config.refuse_leakage()
    # weights, too, are for whoever may read the folder
    assert len({path.stat().st_mode for path in target.iterdir()}) == 1
    # the same weights under another kind
    token = SteelForCausalLM.from_pretrained(target, ffn="token")
    assert token.config.ffn == "token"


def test_a_folder_is_never_written_over(tmp_path, capsys):
    source = tmp_path / "published"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(original_config()), "utf-8")
    save_file(original_weights(), source / "model.safetensors")
    before = {path.name: path.read_bytes() for path in source.iterdir()}
    assert main([str(source), str(source)]) == 2
    assert f"{source} exists" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in source.iterdir()} == before


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "config.json").unlink(), "config.json cannot be read"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold an object"),
        (
            lambda folder: (folder / "config.json").write_text(
                '{"FFN_type": "softmoe_v3", "mlp_type": "raw"}'
            ),
            "n_experts",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "neither"),
        (
            lambda folder: (folder / "model.safetensors").write_bytes(b"torn"),
            "model.safetensors cannot be read",
        ),
        (
            lambda folder: (folder / "model.safetensors").rename(folder / "pytorch_model.bin"),
            "pytorch_model.bin cannot be read",
        ),
    ],
)
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path, capsys, spoil, words):
    source, target = tmp_path / "published", tmp_path / "steel"
    source.mkdir()
    (source / "config.json").write_text(json.dumps(original_config()), "utf-8")
    save_file(original_weights(), source / "model.safetensors")
    spoil(source)
    assert main([str(source), str(target)]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["published"]


def test_what_is_not_the_original_is_refused():
    for fields, words in [({"FFN_type": "softmoe_v2"}, "softmoe_v3"), ({"mlp_type": "kan"}, "senet")]:
        with pytest.raises(ValueError, match=words):
            convert_config(original_config(**fields))
    config = convert_config(original_config())
    weights = original_weights()
    for name in ("model.layers.1.mlp.scale", "model.layers.0.mlp.experts.1.up_proj.weight"):
        with pytest.raises(ValueError, match=r"missing \['model.layers.1.mlp.scale'\]|experts \[0, 2\]"):
            convert_weights({n: t for n, t in weights.items() if n != name}, config)
    with pytest.raises(ValueError, match=r"unknown \['model.layers.0.mlp.score'\]"):
        convert_weights({**weights, "model.layers.0.mlp.score": torch.ones(1)}, config)
    with pytest.raises(ValueError, match="shape"):
        convert_weights({**weights, "model.layers.0.mlp.phi": torch.ones(HIDDEN, EXPERTS, 2)}, config)
