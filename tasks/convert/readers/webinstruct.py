"""WebInstructSub: parquet with `question`, `answer` and `source`."""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.verdicts import dialogue, small, text


def convert(item, options, file):
    return dialogue(
        ("user", text(item, "question")), ("assistant", text(item, "answer")), **small(item, "source")
    )


READER = Reader(convert, makes="sft", items=any_items, suffixes=ANY_SUFFIXES)
