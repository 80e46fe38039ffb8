"""SkyPile-150B: JSON lines `{"text"}`, web pages in Chinese."""

from tasks.convert.readers import Reader
from tasks.convert.verdicts import text


def convert(item, options, file):
    return {"kind": "text", "text": text(item, "text"), "meta": {}}


READER = Reader(convert)
