"""Infinity-Instruct: parquet with `conversations` [{from, value}], `langdetect`, `label` and `source`.

Option `languages`: only records whose `langdetect` is one of these (the paper: zh-cn) are kept.
"""

from tasks.convert.formats import ANY_SUFFIXES, any_items
from tasks.convert.readers import Options, Reader
from tasks.convert.readers._conversation import as_list, turns, whole
from tasks.convert.verdicts import Unwanted, dialogue, small

CODES = {"zh-cn": "zh", "zh-tw": "zh", "en": "en"}


class InfinityOptions(Options):
    languages: list[str] = []
    """Values of `langdetect` that are wanted; none given: all."""


def convert(item, options, file):
    record = dialogue(*whole(turns(as_list(item, "conversations"))), **small(item, "source", "langdetect"))
    language = record["meta"].get("langdetect")
    if language in CODES:
        record["language"] = CODES[language]
    if options.languages and language not in options.languages:
        raise Unwanted("language", record)
    return record


READER = Reader(convert, makes="sft", items=any_items, suffixes=ANY_SUFFIXES, options=InfinityOptions)
