"""MMLU: `{dev,val,test}/<subject>_<split>.csv` without a header; `test` is labelled."""

from functools import partial

from tasks.convert.readers import Reader
from tasks.convert.readers._questions import BenchmarkOptions, place, question
from tasks.convert.tabular import csv_rows

COLUMNS = ("question", "A", "B", "C", "D", "answer")


def convert(item, options, file):
    return question(item, file)


READER = Reader(
    convert,
    makes="benchmark",
    items=partial(csv_rows, columns=COLUMNS),
    suffixes=(".csv",),
    options=BenchmarkOptions,
    place=place,
)
