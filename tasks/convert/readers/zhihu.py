"""Zhihu-KOL: parquet with INSTRUCTION, RESPONSE, SOURCE and METADATA, a JSON string.

Upvotes read "赞同 15", "赞同 1.6 万" or just "赞同" (none). Option `min_votes`: answers with fewer
are dropped (the paper: 100).
"""

import re

import orjson

from tasks.convert.readers import Options, Reader
from tasks.convert.tabular import parquet_rows
from tasks.convert.verdicts import LARGEST, Unwanted, dialogue, text

VOTES = re.compile(r"([\d.,]+)\s*([万千kK]?)")
UNIT = {"": 1, "千": 1_000, "k": 1_000, "万": 10_000}


class ZhihuOptions(Options):
    min_votes: int = 0
    """Fewest upvotes of an answer that is kept."""


def convert(item, options, file):
    votes = upvotes(item.get("METADATA"))
    record = dialogue(("user", text(item, "INSTRUCTION")), ("assistant", text(item, "RESPONSE")), votes=votes)
    if votes < options.min_votes:
        raise Unwanted("min-votes", record)
    return record


def upvotes(metadata):
    """The number in METADATA's "upvotes"; 0 when there is none that can be read."""
    try:
        value = orjson.loads(metadata)["upvotes"]
    except (orjson.JSONDecodeError, KeyError, TypeError):
        return 0
    if type(value) is int:
        return value
    found = VOTES.search(value) if isinstance(value, str) else None
    try:
        votes = float(found[1].replace(",", "")) * UNIT[found[2].lower()] if found else 0
    except ValueError:  # dots or commas without a number
        return 0
    return round(min(votes, LARGEST))


READER = Reader(convert, makes="sft", items=parquet_rows, suffixes=(".parquet",), options=ZhihuOptions)
