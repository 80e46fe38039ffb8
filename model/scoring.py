"""Log-probabilities and generation for evaluation and preference data: what a model thinks of a text.

Three facts decide the shape of this file:
- The vocabulary head dwarfs everything else in a small model, so it is applied only at the positions
  whose next token is asked for, and its log-softmax is taken in fp32.
- The options of one question share their prompt, and all prompts their beginning (system turn, few-shot
  examples). Where the model's cache makes "prompt once, options behind it" equal to the full forward,
  what is shared is computed once (`share`).
- Sequences are batched by length under a token budget, and padded on the right only: in a causal
  model nothing before the padding can see it. Models that are not causal (the leaky Soft-MoE kinds)
  are batched by equal length.

The same call on the same machine and thread count gives the same bytes; results come back in the order asked.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from model.chat_template import render_chat
from model.tokenizer import TextTokenizer

LogProb = tuple[float, int]
"""Sum of log-probabilities, and the number of tokens it runs over."""

HEAD_ELEMENTS = 1 << 25
"""Logits held at once (positions times vocabulary): 128 MiB in fp32."""

LEAST_PREFIX = 4
"""A shorter common beginning is not worth a forward pass of its own."""


class NoRoom(ValueError):
    """A prompt that leaves no room for a reply in the model's context."""


# ------------------------------------------------------------------------------------ models
def load(export_dir: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The exported model, ready to score: fp32 on a CPU, bf16 on a GPU unless said otherwise."""
    from transformers import AutoModelForCausalLM

    _register()
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    model = AutoModelForCausalLM.from_pretrained(str(export_dir), dtype=dtype)
    return model.to(device).eval()


def untrained(export_dir: str | Path, seed: int, device: str = "cpu") -> nn.Module:
    """The model that the training with this seed started from, in the geometry of its export."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.families import network
    from model.steel import SteelConfig
    from model.training.parallel import from_seed

    _register()
    config = AutoConfig.from_pretrained(str(export_dir))
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if isinstance(config, SteelConfig):
        tensor_of = from_seed(config, model, seed)
    else:
        tensor_of = network.from_seed(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor_of(name))
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return model.to(device=device, dtype=dtype).eval()


def _register() -> None:
    """Make transformers know our architecture without remote code, and keep it quiet."""
    from transformers.utils import logging

    import model.steel  # noqa: F401

    logging.disable_progress_bar()


def resolve_device(wanted: str) -> str:
    """`auto` is the GPU where there is one."""
    if wanted == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return wanted


# ------------------------------------------------------------------------------------ scores
def choice_logprobs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    batch_tokens: int = 16384,
    share: bool | None = None,
) -> list[list[LogProb]]:
    """Log-probability of each option behind its prompt: `[question][option] -> (sum, tokens)`.

    `share` computes each distinct prompt once and puts the options behind its cache; by default
    where the model's cached forward is the full one.
    """
    if len(prompts) != len(options):
        raise ValueError(f"{len(prompts)} prompts, but options for {len(options)}")
    if share is None:
        share = _cached_equals_full(model)
    # One entry a distinct (prompt, option): the neutral prompt of a control serves all questions.
    wanted = list({(tuple(p), tuple(o)): None for p, os in zip(prompts, options, strict=True) for o in os})
    if any(not p or not o for p, o in wanted):
        raise ValueError("every prompt and every option needs at least one token")
    if share:
        scores = _shared_prompt(model, wanted, batch_tokens)
    else:
        flat = suffix_logprobs(model, [p + o for p, o in wanted], [len(p) for p, _ in wanted], batch_tokens)
        scores = dict(zip(wanted, flat, strict=True))
    return [[scores[tuple(p), tuple(o)] for o in os] for p, os in zip(prompts, options, strict=True)]


def reply_logprobs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    replies: Sequence[Sequence[int]],
    batch_tokens: int = 16384,
) -> list[LogProb]:
    """Log-probability of one reply behind each prompt."""
    whole = [list(p) + list(r) for p, r in zip(prompts, replies, strict=True)]
    return suffix_logprobs(model, whole, [len(p) for p in prompts], batch_tokens)


@torch.inference_mode()
def first_token_logprobs(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    candidates: Sequence[int],
    batch_tokens: int = 16384,
    share: bool | None = None,
) -> list[list[float]]:
    """Log-probability, over the whole vocabulary, of each candidate as the token after the prompt."""
    if share is None:
        share = _cached_equals_full(model)
    out: list[list[float]] = [[] for _ in prompts]
    head = _Head(model)
    wanted = torch.tensor(list(candidates), device=_device(model))
    for batch in _batches([len(p) for p in prompts], batch_tokens, equal=not _causal(model)):
        sequences = [prompts[i] for i in batch]
        hidden, offset, _ = _forward(model, sequences, share, keep_cache=False)
        last = torch.tensor([len(s) - 1 - offset for s in sequences], device=hidden.device)
        rows = hidden[torch.arange(len(batch), device=hidden.device), last]
        at = 0
        for logits in head.chunks(rows):
            picked = logits[:, wanted] - logits.logsumexp(-1, keepdim=True)
            for values in picked.tolist():
                out[batch[at]] = values
                at += 1
    return out


@torch.inference_mode()
def suffix_logprobs(
    model: nn.Module, sequences: Sequence[Sequence[int]], starts: Sequence[int], batch_tokens: int = 16384
) -> list[LogProb]:
    """Log-probability of `sequence[start:]` given what stands before it, by one full forward."""
    if any(not 0 < start < len(s) for s, start in zip(sequences, starts, strict=True)):
        raise ValueError("a scored part needs at least one token before it and one token in it")
    out: list[LogProb] = [(0.0, 0)] * len(sequences)
    for batch in _batches([len(s) for s in sequences], batch_tokens, equal=not _causal(model)):
        hidden = _hidden(model, [sequences[i] for i in batch])
        rows, columns, targets = [], [], []
        for row, i in enumerate(batch):
            for position in range(starts[i], len(sequences[i])):
                rows.append(row)
                columns.append(position - 1)
                targets.append(sequences[i][position])
        values = _token_logprobs(model, hidden[rows, columns], targets)
        at = 0
        for i in batch:
            count = len(sequences[i]) - starts[i]
            out[i] = (math.fsum(values[at : at + count]), count)
            at += count
    return out


@torch.inference_mode()
def _shared_prompt(
    model: nn.Module, wanted: list[tuple[tuple[int, ...], tuple[int, ...]]], batch_tokens: int
) -> dict[tuple, LogProb]:
    """Score options behind the cache of their prompt; only prompts of one length share a batch."""
    by_prompt: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prompt, option in wanted:
        by_prompt.setdefault(prompt, []).append(option)
    by_length: dict[int, list[tuple[int, ...]]] = {}
    for prompt in by_prompt:
        by_length.setdefault(len(prompt), []).append(prompt)

    scores: dict[tuple, LogProb] = {}
    for length in sorted(by_length):
        for prompts in _prompt_batches(by_length[length], by_prompt, length, batch_tokens):
            hidden, _, cache = _forward(model, prompts, share=True, keep_cache=True)
            last = hidden[:, -1]
            pairs = [(row, p, o) for row, p in enumerate(prompts) for o in by_prompt[p]]
            values = [
                [v] for v in _token_logprobs(model, last[[r for r, _, _ in pairs]], [o[0] for *_, o in pairs])
            ]
            longer = [k for k, (*_, option) in enumerate(pairs) if len(option) > 1]
            if longer:
                cache.batch_select_indices(torch.tensor([pairs[k][0] for k in longer], device=last.device))
                behind = [pairs[k][2][:-1] for k in longer]
                hidden = model.base_model(
                    input_ids=_padded(model, behind), past_key_values=cache, use_cache=True
                ).last_hidden_state
                rows = [row for row, tokens in enumerate(behind) for _ in tokens]
                columns = [column for tokens in behind for column in range(len(tokens))]
                targets = [t for k in longer for t in pairs[k][2][1:]]
                rest = iter(_token_logprobs(model, hidden[rows, columns], targets))
                for k in longer:
                    values[k] += [next(rest) for _ in pairs[k][2][1:]]
            for (_, prompt, option), tokens in zip(pairs, values, strict=True):
                scores[prompt, option] = (math.fsum(tokens), len(tokens))
    return scores


def _prompt_batches(
    prompts: list[tuple[int, ...]],
    options: dict[tuple[int, ...], list[tuple[int, ...]]],
    length: int,
    budget: int,
) -> Iterator[list[tuple[int, ...]]]:
    """Groups of prompts whose options, each with its copy of the cache, stay under the budget."""
    batch: list[tuple[int, ...]] = []
    used = 0
    for prompt in prompts:
        cost = len(options[prompt]) * (length + max(map(len, options[prompt])))
        if batch and used + cost > budget:
            yield batch
            batch, used = [], 0
        batch.append(prompt)
        used += cost
    if batch:
        yield batch


def _token_logprobs(model: nn.Module, hidden_NH: torch.Tensor, targets: list[int]) -> list[float]:
    """Log-softmax of the head at these hidden states, read at the targets."""
    wanted = torch.tensor(targets, device=hidden_NH.device)
    out: list[float] = []
    for logits in _Head(model).chunks(hidden_NH):
        here = wanted[len(out) : len(out) + len(logits), None]
        out += (logits.gather(1, here).squeeze(1) - logits.logsumexp(-1)).tolist()
    return out


class _Head:
    """The output layer in fp32, a chunk of positions at a time.

    bf16 logits are a sixteenth apart at best where they matter: options would tie.
    """

    def __init__(self, model: nn.Module):
        layer = model.get_output_embeddings()
        self._weight = layer.weight.float()
        self._bias = None if layer.bias is None else layer.bias.float()

    def chunks(self, hidden_NH: torch.Tensor) -> Iterator[torch.Tensor]:
        """fp32 logits [chunk, vocabulary]."""
        per_chunk = max(1, HEAD_ELEMENTS // len(self._weight))
        for start in range(0, len(hidden_NH), per_chunk):
            yield functional.linear(hidden_NH[start : start + per_chunk].float(), self._weight, self._bias)


def _forward(
    model: nn.Module, sequences: Sequence[Sequence[int]], share: bool, keep_cache: bool
) -> tuple[torch.Tensor, int, Any]:
    """Hidden states [B, T - offset, H] from position `offset` on, the offset, and the cache if wanted.

    With `share`, what all sequences begin with is computed once, as a batch of one.
    """
    offset = _common_prefix(sequences) if share and len(sequences) > 1 else 0
    if offset < LEAST_PREFIX:
        out = model.base_model(input_ids=_padded(model, sequences), use_cache=keep_cache)
        return out.last_hidden_state, 0, out.past_key_values if keep_cache else None
    cache = model.base_model(
        input_ids=_padded(model, [sequences[0][:offset]]), use_cache=True
    ).past_key_values
    cache.batch_repeat_interleave(len(sequences))
    rest = _padded(model, [s[offset:] for s in sequences])
    out = model.base_model(input_ids=rest, past_key_values=cache, use_cache=True)
    return out.last_hidden_state, offset, cache


def _common_prefix(sequences: Sequence[Sequence[int]]) -> int:
    """Tokens that all sequences begin with; each keeps one of its own."""
    low, high = min(map(list, sequences)), max(map(list, sequences))  # these two differ first
    limit = min(map(len, sequences)) - 1
    return next((k for k, (x, y) in enumerate(zip(low, high, strict=False)) if x != y or k == limit), limit)


def _hidden(model: nn.Module, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    return model.base_model(input_ids=_padded(model, sequences), use_cache=False).last_hidden_state


def _padded(model: nn.Module, sequences: Sequence[Sequence[int]]) -> torch.Tensor:
    """Right-padded; the padding's own value never matters."""
    width = max(map(len, sequences))
    return torch.tensor([list(s) + [0] * (width - len(s)) for s in sequences], device=_device(model))


def _batches(lengths: Sequence[int], budget: int, equal: bool) -> Iterator[list[int]]:
    """Indices, longest first, in groups of (rows times longest row) tokens at most; one row at least."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    batch: list[int] = []
    for i in order:
        longest = lengths[batch[0]] if batch else lengths[i]
        if batch and ((len(batch) + 1) * longest > budget or (equal and lengths[i] != longest)):
            yield batch
            batch = []
        batch.append(i)
    if batch:
        yield batch


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _ffn(model: nn.Module) -> str:
    return getattr(model.config, "ffn", "dense")


def _causal(model: nn.Module) -> bool:
    from model.steel.configuration import LEAKY_KINDS

    return _ffn(model) not in LEAKY_KINDS


def _cached_equals_full(model: nn.Module) -> bool:
    """Kinds whose state is the attention cache alone, which can be copied once per option."""
    return _ffn(model) in ("dense", "token")


# -------------------------------------------------------------------------------- generation
def generate(
    model: nn.Module,
    tokenizer: TextTokenizer,
    prompts: Sequence[str | Sequence[int]],
    max_new_tokens: int = 48,
    *,
    chat: bool = True,
    temperature: float = 0.0,
    top_p: float = 1.0,
    seed: int = 0,
) -> list[str]:
    """Continue each prompt: greedily at temperature 0, else by seeded sampling.

    A string is a user's turn (`chat`) or plain text; a list of ids is taken as it is. Every prompt
    is continued by itself, with the seed anew, so that a result does not depend on its neighbours.
    A reply ends where the model's context does. Raises NoRoom for a prompt that fills it.
    """
    stops = tokenizer.stops
    context = model.config.max_position_embeddings
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    texts = []
    for prompt in prompts:
        ids = _prompt_ids(tokenizer, prompt, chat) if isinstance(prompt, str) else list(prompt)
        if len(ids) >= context:
            raise NoRoom(
                f"the prompt has {len(ids):,} tokens, the model's context of {context:,} has no room for a reply"
            )
        given = torch.tensor([ids], device=_device(model))
        with torch.random.fork_rng(devices=[given.device] if given.is_cuda else []), torch.inference_mode():
            torch.manual_seed(seed)
            out = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=min(max_new_tokens, context - len(ids)),
                eos_token_id=stops or None,
                pad_token_id=stops[-1] if stops else 0,
                **(sampling or {"do_sample": False}),
            )
        texts.append(tokenizer.decode(out[0, len(ids) :].tolist(), skip_special_tokens=True))
    return texts


def _prompt_ids(tokenizer: TextTokenizer, text: str, chat: bool) -> list[int]:
    """By pieces, as training data are rendered: the text gives no special token."""
    if not chat:
        return [*tokenizer.begin, *tokenizer.encode(text)]
    return render_chat(tokenizer, [{"role": "user", "content": text}], generation_prompt=True)[0]
