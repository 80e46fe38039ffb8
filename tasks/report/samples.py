"""Sample generations: a few prompts, continued greedily by the last model of the run."""

from __future__ import annotations

from pathlib import Path


def generate(export: str, prompts: list[str], max_new_tokens: int, chat: bool, device: str) -> list[str]:
    """The model's continuation of each prompt; runs in a worker of the pool.

    A prompt that the model cannot take is answered by the reason, in brackets: no report fails for it.
    """
    from model import scoring
    from model.tokenizer import TextTokenizer

    tokenizer = TextTokenizer.open(export)
    model = scoring.load(Path(export), scoring.resolve_device(device))
    replies = []
    for prompt in prompts:
        try:
            replies += scoring.generate(model, tokenizer, [prompt], max_new_tokens, chat=chat)
        except scoring.NoRoom as error:
            replies.append(f"({error})")
    return replies
