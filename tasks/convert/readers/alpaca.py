"""Alpaca's form: a JSON array or JSON lines of `{"instruction", "input", "output"}`; CSV and parquet too.

`system` and `history` ([[question, answer], …]) are understood too. Options name the three columns where they
are called otherwise: {instruction: question, output: answer}.
"""

from tasks.convert.formats import TABLE_SUFFIXES, table_items
from tasks.convert.readers import Options, Reader
from tasks.convert.readers._instruction import exchange
from tasks.convert.verdicts import small


class AlpacaOptions(Options):
    instruction: str = "instruction"
    input: str = "input"
    output: str = "output"


def convert(item, options, file):
    record = exchange(item, options.instruction, options.input, options.output)
    record["meta"] = small(item, "category", "kind", "relation", "fact")
    return record


READER = Reader(convert, makes="sft", items=table_items, suffixes=TABLE_SUFFIXES, options=AlpacaOptions)
