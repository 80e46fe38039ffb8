"""Any texts: a column of JSON, CSV, TSV or parquet, or plain .txt and .md files.

Option `field` names the column (default: text); `data.text` is the field text of the object data. A plain file is one document, or with `split: blank-lines`
each of its parts is one. `encoding` is that of plain files and CSV (gb18030 for Chinese texts of Windows).
"""

import codecs
from functools import partial

from pydantic import field_validator

from tasks.convert.formats import TABLE_SUFFIXES, table_items
from tasks.convert.readers import Options, Reader
from tasks.convert.texts import TEXT_SUFFIXES, Split, text_items
from tasks.convert.verdicts import Bad, text


class TextOptions(Options):
    field: str = "text"
    """The column that holds the text."""
    split: Split = "file"
    encoding: str = "utf-8"

    @field_validator("encoding")
    @classmethod
    def _known(cls, value):
        try:
            return codecs.lookup(value).name
        except LookupError:
            raise ValueError(f"there is no encoding {value!r}") from None


def convert(item, options, file):
    return {"kind": "text", "text": text(item, options.field), "meta": {}}


def items_of(options):
    return partial(_items, options)


def _items(options, path, limit, span=None):
    if not path.name.lower().endswith(TEXT_SUFFIXES):
        for number, value, raw in table_items(path, limit, span, encoding=options.encoding):
            yield number, {options.field: value} if type(value) is str else value, raw  # a list of texts
        return
    for number, part, raw in text_items(path, limit, options.split, options.encoding):
        yield number, part if isinstance(part, Bad) else {options.field: part}, raw


READER = Reader(convert, items_of=items_of, suffixes=(*TABLE_SUFFIXES, *TEXT_SUFFIXES), options=TextOptions)
