"""Filters whose statistics are counted in numpy, for all texts of a batch at once."""

from __future__ import annotations

import re

import numpy as np
from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.common.special_characters import SPECIAL_CHARACTERS
from data_juicer.ops.filter.alphanumeric_filter import AlphanumericFilter
from data_juicer.ops.filter.character_repetition_filter import CharacterRepetitionFilter
from data_juicer.ops.filter.perplexity_filter import PerplexityFilter
from data_juicer.ops.filter.special_characters_filter import SpecialCharactersFilter
from data_juicer.ops.filter.word_repetition_filter import WordRepetitionFilter
from data_juicer.ops.filter.words_num_filter import WordsNumFilter
from data_juicer.utils.constant import Fields, StatsKeys
from data_juicer.utils.model_utils import get_model

from tasks.clean.fast import ngrams, tokens

_BLANK = re.compile(
    rb"[\t-\r\x1c-\x1f]|\xc2[\x85\xa0]|\xe1\x9a\x80|\xe2\x80[\x80-\x8a\xa8\xa9\xaf]|\xe2\x81\x9f|\xe3\x80\x80"
)
"""White space other than the space, in UTF-8."""
_DOUBTFUL = 0.01
"""A ratio out of hashes that is that close to a limit is taken again, without hashes."""


def _write(samples, key: str, values) -> None:
    for stats, value in zip(samples[Fields.stats], values, strict=True):
        stats[key] = value


def _ratios(parts, wholes) -> list[float]:
    return [part / whole if whole else 0.0 for part, whole in zip(parts, wholes, strict=True)]


@OPERATORS.register_module("fast_alphanumeric_filter")
class FastAlphanumeric(AlphanumericFilter):
    """alphanumeric_filter; with `tokenization` all texts of a batch are tokenized in one call."""

    _batched_op = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.table = ngrams.alpha() if self.tokenization else ngrams.alnum()

    def compute_stats_batched(self, samples):
        texts = samples[self.text_key]
        if self.tokenization:
            wholes, key = tokens.counter(get_model(self.model_key))(texts), StatsKeys.alpha_token_ratio
        else:
            wholes, key = map(len, texts), StatsKeys.alnum_ratio
        _write(samples, key, _ratios(ngrams.members(texts, self.table), wholes))
        return samples


@OPERATORS.register_module("fast_special_characters_filter")
class FastSpecialCharacters(SpecialCharactersFilter):
    """special_characters_filter."""

    _batched_op = True

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.table = ngrams.special()

    def compute_stats_batched(self, samples):
        texts = samples[self.text_key]
        ratios = _ratios(ngrams.members(texts, self.table), map(len, texts))
        _write(samples, StatsKeys.special_char_ratio, ratios)
        return samples


class _Repetition:
    """A filter by repeated n-grams: what the hashes find near a limit or beyond it is counted in full."""

    _batched_op = True

    def _checked(self, samples, key: str, ratios) -> None:
        texts, stats = samples[self.text_key], samples[Fields.stats]
        _write(samples, key, ratios)
        low = self.min_ratio + _DOUBTFUL if self.min_ratio > 0 else 0.0
        for i, ratio in enumerate(ratios):
            if not low <= ratio <= self.max_ratio - _DOUBTFUL:
                batch = {self.text_key: [texts[i]], Fields.stats: [{}]}
                stats[i][key] = super().compute_stats_batched(batch)[Fields.stats][0][key]


@OPERATORS.register_module("fast_character_repetition_filter")
class FastCharacterRepetition(_Repetition, CharacterRepetitionFilter):
    """character_repetition_filter: the share of the most frequent √D of a text's D distinct n-grams."""

    def compute_stats_batched(self, samples):
        codes, lengths = ngrams.code_points(samples[self.text_key])
        ratios = []
        for length, counts in zip(lengths.tolist(), ngrams.repeated(codes, lengths, self.n), strict=True):
            if not len(counts):
                ratios.append(0.0)
                continue
            total = length - self.n + 1
            distinct = total - int(counts.sum()) + len(counts)
            most = min(int(np.sqrt(distinct)), len(counts))
            ratios.append(int(counts[:most].sum()) / total)
        self._checked(samples, StatsKeys.char_rep_ratio, ratios)
        return samples


class _Stripped(dict):
    """A word as split -> number of the word without special characters at its ends, or -1 for none."""

    def __init__(self):
        super().__init__()
        self.numbers: dict[str, int] = {}

    def __missing__(self, word: str) -> int:
        first, last = 0, len(word)
        while first < last and word[first] in SPECIAL_CHARACTERS:
            first += 1
        while first < last and word[last - 1] in SPECIAL_CHARACTERS:
            last -= 1
        number = self.numbers.setdefault(word[first:last], len(self.numbers)) if first < last else -1
        self[word] = number
        return number


def _words(text: str) -> list[str]:
    """The text between spaces, tabs and line ends; an empty one between two of them."""
    return text.replace("\n", " ").replace("\t", " ").split(" ")


@OPERATORS.register_module("fast_word_repetition_filter")
class FastWordRepetition(_Repetition, WordRepetitionFilter):
    """word_repetition_filter between spaces; with `tokenization` the original."""

    def compute_stats_batched(self, samples):
        if self.model_key is not None:
            return super().compute_stats_batched(samples)
        numbers, ids = _Stripped(), []
        for text in samples[self.text_key]:
            words = _words(text)
            found = []
            if len(words) >= self.n:  # else there is no n-gram, and most Chinese texts end here
                found = [n for n in map(numbers.__getitem__, _words(text.lower())) if n >= 0]
            ids.append(found)
        lengths = np.fromiter(map(len, ids), np.int64, len(ids))
        codes = np.fromiter((n for found in ids for n in found), np.int64, int(lengths.sum()))
        ratios = [
            int(counts.sum()) / (length - self.n + 1) if len(counts) else 0.0
            for length, counts in zip(lengths.tolist(), ngrams.repeated(codes, lengths, self.n), strict=True)
        ]
        self._checked(samples, StatsKeys.word_rep_ratio, ratios)
        return samples


@OPERATORS.register_module("fast_words_num_filter")
class FastWordsNum(WordsNumFilter):
    """words_num_filter between spaces: words with at least one character that is not special."""

    _batched_op = True

    def compute_stats_batched(self, samples):
        if self.model_key is not None:
            return super().compute_stats_batched(samples)
        words = _Stripped()
        counts = [sum(words[word] >= 0 for word in _words(text)) for text in samples[self.text_key]]
        _write(samples, StatsKeys.num_words, counts)
        return samples


@OPERATORS.register_module("fast_perplexity_filter")
class FastPerplexity(PerplexityFilter):
    """perplexity_filter: pieces stay the UTF-8 that SentencePiece makes and KenLM reads, and are counted."""

    _batched_op = True

    def compute_stats_batched(self, samples, context=False):
        encode = get_model(self.sp_model_key).encode
        score = get_model(self.kl_model_key).score
        key = StatsKeys.perplexity
        for text, stats in zip(samples[self.text_key], samples[Fields.stats], strict=True):
            pieces = encode(text, out_type=bytes)
            line = b" ".join(pieces)
            if not pieces:
                perplexity = 0.0
            elif line.count(b" ") == len(pieces) - 1 and not _BLANK.search(line):
                perplexity = 10.0 ** (-score(line) / (len(pieces) + 1))
            else:  # a piece holds white space, of which the original may make words or lines
                perplexity = self._by_line(line.decode(), score)
            stats[key] = round(perplexity, 1)
        return samples

    @staticmethod
    def _by_line(text: str, score) -> float:
        lines = text.splitlines()
        length = sum(len(line.split()) + 1 for line in lines)
        return 10.0 ** (-sum(map(score, lines)) / length) if length else 0.0
