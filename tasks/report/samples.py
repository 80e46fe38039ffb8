"""Sample generations: a few prompts, continued greedily by the last model of the run."""

from __future__ import annotations

from pathlib import Path


def generate(export: str, prompts: list[str], max_new_tokens: int, chat: bool, device: str) -> list[str]:
    """The model's continuation of each prompt; runs in a worker of the pool."""
    from transformers import AutoTokenizer

    from model import scoring

    model = scoring.load(Path(export), scoring.resolve_device(device))
    tokenizer = AutoTokenizer.from_pretrained(export)
    return scoring.generate(model, tokenizer, prompts, max_new_tokens, chat=chat)
