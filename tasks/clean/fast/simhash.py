"""document_simhash_deduplicator: the same hash, with the bits of all shingles added up in numpy."""

from __future__ import annotations

from hashlib import md5

import numpy as np
from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.deduplicator.document_simhash_deduplicator import DocumentSimhashDeduplicator
from data_juicer.utils.constant import HashKeys

from tasks.clean.fast import ngrams


@OPERATORS.register_module("fast_document_simhash_deduplicator")
class FastSimhash(DocumentSimhashDeduplicator):
    """document_simhash_deduplicator, by spaces or by characters; by punctuation as the original does."""

    def compute_hash(self, sample):
        if HashKeys.simhash in sample or self.tokenization == "punctuation":
            return super().compute_hash(sample)
        text = sample[self.text_key]
        if self.lowercase:
            text = text.lower()
        if self.ignore_pattern:
            text = self.ignore_pattern.sub("", text)
        if self.tokenization == "character":
            data, starts = text.encode(), _byte_offsets(text)
            ends = starts[self.window_size :]
        else:
            words = [word for word in text.split(" ") if word]
            data = " ".join(words).encode()
            sizes = np.fromiter((len(word.encode()) + 1 for word in words), np.int64, len(words))
            starts = np.concatenate([[0], np.cumsum(sizes)])
            ends = starts[self.window_size :] - 1
        sample[HashKeys.simhash] = str(simhash(data, starts.tolist(), ends.tolist()))
        return sample


def simhash(data: bytes, starts: list[int], ends: list[int]) -> int:
    """64 bits: of each whether more shingles data[start:end] have it set in their MD5 than not; 0 for none."""
    if not ends:
        return 0
    digests = b"".join([md5(data[a:b]).digest() for a, b in zip(starts, ends, strict=False)])
    bits = np.unpackbits(np.frombuffer(digests, np.uint8).reshape(-1, 16)[:, :8], axis=1)
    majority = 2 * bits.sum(axis=0, dtype=np.int64) > len(ends)
    return int.from_bytes(np.packbits(majority).tobytes(), "big")


def _byte_offsets(text: str) -> np.ndarray:
    """Where each character starts in UTF-8, and where the last one ends, int64 [len + 1]."""
    codes, _ = ngrams.code_points([text])
    sizes = 1 + (codes > 0x7F).astype(np.int64) + (codes > 0x7FF) + (codes > 0xFFFF)
    return np.concatenate([[0], np.cumsum(sizes)])
