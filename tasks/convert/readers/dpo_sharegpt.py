"""Preference pairs: `{"conversations": [{"from", "value"}], "chosen": {…}, "rejected": {…}}`.

The conversation is the prompt; chosen and rejected are assistant turns. A pair whose two replies
are equal says nothing and is set aside.
"""

from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import turns
from tasks.convert.readers._preference import pair
from tasks.convert.verdicts import Malformed, a_list, optional, text


def convert(item, options, file):
    prompt = turns(a_list(item, "conversations"))
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
    if turns([reply])[0][0] != "assistant":
        raise Malformed("unknown role", key)
    return reply["value"]


READER = Reader(convert, makes="preference")
