"""Baidu QA (baike_qa2019): JSON lines `{"qid", "category", "title", "desc", "answer"}`.

The description belongs to the question: three quarters of the records have one that differs from
the title.
"""

from tasks.convert.readers import Reader
from tasks.convert.verdicts import dialogue, optional, small, text


def convert(item, options, file):
    question, description = text(item, "title"), optional(item, "desc")
    if description and description.strip() != question.strip():
        question = f"{question}\n{description}"
    return dialogue(("user", question), ("assistant", text(item, "answer")), **small(item, "qid", "category"))


READER = Reader(convert, makes="sft")
