"""UltraFeedback-chinese: parquet with instruction, chosen_response, rejected_response and their ratings."""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Reader
from tasks.convert.readers._preference import pair
from tasks.convert.verdicts import small, text


def convert(item, options, file):
    prompt = [("user", text(item, "instruction"))]
    meta = small(item, "source", "chosen_rating", "rejected_rating")
    return pair(prompt, text(item, "chosen_response"), text(item, "rejected_response"), **meta)


READER = Reader(convert, makes="preference", items=any_items, suffixes=ANY_SUFFIXES)
