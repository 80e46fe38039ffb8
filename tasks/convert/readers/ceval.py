"""C-Eval: `{dev,val,test}/<subject>_<split>.csv` with the header id,question,A,B,C,D[,answer[,explanation]].

`val` is the labelled split that scores are reported on, `dev` holds the shots, `test` has no labels. Any folder of such
files is a benchmark: two to ten options (A to J), answers as letters, numbers or texts; the files may also lie beside
each other. Further columns go to meta (the demo's exam has some: half, relation, held_out_fact, language, fact).
"""

from tasks.convert.readers import Reader
from tasks.convert.readers._questions import LETTERS, BenchmarkOptions, place, question
from tasks.convert.tabular import csv_rows

KNOWN = {"question", *LETTERS, "answer", "language"}
FLAGS = {"true": True, "1": True, "false": False, "0": False, "": False}


def convert(item, options, file):
    found = question(item, file, options)
    found["meta"] = {key: value for key, value in item.items() if key not in KNOWN and value}
    if "held_out_fact" in item:
        flag = item["held_out_fact"].strip().lower()
        found["meta"]["held_out_fact"] = FLAGS.get(flag, flag)
    if item.get("language"):
        found["language"] = item["language"]
    return found


READER = Reader(
    convert, makes="benchmark", items=csv_rows, suffixes=(".csv",), options=BenchmarkOptions, place=place
)
