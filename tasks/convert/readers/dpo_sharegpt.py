"""Preference pairs: `{"conversations": [{"from", "value"}], "chosen": {…}, "rejected": {…}}`.

The conversation is the prompt; chosen and rejected are assistant turns. A pair whose two replies
are equal says nothing and is set aside.
"""

from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import as_list, turns
from tasks.convert.readers._preference import pair
from tasks.convert.verdicts import Malformed, optional, text


def convert(item, options, file):
    prompt = turns(as_list(item, "conversations"))
    if system := optional(item, "system"):
        prompt.insert(0, ("system", system))
    return pair(prompt, _reply(item, "chosen"), _reply(item, "rejected"))


def _reply(item, key):
    reply = item.get(key)
    if type(reply) is str:
        return text(item, key)
    if type(reply) is not dict:
        raise Malformed(
            "missing field" if key not in item else "null field" if reply is None else "wrong type", key
        )
    said = turns([reply])
    if not said or said[0].role != "assistant":
        raise Malformed("unknown role", key)
    return said[0].content


READER = Reader(convert, makes="preference")
