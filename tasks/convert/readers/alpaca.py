"""Alpaca's form: a JSON array or JSON lines of `{"instruction", "input", "output"}`.

`system` and `history` ([[question, answer], …]) are understood too.
"""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._instruction import exchange
from tasks.convert.verdicts import small


def convert(item, options, file):
    record = exchange(item)
    record["meta"] = small(item, "category", "kind", "relation")
    return record


READER = Reader(convert, makes="sft", items=any_items, suffixes=ANY_SUFFIXES)
