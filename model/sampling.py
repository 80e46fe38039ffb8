"""Many replies to many prompts, with the model's own cached decoder: greedy, or drawn at a temperature.

A prompt is computed once for all its replies: its cache is copied. Prompts of one length share a batch, so there is no
padding and no mask. A reply that has ended leaves the cache; the batch ends when none is left.

Each prompt has random numbers of its own, one for each reply and token, from a seed that the caller gives. So what is
drawn depends on neither the other prompts of the batch nor the number of processes, but for rounding of the logits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from model.rewards import Reply
from model.scores.head import finish_of, finished
from model.tokenizer import TextTokenizer

BATCH_ROWS = 128
"""Replies decoded side by side."""


@dataclass(frozen=True)
class Sample:
    """One reply."""

    ids: tuple[int, ...]
    """Its tokens, with the one that ended it."""
    logps: tuple[float, ...]
    """Log-probability of each token at the temperature (at 1 for greedy ones)."""
    entropy: float
    """Sum over its tokens of the entropy of the distribution that each was drawn from, in nats."""
    ended: bool
    """A stop token was drawn; False: cut at the limit."""


@torch.inference_mode()
def sample(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    *,
    stops: Sequence[int],
    group: int = 1,
    limit: int = 64,
    temperature: float = 0.0,
    seeds: Sequence[int] = (),
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[int, int], None] | None = None,
) -> list[list[Sample]]:
    """[prompt][reply], `group` replies to each prompt of at most `limit` tokens. Temperature 0: the likeliest token.

    `seeds`: one for each prompt (unless greedy). `progress` is told of prompts done, and of all. Raises ValueError for a prompt that leaves no room for `limit` tokens.
    """
    context = getattr(model.config, "max_position_embeddings", None) or 1 << 30
    longest = max(map(len, prompts), default=0)
    if longest + limit > context:
        raise ValueError(
            f"a prompt of {longest} tokens and a reply of {limit} exceed the context of {context}"
        )
    by_length: dict[int, list[int]] = {}
    for i, prompt in enumerate(prompts):
        by_length.setdefault(len(prompt), []).append(i)
    found: list[list[Sample]] = [[] for _ in prompts]
    size = max(1, batch_rows // group)
    done = 0
    for length in sorted(by_length):
        same = by_length[length]
        for start in range(0, len(same), size):
            batch = same[start : start + size]
            draws = _draws([seeds[i] for i in batch], group, limit) if temperature else None
            rows = _batch(model, [list(prompts[i]) for i in batch], draws, group, limit, temperature, stops)
            for k, i in enumerate(batch):
                found[i] = rows[k * group : (k + 1) * group]
            done += len(batch)
            if progress:
                progress(done, len(prompts))
    return found


def graded(tokenizer: TextTokenizer, found: Sample) -> Reply:
    """A sampled reply as a grader sees it. A model may have more ids than its tokenizer: such an id has no text, and a
    reply that holds one is not whole."""
    ids = found.ids[:-1] if found.ended else found.ids
    whole = all(tokenizer.whole.id_to_token(i) is not None for i in ids)
    return Reply(tokenizer.decode(ids), found.ended, whole)


def _draws(seeds: Sequence[int], group: int, limit: int) -> Tensor:
    """FP64 [prompts * group, limit] in [0, 1)."""
    rows = [
        torch.rand(group, limit, generator=torch.Generator().manual_seed(s), dtype=torch.float64)
        for s in seeds
    ]
    return torch.cat(rows)


def _batch(
    model: nn.Module,
    prompts: list[list[int]],
    draws: Tensor | None,
    group: int,
    limit: int,
    temperature: float,
    stops: Sequence[int],
) -> list[Sample]:
    """Prompts of one length."""
    device = next(model.parameters()).device
    head: Any = model.get_output_embeddings()
    finish = finish_of(model.config)
    out = model.base_model(input_ids=torch.tensor(prompts, device=device), use_cache=True)
    cache, logits = out.past_key_values, finished(head(out.last_hidden_state[:, -1]).float(), *finish)
    if group > 1:
        cache.batch_repeat_interleave(group)
        logits = logits.repeat_interleave(group, 0)
    rows = len(logits)
    tokens: list[list[int]] = [[] for _ in range(rows)]
    logps: list[list[float]] = [[] for _ in range(rows)]
    entropies = [0.0] * rows
    ended = [False] * rows
    alive = torch.arange(rows)
    end = torch.tensor(list(stops), device=device)
    for place in range(limit):
        logp = torch.log_softmax(logits / (temperature or 1.0), -1)
        p = logp.exp()
        entropy = (-p * logp).sum(-1).tolist()
        if draws is None:
            token = logp.argmax(-1)
        else:
            # one number a row: the token where the running sum passes it
            total = p.double().cumsum(-1)
            draw = draws[alive, place].to(device)[:, None] * total[:, -1:]
            token = torch.searchsorted(total, draw, right=True)[:, 0].clamp(max=logp.shape[1] - 1)
        stopped = torch.isin(token, end)
        taken = logp.gather(1, token[:, None])[:, 0].tolist()
        facts = zip(alive.tolist(), token.tolist(), taken, entropy, stopped.tolist(), strict=True)
        for row, t, lp, h, stop in facts:
            tokens[row].append(t)
            logps[row].append(lp)
            entropies[row] += h
            ended[row] = stop
        going = (~stopped).nonzero()[:, 0]
        if not len(going) or place + 1 == limit:
            break
        if len(going) < len(alive):
            cache.batch_select_indices(going)
            alive, token = alive[going.cpu()], token[going]
        out = model.base_model(input_ids=token[:, None], past_key_values=cache, use_cache=True)
        logits = finished(head(out.last_hidden_state[:, -1]).float(), *finish)
    return [Sample(tuple(tokens[i]), tuple(logps[i]), entropies[i], ended[i]) for i in range(rows)]
