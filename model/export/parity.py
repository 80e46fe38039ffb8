"""The proof that an export computes what the trained model computes, as numbers in a file beside it.

Both models are loaded in FP32 on the CPU and given the same prompts. The trained model continues each greedily; then
both score prompt and continuation at once, and the export continues the prompts by itself.

A greedy text can part from the other only where the two best tokens of a step lie within twice the largest difference
of the logits. An export whose text parts at a larger margin, or whose logits differ by more than its form allows, is
refused: FormError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from model.chat_template import TURN_START, render_chat
from model.export.forms import FormError
from model.tokenizer import TextTokenizer

PROMPTS = (
    "中国的首都是",
    "水在标准大气压下沸腾的温度是",
    "The capital of France is",
    "def add(a, b):\n    return",
    "你是谁？",
    "Name three primary colours.",
)
"""In NFC: llama.cpp does not normalise."""
NEW_TOKENS = 24
EXACT = 1e-3
"""Largest difference of a logit for a form that is the same function, in FP32."""
FOLDED = 0.1
"""The same for a cosine router that was folded into a linear one."""
ROUNDED = 0.25
"""To be added for folders that are not in FP32, in which a router's scale and the embeddings' multiplier are rounded."""
TOLERANCES = {"F32": EXACT, "F16": 0.1, "BF16": 1.0, "Q8_0": 2.0}
"""The same for weights read back from a GGUF file, by their type; what is measured is in the certificate."""


def prompt_ids(tokenizer: TextTokenizer) -> list[list[int]]:
    """Every prompt as plain text and, where the tokenizer has Steel's turns, as a question in a dialogue."""
    ids = [tokenizer.encode(text) for text in PROMPTS]
    if tokenizer.special_id(TURN_START) is not None:
        turns = [[{"role": "user", "content": text}] for text in PROMPTS]
        ids += [render_chat(tokenizer, turn, generation_prompt=True)[0] for turn in turns]
    return [each for each in ids if each]


@torch.no_grad()
def certify(
    trained: nn.Module,
    export: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    tolerance: float,
    new_tokens: int = NEW_TOKENS,
) -> dict[str, Any]:
    """Measure; raise FormError beyond `tolerance` (of a logit). Neither model may stop at an end token here: the
    continuations have all the same length, cut to the context."""
    difference, largest, positions, changed, parted = 0.0, 0.0, 0, 0, []
    loss = [0.0, 0.0]
    for number, prompt in enumerate(prompts):
        mine = _continue(trained, prompt, new_tokens)
        given = torch.tensor([[*prompt, *mine]])
        a, b = (lm(input_ids=given, use_cache=False).logits[0].double() for lm in (trained, export))
        difference = max(difference, (a - b).abs().max().item())
        largest = max(largest, a.abs().max().item())
        positions += len(a)
        changed += int((a.argmax(-1) != b.argmax(-1)).sum())
        for side, logits in enumerate((a, b)):
            loss[side] += torch.nn.functional.cross_entropy(logits[:-1], given[0, 1:], reduction="sum").item()
        theirs = _continue(export, prompt, new_tokens)
        if theirs != mine:
            at = next(i for i, (x, y) in enumerate(zip(mine, theirs, strict=True)) if x != y)
            best = a[len(prompt) - 1 + at].topk(2).values
            parted.append({"prompt": number, "token": at, "margin": (best[0] - best[1]).item()})
    certificate = {
        "prompts": len(prompts),
        "positions": positions,
        "largest_logit": largest,
        "max_logit_difference": difference,
        "tolerance": tolerance,
        "top1_changed": changed,
        "mean_loss_difference": (loss[1] - loss[0]) / max(1, positions - len(prompts)),
        "greedy": {"tokens": new_tokens, "equal": len(prompts) - len(parted), "parted": parted},
    }
    if not difference <= tolerance:  # NaN, too
        raise FormError(
            f"the export's logits differ from the trained model's by {difference:.3g}, more than {tolerance:g}"
        )
    # single steps with a cache round otherwise than whole texts: a hundred-thousandth of the largest logit
    if wide := [one for one in parted if one["margin"] > 2 * difference + 1e-5 * largest]:
        raise FormError(
            f"the export's greedy text parts from the trained model's at a margin of {wide[0]['margin']:.3g}, which "
            f"logits that differ by {difference:.3g} do not explain"
        )
    return certificate


def _continue(lm: nn.Module, prompt: Sequence[int], new_tokens: int) -> list[int]:
    """Greedy, by the cache, past every end token."""
    room = min(new_tokens, lm.config.max_position_embeddings - len(prompt))
    ids, cache, made = torch.tensor([list(prompt)]), None, []
    for _ in range(room):
        out = lm(input_ids=ids, past_key_values=cache, use_cache=True)
        cache, ids = out.past_key_values, out.logits[:, -1:].argmax(-1)
        made.append(int(ids))
    return made
