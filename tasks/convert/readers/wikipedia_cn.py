"""Chinese Wikipedia (pleisto, 2023-07): one JSON array of `{"completion", "source"}`."""

from tasks.convert.readers import Reader
from tasks.convert.verdicts import text


def convert(item, options, file):
    return {"kind": "text", "text": text(item, "completion"), "meta": {}}


READER = Reader(convert)
