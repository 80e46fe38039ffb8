"""CMMLU: `data/{dev,test}/<subject>.csv` with the header ,Question,A,B,C,D,Answer; `test` is labelled."""

from tasks.convert.readers import Reader
from tasks.convert.readers._questions import BenchmarkOptions, place, question
from tasks.convert.tabular import csv_rows


def convert(item, options, file):
    return question(item, file, options, ask="Question", reply="Answer")


READER = Reader(
    convert, makes="benchmark", items=csv_rows, suffixes=(".csv",), options=BenchmarkOptions, place=place
)
