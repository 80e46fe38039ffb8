"""Log-probabilities and generation for evaluation and preference data: what a model thinks of a text.

Four facts decide the shape of this file (its engine is model.scores):
- The vocabulary head dwarfs everything else in a small model, so it is applied only at the positions whose next token
  is asked for, once for all options of a question, and its log-softmax is taken in fp32.
- The options of one question share their prompt, and prompts their beginnings (system turn, few-shot examples). They
  are put into a tree; each node of it is computed once (`share`), where the model's cache makes that exact.
- Sequences are batched by length under a token budget, and padded on the right only: in a causal model nothing before
  the padding can see it. Models that are not causal (the leaky Soft-MoE kinds) are batched by equal length.
- A model that is not Steel's is tried on one batch first (model.scores.network): what does not give the logits of its
  own forward is not done with it.

The same call on the same machine and thread count gives the same bytes; results come back in the order asked.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from model.chat_template import render_chat
from model.scores.head import HEAD_ELEMENTS, pick
from model.scores.network import Network, context, network_of
from model.scores.plan import batches
from model.scores.walk import walk
from model.tokenizer import TextTokenizer

LogProb = tuple[float, int]
"""Sum of log-probabilities, and the number of tokens it runs over."""
Scored = tuple[float, int, bool]
"""The same, and whether every one of these tokens is the likeliest."""
Progress = Callable[[int, int], None]
"""Called with the number of sequences done, and of all."""


class NoRoom(ValueError):
    """A prompt that leaves no room for a reply in the model's context."""


# ------------------------------------------------------------------------------------ models
def load(export_dir: str | Path, device: str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
    """The exported model, ready to score: fp32 on a CPU, bf16 on a GPU unless said otherwise."""
    from transformers import AutoModelForCausalLM

    prepare_transformers()
    dtype = dtype or (torch.bfloat16 if device.startswith("cuda") else torch.float32)
    model = AutoModelForCausalLM.from_pretrained(str(export_dir), dtype=dtype, trust_remote_code=False)
    return model.to(device).eval()


def untrained(export_dir: str | Path, seed: int, device: str = "cpu") -> nn.Module:
    """The model that the training with this seed started from, in the geometry of its export."""
    from transformers import AutoConfig, AutoModelForCausalLM

    from model.families import network
    from model.steel import SteelConfig
    from model.training.parallel import from_seed

    prepare_transformers()
    config = AutoConfig.from_pretrained(str(export_dir), trust_remote_code=False)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False)
    if isinstance(config, SteelConfig):
        tensor_of = from_seed(config, model, seed)
    else:
        tensor_of = network.from_seed(model, seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(tensor_of(name))
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    return model.to(device=device, dtype=dtype).eval()


def prepare_transformers() -> None:
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
    progress: Progress | None = None,
) -> list[list[LogProb]]:
    """Log-probability of each option behind its prompt: `[question][option] -> (sum, tokens)`.

    `share` False: every option with its whole prompt, by a full forward. By default what is shared is computed once,
    where the model's cached forward is the full one.
    """
    scored = option_scores(model, prompts, options, batch_tokens, share, progress, likeliest=False)
    return [[(total, tokens) for total, tokens, _ in each] for each in scored]


def option_scores(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    options: Sequence[Sequence[Sequence[int]]],
    batch_tokens: int = 16384,
    share: bool | None = None,
    progress: Progress | None = None,
    likeliest: bool = True,
) -> list[list[Scored]]:
    """As choice_logprobs, and whether greedy decoding would give the option (`likeliest` False: not known)."""
    if len(prompts) != len(options):
        raise ValueError(f"{len(prompts)} prompts, but options for {len(options)}")
    # One entry a distinct prompt and option: the neutral prompt of a control serves all questions.
    asked: dict[tuple[int, ...], dict[tuple[int, ...], None]] = {}
    for prompt, each in zip(prompts, options, strict=True):
        asked.setdefault(tuple(prompt), {}).update((tuple(option), None) for option in each)
    if any(not prompt or not all(each) for prompt, each in asked.items()):
        raise ValueError("every prompt and every option needs at least one token")
    network = network_of(model)
    longest = max((len(p) + len(o) for p, each in asked.items() for o in each), default=0)
    share = _shared(network, longest, share)
    scores = _Options(network, asked, batch_tokens, share, likeliest).scores(progress)
    return [[scores[tuple(p), tuple(o)] for o in each] for p, each in zip(prompts, options, strict=True)]


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
    progress: Progress | None = None,
) -> list[list[float]]:
    """Log-probability, over the whole vocabulary, of each candidate as the token after the prompt."""
    distinct = list(dict.fromkeys(map(tuple, prompts)))
    if not all(distinct):
        raise ValueError("every prompt needs at least one token")
    network = network_of(model)
    head = network.head()
    share = _shared(network, max(map(len, distinct), default=0), share)
    found: dict[tuple[int, ...], list[float]] = {}
    width = len(candidates)
    for reached in walk(network, distinct, _budget(network, batch_tokens), share):
        values, _ = pick(head, reached.last, [candidates] * len(reached.sequences))
        for row, i in enumerate(reached.sequences):
            found[distinct[i]] = values[row * width : (row + 1) * width]
        if progress:
            progress(len(found), len(distinct))
    return [found[tuple(prompt)] for prompt in prompts]


def suffix_logprobs(
    model: nn.Module,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch_tokens: int = 16384,
    progress: Progress | None = None,
) -> list[LogProb]:
    """Log-probability of `sequence[start:]` given what stands before it, by one full forward."""
    if any(not 0 < start < len(s) for s, start in zip(sequences, starts, strict=True)):
        raise ValueError("a scored part needs at least one token before it and one token in it")
    scored = _suffixes(network_of(model), sequences, starts, batch_tokens, False, progress)
    return [(total, tokens) for total, tokens, _ in scored]


@torch.inference_mode()
def _suffixes(
    network: Network,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch_tokens: int,
    likeliest: bool,
    progress: Progress | None = None,
) -> list[Scored]:
    """What a causal model says of `sequence[start:]` does not depend on the last token: it is not computed."""
    fed = [s[:-1] for s in sequences] if network.causal else sequences
    head = network.head()
    out: list[Scored] = [(0.0, 0, True)] * len(sequences)
    done = 0
    budget = _budget(network, batch_tokens)
    for batch in batches([len(s) for s in fed], budget, equal=not network.padded):
        states = network.states([fed[i] for i in batch])
        at = [(row, c) for row, i in enumerate(batch) for c in range(starts[i] - 1, len(sequences[i]) - 1)]
        rows, columns = zip(*at, strict=True)
        targets = [[t] for i in batch for t in sequences[i][starts[i] :]]
        values, best = pick(head, states[rows, columns], targets, likeliest)
        place = 0
        for i in batch:
            end = place + len(sequences[i]) - starts[i]
            out[i] = (math.fsum(values[place:end]), end - place, all(best[place:end]))
            place = end
        done += len(batch)
        if progress:
            progress(done, len(sequences))
    return out


class _Options:
    """The options of every distinct prompt: first tokens at the prompt's end, what is longer behind its cache."""

    def __init__(
        self,
        network: Network,
        asked: dict[tuple[int, ...], dict[tuple[int, ...], None]],
        batch_tokens: int,
        share: bool,
        likeliest: bool,
    ):
        self.network, self.asked, self.budget = network, asked, batch_tokens
        self.share, self.likeliest = share, likeliest
        self.head = network.head()
        self.found: dict[tuple, Scored] = {}

    @torch.inference_mode()
    def scores(self, progress: Progress | None) -> dict[tuple, Scored]:
        """By (prompt, option)."""
        apart = self.asked
        if self.network.causal:  # else an option of one token changes the states of its prompt, too
            apart = {} if self.share else _only(self.asked, lambda option: len(option) > 1)
            self._behind(_only(self.asked, lambda option: self.share or len(option) == 1), progress)
        pairs = [(prompt, option) for prompt, options in apart.items() for option in options]
        whole = [prompt + option for prompt, option in pairs]
        starts = [len(prompt) for prompt, _ in pairs]
        rest = _suffixes(self.network, whole, starts, self.budget, self.likeliest, progress)
        return self.found | dict(zip(pairs, rest, strict=True))

    def _behind(self, asked: dict, progress: Progress | None) -> None:
        prompts = list(asked)
        kept = {i for i, prompt in enumerate(prompts) if any(len(option) > 1 for option in asked[prompt])}
        done, of = 0, sum(map(len, asked.values()))
        for reached in walk(self.network, prompts, _budget(self.network, self.budget), self.share, kept):
            here = [(row, prompts[i], list(asked[prompts[i]])) for row, i in enumerate(reached.sequences)]
            first = [list(dict.fromkeys(option[0] for option in options)) for *_, options in here]
            values, best = pick(self.head, reached.last, first, self.likeliest)
            told = iter(zip(values, best or values, strict=True))
            heads = [{token: next(told) for token in tokens} for tokens in first]
            pairs = [(row, prompt, option) for row, prompt, options in here for option in options]
            for row, prompt, option in pairs:
                if len(option) == 1:
                    value, likeliest = heads[row][option[0]]
                    self.found[prompt, option] = (value, 1, bool(likeliest))
            longer = [pair for pair in pairs if len(pair[2]) > 1]
            for some in chain([len(pairs) - len(longer)], self._longer(reached, longer, heads)):
                done += some
                if progress:
                    progress(done, of)

    def _longer(self, reached: Any, pairs: list[tuple], heads: list[dict]) -> Iterator[int]:
        """Options of several tokens, their first one known, behind the cache of their prompts; their numbers."""
        before = reached.shared + max(reached.lengths)
        for batch in batches([len(option) - 1 for *_, option in pairs], self.budget, False, shared=before):
            chosen = [pairs[k] for k in batch]
            fed = [option[:-1] for *_, option in chosen]
            states = reached.further(self.network, [row for row, *_ in chosen], fed)
            rows = [k for k, tokens in enumerate(fed) for _ in tokens]
            columns = [column for tokens in fed for column in range(len(tokens))]
            targets = [[token] for *_, option in chosen for token in option[1:]]
            values, best = pick(self.head, states[rows, columns], targets, self.likeliest)
            at = 0
            for row, prompt, option in chosen:
                value, likeliest = heads[row][option[0]]
                end = at + len(option) - 1
                total = math.fsum([value, *values[at:end]])
                self.found[prompt, option] = (total, len(option), bool(likeliest) and all(best[at:end]))
                at = end
            yield len(batch)


def _only(asked: dict, wanted: Callable[[tuple[int, ...]], bool]) -> dict:
    kept = {prompt: [o for o in options if wanted(o)] for prompt, options in asked.items()}
    return {prompt: options for prompt, options in kept.items() if options}


def _shared(network: Network, longest: int, share: bool | None) -> bool:
    """Whether beginnings are shared: where it is exact for sequences of this length, and not switched off."""
    fits = network.share_limit is None or longest <= network.share_limit
    return network.shares and fits and share is not False


def _budget(network: Network, batch_tokens: int) -> int:
    """Tokens of a forward pass; where all its logits are made, so many that these stay bounded, too."""
    if not network.whole:
        return batch_tokens
    return min(batch_tokens, max(1, HEAD_ELEMENTS // network.vocabulary))


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
    stops = getattr(tokenizer, "stop_ids", None)
    if stops is None:
        stops = tokenizer.stops
    room = context(model) or 1 << 30
    sampling = {"do_sample": True, "temperature": temperature, "top_p": top_p} if temperature > 0 else {}
    texts = []
    for prompt in prompts:
        ids = _prompt_ids(tokenizer, prompt, chat) if isinstance(prompt, str) else list(prompt)
        if len(ids) >= room:
            raise NoRoom(
                f"the prompt has {len(ids):,} tokens, the model's context of {room:,} has no room for a reply"
            )
        given = torch.tensor([ids], device=next(model.parameters()).device)
        with torch.random.fork_rng(devices=[given.device] if given.is_cuda else []), torch.inference_mode():
            torch.manual_seed(seed)
            out = model.generate(
                input_ids=given,
                attention_mask=torch.ones_like(given),
                max_new_tokens=min(max_new_tokens, room - len(ids)),
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
