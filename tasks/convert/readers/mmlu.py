"""MMLU: `{dev,val,test}/<subject>_<split>.csv` without a header: question, options, answer; `test` is labelled."""

import csv

from tasks.convert.readers import Reader
from tasks.convert.readers._questions import LETTERS, BenchmarkOptions, place, question
from tasks.convert.tabular import csv_rows


def convert(item, options, file):
    return question(item, file, options)


def rows(path, limit):
    """The rows; the first one says how many options they have."""
    with open(path, encoding="utf-8", errors="replace", newline="") as file:
        first = next(csv.reader(file), [])
    count = len(first) - 2
    letters = LETTERS[:count] if 2 <= count <= len(LETTERS) else LETTERS[:4]
    return csv_rows(path, limit, columns=("question", *letters, "answer"))


READER = Reader(
    convert, makes="benchmark", items=rows, suffixes=(".csv",), options=BenchmarkOptions, place=place
)
