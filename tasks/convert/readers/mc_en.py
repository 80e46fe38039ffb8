"""English multiple choice (OpenBookQA, ARC) in the instruction form of LLM-Adapters.

`instruction` holds "…the question: Q Answer1: a Answer2: b … Answer format: …" and `answer` says
"answer2". The data sets themselves are read by `arc` and `logiqa`.
"""

import re

from tasks.convert.readers import Reader
from tasks.convert.readers._choices import exchange
from tasks.convert.verdicts import Malformed, text

QUESTION = re.compile(
    r"\A(?:Please choose the correct answer to the question:)?\s*(.*?)\s*(?=Answer1:)"
    r"(.*?)\s*(?:Answer format:.*)?\Z",
    re.DOTALL,
)
CHOICE = re.compile(r"Answer(\d):")
MOST = 5


def convert(item, options, file):
    found = QUESTION.match(text(item, "instruction"))
    if not found or not found[1]:
        raise Malformed("no choices", "instruction")
    choices = _choices(found[2])
    key = re.fullmatch(r"answer(\d)", text(item, "answer").strip().lower())
    if not key or not 1 <= int(key[1]) <= len(choices):
        raise Malformed("bad answer", item["answer"][:40])
    return exchange(found[1], choices, int(key[1]) - 1, set=file.rpartition("/")[0].rpartition("/")[2])


def _choices(listed):
    parts = CHOICE.split(listed)[1:]
    choices = [part.strip() for part in parts[1::2]]
    if [int(n) for n in parts[::2]] != list(range(1, len(choices) + 1)):
        raise Malformed("no choices", "not numbered in order")
    if len(choices) > MOST:
        raise Malformed("no choices", f"{len(choices)} choices")
    return choices


READER = Reader(convert, makes="sft")
