"""Any multiple-choice questions for tuning: a question, its options and the answer, by column.

The options are columns (A, B, C, D by default, as many as a record has) or one list; a list may also be
{"text": […], "label": […]}. The answer is a letter, a label, the text of an option, or its number.
"""

import unicodedata

from tasks.convert.formats import TABLE_SUFFIXES, table_items
from tasks.convert.readers import Options, Reader
from tasks.convert.readers._choices import LETTERS, exchange
from tasks.convert.readers._conversation import as_list
from tasks.convert.verdicts import Malformed, field_of, missing, optional, text


class ChoicesOptions(Options):
    question: str = "question"
    options: str | list[str] = list("ABCD")
    """One column that holds a list, or a column for each option."""
    answer: str = "answer"
    first: int = 0
    """The number of the first option, where answers count them."""
    context: str = ""
    """A column with a text that the question is about; it goes above the question."""


def convert(item, options, file):
    found, labels = _listed(item, options.options)
    right = _right(item, options, found, labels)
    question = text(item, options.question)
    above = optional(item, options.context) if options.context else ""
    return exchange(f"{above}\n{question}" if above else question, found, right)


def _listed(item, columns):
    """The options, and their labels."""
    if type(columns) is list:
        found = [value for column in columns if (value := optional(item, column))]
        if all(field_of(item, column) is None for column in columns):
            raise missing(item, ", ".join(columns))
        gap = any(optional(item, column) for column in columns[len(found) :])
        if gap:
            raise Malformed("no choices", "an empty one before others")
        return found, columns[: len(found)]
    value = field_of(item, columns)
    if type(value) is dict and {"text", "label"} <= value.keys():
        return as_list(value, "text"), [str(label) for label in as_list(value, "label")]
    found = as_list(item, columns)
    return found, list(LETTERS[: len(found)])


def _right(item, options, found, labels):
    """The index of the right option."""
    value = field_of(item, options.answer)
    if type(value) is int:
        if str(value) in labels:
            return labels.index(str(value))
        if not 0 <= value - options.first < len(found):
            raise Malformed("bad answer", str(value)[:40])
        return value - options.first
    if type(value) is not str:
        raise (
            missing(item, options.answer)
            if value is None and options.answer not in item
            else Malformed("null field" if value is None else "wrong type", options.answer)
        )
    said = unicodedata.normalize("NFKC", value).strip()
    letter = said.upper().strip("()[].。、:,， ")
    for names in (labels, LETTERS[: len(found)]):
        if letter in (upper := [name.upper() for name in names]):
            return upper.index(letter)
    if found.count(value) == 1:
        return found.index(value)
    if said.isdecimal() and 0 <= int(said) - options.first < len(found):
        return int(said) - options.first
    raise Malformed("bad answer", said[:40])


READER = Reader(convert, makes="sft", items=table_items, suffixes=TABLE_SUFFIXES, options=ChoicesOptions)
