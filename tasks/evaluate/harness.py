"""lm-evaluation-harness on Steel's scorer: any of its tasks, on any model by path.

    python -m tasks.evaluate.harness run --model steel --model_args pretrained=FOLDER --tasks … --include_path …

takes what `lm_eval` takes. Texts are encoded as the harness's own `hf` model encodes them, so answers are the same.
Needs lm_eval, which nothing else of Steel does (make peers).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from lm_eval import utils
from lm_eval.api.model import TemplateLM
from lm_eval.api.registry import register_model
from lm_eval.models.utils import (
    handle_stop_sequences,
    normalize_gen_kwargs,
    postprocess_generated_text,
)

from model import scoring
from model.by_path import open_model
from model.scores.network import context

LONGEST = 2048
"""Tokens of a window where a model names no limit, as in the harness."""


@register_model("steel")
class SteelLM(TemplateLM):
    """A model by path, scored by model.scoring."""

    def __init__(
        self,
        pretrained: str,
        device: str | None = None,
        batch_tokens: int = 16384,
        batch_size: Any = None,
        max_batch_size: Any = None,
        max_gen_toks: int = 256,
    ) -> None:
        """`batch_size` and `max_batch_size` are the harness's and mean nothing here: `batch_tokens` bounds a batch."""
        super().__init__()
        opened = open_model(pretrained, scoring.resolve_device(device or "auto"))
        self.model: Any = opened.model
        self.tokenizer: Any = opened.tokenizer.theirs
        self.stops = opened.tokenizer.stop_ids
        self.batch_tokens, self.max_gen_toks = int(batch_tokens), int(max_gen_toks)
        self.max_length = context(self.model) or LONGEST

    # ------------------------------------------------------------------------------- tokens
    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_token_id

    @property
    def prefix_token_id(self) -> int:
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return str(self.tokenizer.name_or_path).replace("/", "__")

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        more = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self.prefix_token_id)):
            more = {"add_special_tokens": False}
        return self.tokenizer.encode(string, **more)

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    # ------------------------------------------------------------------------------- requests
    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        prompts, options = [], []
        for _, before, behind in requests:
            kept = (before + behind)[-(self.max_length + 1) :]
            prompts.append(kept[: -len(behind)])
            options.append([kept[-len(behind) :]])
        scored = scoring.option_scores(
            self.model, prompts, options, self.batch_tokens, progress=_bar(len(prompts), disable_tqdm)
        )
        answers = [(total, likeliest) for [(total, _, likeliest)] in scored]
        for (texts, *_), answer in zip(requests, answers, strict=True):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        windows: list[tuple[None, list[int], list[int]]] = []
        counts = []
        for request in requests:
            [text] = request.args
            rolling = utils.get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            here = [(None, *utils.make_disjoint_window(window)) for window in rolling]
            windows += here
            counts.append(len(here))
        told = iter(self._loglikelihood_tokens(windows, disable_tqdm))
        return [sum(next(told)[0] for _ in range(count)) for count in counts]

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        step = _bar(len(requests), disable_tqdm)
        replies = []
        for number, request in enumerate(requests, 1):
            text, settings = request.args
            replies.append(self._reply(text, settings))
            self.cache_hook.add_partial("generate_until", (text, settings), replies[-1])
            step(number, len(requests))
        return replies

    @torch.inference_mode()
    def _reply(self, text: str, settings: dict[str, Any]) -> str:
        from transformers import StoppingCriteriaList

        asked: Any = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        most = asked.pop("max_gen_toks")
        until = handle_stop_sequences(asked.pop("until", None), eos=self.tokenizer.decode(self.eot_token_id))
        if not asked.get("do_sample"):
            asked = {"do_sample": False}
        if most >= self.max_length:
            raise ValueError(f"a reply of {most} tokens leaves no room in the context of {self.max_length}")
        ids = torch.tensor([self.tok_encode(text)[-(self.max_length - most) :]], device=self.model.device)

        def stopped(made: torch.Tensor, *_: Any, **__: Any) -> bool:
            said = self.tokenizer.decode(made[0, ids.shape[1] :])
            return any(end in said for end in until if end)

        out = self.model.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=most,
            pad_token_id=self.eot_token_id,
            stopping_criteria=StoppingCriteriaList([stopped]),
            **asked,
        )
        return postprocess_generated_text(self.tokenizer.decode(out[0, ids.shape[1] :]), until, None)


def _bar(total: int, hidden: bool) -> Callable[[int, int], None]:
    from tqdm import tqdm

    bar: Any = tqdm(total=total, disable=hidden, desc="Scoring")

    def step(done: int, of: int) -> None:
        bar.total = of
        bar.update(done - bar.n)
        if done == of:
            bar.close()

    return step


def main() -> None:
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
