"""Text -> token ids, in bulk. Two backends that must agree to the last id.

`tokenizers` is the reference (what transformers runs); `fastokens` is used where it can be
imported, many times as fast. It is checked against the reference at start-up and on samples of
every so many batches: at start-up a difference means falling back, later it means stopping.

No added token is made from a text, by the rule of model.tokenizer: a web page that contains
`<|endoftext|>` must not be able to end a document. Both backends are given the tokenizer without
its added tokens, and without the state that its file may carry (truncation, dropout and the like).
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import logging
from collections.abc import Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np

from model.chat_format import NoFormat
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import END_OF_TEXT, IM_END, IM_START, After

log = logging.getLogger(__name__)

PROBES = (
    "",
    " ",
    "\n",
    "北京是中华人民共和国的首都，人口两千多万。",
    "The quick brown fox's 1234567890 jumps; it'll, WE'VE, don't.",
    "  leading, trailing  \t\t tabs\t\n\n\r\n  and   lines \r\n",
    "def f(x):\n    return x**2  # 平方\n\n\n",
    END_OF_TEXT + IM_START + "user\n" + IM_END + "<|im_", "<|endoftext", "|><|",
    "e\u0301 \u1112\u1161\u11ab \ufb01 \u2126 Å",  # NFC changes these
    "👩‍👩‍👧‍👦🇨🇳 \u200b\ufeff\u00a0\u3000全角　１２３",
    "\u0000\u0001\u007f\u0085\u2028",
    "𠮷野家𝒳",
    "a" * 3000,
    "哈" * 1000 + " " * 1000,
    "ſ'S K'T İ'll",
)  # fmt: skip
CHECK_EVERY = 128
"""Batches between two comparisons of a few texts with the reference: about 1 % of the time."""
CHECK_TEXTS, CHECK_CHARS = 8, 2_000
"""So many texts are compared, of longer ones the beginning."""


class Encoder:
    """A tokenizer folder, ready to encode."""

    def __init__(self, folder: Path | str, backend: str = "auto") -> None:
        """`backend`: fastokens, tokenizers, or auto (the faster one that works)."""
        from model.tokenizer import TextTokenizer

        try:
            opened = TextTokenizer.open(folder)
        except ValueError as error:
            raise NodeError(str(error)) from error
        self._opened, self._reference = opened, opened.text
        self.vocab_size: int = opened.vocab_size
        self.chat = opened.chat
        """How dialogues become tokens."""
        if isinstance(self.chat, NoFormat):
            raise NodeError(f"the tokenizer in {folder} cannot be used: {self.chat.reason}")
        self.unknown = opened.unknown
        """The id of its token for what it has no tokens for, if there is one."""
        self.begin = opened.begin
        """Ids before a plain text."""
        self.end_of_text = self.special_id(self.chat.document_end)
        """Ends a document."""
        self.digest = tokenizer_digest(folder)
        self.changes = opened.changes
        """State of the file that is switched off here (model.tokenizer)."""
        self.warnings = [f"the tokenizer in {folder}: {change}" for change in self.changes]
        for warning in self.warnings:
            log.warning(warning)
        self._batches = 0
        self._fast = (
            None
            if backend == "tokenizers"
            else self._open_fast(opened.text_json, required=backend == "fastokens")
        )
        name = "tokenizers" if self._fast is None else "fastokens"
        self.backend = f"{name} {importlib.metadata.version(name)}"

    def special_id(self, token: str) -> int:
        """The id of an added token, which must be there."""
        number = self._opened.special_id(token)
        if number is None:
            raise NodeError(f"the tokenizer has no special token {token}")
        return number

    def encode(self, text: str, after: After = "") -> list[int]:
        """The ids of one text, at the beginning or behind another piece."""
        if self._opened.is_inside(after):
            return self._opened.encode(text, after)
        return self.encode_batch([text])[0].tolist()

    def encode_pieces(self, texts: Sequence[str], afters: Sequence[After]) -> tuple[np.ndarray, np.ndarray]:
        """As `encode_flat`, for texts of which some stand behind others."""
        inside = [self._opened.is_inside(after) for after in afters]
        if not any(inside):
            return self.encode_flat(texts)
        kinds = [_split(*self.encode_flat([t for t, i in zip(texts, inside, strict=True) if not i]))]
        some = [t for t, i in zip(texts, inside, strict=True) if i]
        encodings = self._opened.inside.encode_batch_fast(some, add_special_tokens=False)
        kinds.append([np.array(e.ids, np.uint32) for e in encodings])
        ways = [iter(kind) for kind in kinds]
        ids = [next(ways[i]) for i in inside]
        return np.concatenate(ids), np.cumsum([0, *map(len, ids)], dtype=np.int64)

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The ids of each text, uint32."""
        return _split(*self.encode_flat(texts))

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        """The ids of all texts as one uint32 array, and int64 bounds: text i is ids[bounds[i]:bounds[i + 1]]."""
        if self._fast is None:
            return self._encode_reference(texts)
        found = self._encode_fast(self._fast, texts)
        if self._batches % CHECK_EVERY == 0 and texts:
            self._check(texts, *found)
        self._batches += 1
        return found

    def _check(self, texts: Sequence[str], ids: np.ndarray, bounds: np.ndarray) -> None:
        """Compare some of a batch's results with the reference."""
        for i in range(0, len(texts), -(-len(texts) // CHECK_TEXTS)):
            text, found = texts[i], ids[bounds[i] : bounds[i + 1]]
            if len(text) > CHECK_CHARS:
                text = text[:CHECK_CHARS]
                found, _ = self._encode_fast(self._fast, [text])
            due, _ = self._encode_reference([text])
            if not np.array_equal(found, due):
                raise NodeError(
                    f"{self.backend} and tokenizers disagree on {text[:80]!r}: set runtime.encoder=tokenizers "
                    "and force the tokenize nodes"
                )

    def _encode_reference(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        found = [e.ids for e in self._reference.encode_batch_fast(list(texts), add_special_tokens=False)]
        ids = np.fromiter(chain.from_iterable(found), np.uint32)
        return ids, np.cumsum([0, *map(len, found)], dtype=np.int64)

    @staticmethod
    def _encode_fast(fast: Any, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        ids, bounds = fast.encode_batch_flat(list(texts))
        return np.frombuffer(ids, "<u4"), np.frombuffer(bounds, "<u8").astype(np.int64)

    def _open_fast(self, tokenizer: str, *, required: bool) -> Any:
        """The fast backend if it loads and agrees with the reference on PROBES, else None, loudly."""
        try:
            import fastokens

            fast = fastokens.Tokenizer.from_json_str(tokenizer)
            probes = (*PROBES, *(f"a{token}b {token}" for token in self._opened.added))
            found = _split(*self._encode_fast(fast, probes))
        except (ImportError, ValueError, RuntimeError) as error:
            return self._fall_back(f"fastokens cannot be used: {error}", required)
        for text, ids, due in zip(probes, found, _split(*self._encode_reference(probes)), strict=True):
            if not np.array_equal(ids, due):
                return self._fall_back(f"fastokens differs from tokenizers on {text[:40]!r}", required)
        return fast

    def _fall_back(self, why: str, required: bool) -> None:
        if required:
            raise NodeError(why)
        self.warnings.append(f"{why}; encoding with tokenizers, many times slower")
        log.warning(self.warnings[-1])


def _split(ids: np.ndarray, bounds: np.ndarray) -> list[np.ndarray]:
    ends = bounds.tolist()
    return [ids[a:b] for a, b in zip(ends, ends[1:], strict=False)]


def tokenizer_digest(folder: Path | str) -> str:
    """The sha256 of tokenizer.json: shards made with another tokenizer have another one."""
    return hashlib.sha256((Path(folder) / "tokenizer.json").read_bytes()).hexdigest()


@lru_cache(maxsize=2)
def shared_encoder(folder: str, backend: str = "auto") -> Encoder:
    """One encoder a process and folder (an artifact, which never changes): loading takes seconds."""
    return Encoder(folder, backend)
