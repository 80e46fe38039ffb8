"""remove_repeat_sentences_mapper without a look at single sentences, unless one repeats.

The original splits every line into sentences by four regular expressions, reduces each sentence to its
letters, and drops those seen before. Here both steps run over a whole text at once: ends of sentences
are marked by `str.replace`, and the letters of all sentences are taken in one substitution. Only a text
in which a sentence does come twice is put together anew.
"""

from __future__ import annotations

import re

from data_juicer.ops.base_op import OPERATORS
from data_juicer.ops.mapper.remove_repeat_sentences_mapper import RemoveRepeatSentencesMapper

_MARK = "\0"
_ENDS = ".。！!？?"
# The character after a split belongs to the match that made it and so ends no sentence itself:
# of a run `。。。。` the first and the third do.
_RUN = re.compile(f"([{_ENDS}]{_MARK}[{_ENDS}]){_MARK}")
_DOTS = re.compile("(…{2})([^’”\n])")
_QUOTED = re.compile("([.。!！？?{6}…2][’”])([^’”\n])")
_SEPARATOR = re.compile(f"[\n{_MARK}]")
_SIGNS = re.compile("[^a-zA-Z0-9\u4e00-\u9fa5\n\t ]+")


def split(text: str) -> str:
    """`text` with a NUL where the original splits a line (and at line ends, where nothing follows)."""
    for end in _ENDS:
        text = text.replace(end, end + _MARK)
    quoted = "”" in text or "’" in text
    if quoted:
        text = text.replace(_MARK + "”", "”").replace(_MARK + "’", "’")
    text = _RUN.sub(r"\1", text)
    if "……" in text:
        text = _DOTS.sub(rf"\1{_MARK}\2", text)
    return _QUOTED.sub(rf"\1{_MARK}\2", text) if quoted else text


@OPERATORS.register_module("fast_remove_repeat_sentences_mapper")
class FastRemoveRepeatSentences(RemoveRepeatSentencesMapper):
    """remove_repeat_sentences_mapper with its own splitter; lower case and length 0 are left to the original."""

    _batched_op = True

    def process_batched(self, samples):
        texts = samples[self.text_key]
        slow = self.lowercase or self.min_repeat_sentence_length < 1
        for i, text in enumerate(texts):
            if slow or _MARK in text:
                texts[i] = super().process_batched({self.text_key: [text]})[self.text_key][0]
            else:
                texts[i] = self._clean(text)
        return samples

    def _clean(self, text: str) -> str:
        marked = split(text)
        sentences = marked.replace(_MARK, "\n").split("\n")
        joined = "\n".join([sentence.strip() for sentence in sentences])
        if self.remove_regex:
            joined = _SIGNS.sub("", joined)
        keys = joined.split("\n")
        long = [key for key in keys if len(key) >= self.min_repeat_sentence_length]
        if len(set(long)) == len(long):
            return text
        seen: set[str] = set()
        kept = []
        breaks = ["\n" if mark == "\n" else "" for mark in _SEPARATOR.findall(marked)]
        for sentence, key, line_break in zip(sentences, keys, [*breaks, ""], strict=True):
            if len(key) < self.min_repeat_sentence_length:
                kept.append(sentence)
            elif key not in seen:
                seen.add(key)
                kept.append(sentence)
            kept.append(line_break)
        return "".join(kept)
