"""ARC and OpenBookQA as their authors publish them, parquet or JSON lines.

`{"question", "choices": {"text": […], "label": […]}, "answerKey"}` (OpenBookQA: `question_stem`), or
the older `{"question": {"stem", "choices": [{"text", "label"}]}, "answerKey"}`. Labels may be A–E or
1–5; the answer is found by its label and lettered anew, so that none is lost for being a number.
"""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._choices import exchange
from tasks.convert.verdicts import Malformed, a_list, small, text


def convert(item, options, file):
    older = item.get("question")
    if type(older) is dict:
        question, listed = text(older, "stem"), a_list(older, "choices")
        if not all(type(choice) is dict for choice in listed):
            raise Malformed("wrong type", "choices")
        texts, labels = [c.get("text") for c in listed], [c.get("label") for c in listed]
    else:
        question = text(item, "question_stem" if "question_stem" in item else "question")
        listed = item.get("choices")
        if type(listed) is not dict:
            raise Malformed("missing field" if listed is None else "wrong type", "choices")
        texts, labels = a_list(listed, "text"), a_list(listed, "label")
    key = text(item, "answerKey").strip()
    if len(labels) != len(texts) or labels.count(key) != 1:
        raise Malformed("bad answer", key[:40])
    return exchange(question, texts, labels.index(key), **small(item, "id"))


READER = Reader(convert, makes="sft", items=any_items, suffixes=ANY_SUFFIXES)
