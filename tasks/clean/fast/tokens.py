"""How many tokens a text has: counted by fastokens where it agrees with the tokenizer itself."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np

from tasks.tokenize.encode import CHECK_CHARS, PROBES

log = logging.getLogger(__name__)


class Counter:
    """A tokenizer of transformers as a function from texts to counts, without special tokens added.

    fastokens is compared with it on texts made for that and on one text of every batch; from the first
    difference on the tokenizer counts alone.
    """

    def __init__(self, tokenizer: Any):
        self.reference = _without_state(tokenizer.backend_tokenizer)
        self.fast = self._open()

    def __call__(self, texts: Sequence[str]) -> list[int]:
        if self.fast and texts and not self._agrees([texts[0][:CHECK_CHARS]]):
            self.fast = None
        return self._quickly(texts) if self.fast else self._slowly(texts)

    def _open(self) -> Any:
        try:
            import fastokens

            self.fast = fastokens.Tokenizer.from_json_str(self.reference.to_str())
            return self.fast if self._agrees(PROBES) else None
        except (ImportError, ValueError, RuntimeError) as error:
            log.warning("tokens are counted slowly: fastokens cannot be used: %s", error)
            return None

    def _agrees(self, texts: Sequence[str]) -> bool:
        for text in texts:
            if self._quickly([text]) != self._slowly([text]):
                log.warning("tokens are counted slowly: fastokens differs on %r", text[:40])
                return False
        return True

    def _quickly(self, texts: Sequence[str]) -> list[int]:
        _, bounds = self.fast.encode_batch_flat(list(texts))
        return np.diff(np.frombuffer(bounds, "<u8").astype(np.int64)).tolist()

    def _slowly(self, texts: Sequence[str]) -> list[int]:
        return list(map(len, self.reference.encode_batch_fast(list(texts), add_special_tokens=False)))


def _without_state(tokenizer: Any) -> Any:
    """The tokenizer without the truncation and the like that its file carries: they would falsify counts."""
    from model.tokenizer import switch_off

    tree = json.loads(tokenizer.to_str())
    if not (changes := switch_off(tree)):
        return tokenizer
    for change in changes:
        log.warning("the tokenizer that counts: %s", change)
    return type(tokenizer).from_str(json.dumps(tree, ensure_ascii=False))


@lru_cache(maxsize=2)
def counter(tokenizer: Any) -> Counter:
    """One for each tokenizer object, which operators.py keeps."""
    return Counter(tokenizer)
