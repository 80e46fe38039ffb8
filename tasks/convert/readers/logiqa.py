"""LogiQA 2.0: JSON lines (named .txt by its authors) `{"text", "question", "options": […], "answer": 0–3}`."""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._choices import exchange
from tasks.convert.verdicts import Malformed, a_list, small, text


def convert(item, options, file):
    right = item.get("answer")
    if type(right) is not int:
        raise Malformed("missing field" if right is None else "wrong type", "answer")
    question = f"{text(item, 'text')}\n{text(item, 'question')}"
    return exchange(question, a_list(item, "options"), right, **small(item, "id"))


READER = Reader(convert, makes="sft", items=any_items, suffixes=(*ANY_SUFFIXES, ".txt"))
