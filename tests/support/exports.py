"""Small export folders as training leaves them, with a trained tokenizer that splits text as Qwen's does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from model.training.export import write_export
from tasks.tokenize import tokenizer
from tests.support import tiny

TEXTS = (
    "中国的首都是北京。法国的首都是巴黎。水在标准大气压下沸腾的温度是一百摄氏度。",
    "The capital of France is Paris. Water boils at one hundred degrees.",
    "def add(a, b):\n    return a + b\n",
    "你是谁？我是一个语言模型。 Name three primary colours: red, yellow, blue. 1 + 2 = 3",
)
SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "expert_width": 32,
    "max_position_embeddings": 256,
    "initializer_range": 0.2,
}


def qwen_tokenizer(folder: Path, vocab_size: int = 400) -> Path:
    """A tokenizer folder of the house, trained on TEXTS."""
    folder.mkdir(parents=True, exist_ok=True)
    tokens = tokenizer._blank()
    from tokenizers import trainers
    from tokenizers.pre_tokenizers import ByteLevel

    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 3, initial_alphabet=ByteLevel.alphabet(), show_progress=False
    )
    tokens.train_from_iterator(TEXTS, trainer)
    specials = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokens.add_special_tokens(specials)
    tokens.save(str(folder / "tokenizer.json"))
    tokenizer._write_config(folder, {token: tokens.token_to_id(token) for token in specials})
    return folder


def export(folder: Path, tokenizer_dir: Path, seed: int = 0, **fields: Any) -> Path:
    """A random model whose router prefers, whose norms are uneven and whose biases are there."""
    lm = tiny.steel(vocab_size=448, seed=seed, **(SMALL | fields))
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in lm.named_parameters():
            if name.endswith("mlp.scale"):
                parameter.fill_(4.0)
            elif name.endswith(".bias"):
                parameter.normal_(generator=rng)
            elif "layernorm" in name:
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=rng))
    weights = {name: parameter.detach() for name, parameter in lm.named_parameters()}
    write_export(folder, lm.config, weights, tokenizer_dir)
    return folder
