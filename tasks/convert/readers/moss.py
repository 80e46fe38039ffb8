"""MOSS-003, in both layouts that are around.

JSON lines `{"conversation_id", "category", "conversation": [{"human", "assistant"}]}`, and OpenMOSS'
own: a folder of JSON files with `"chat": {"turn_1": {"Human", "MOSS", …}}`, where each text carries
its markers (`<|Human|>: … <eoh>`). MOSS' own persona (meta_instruction) and its inner thoughts are
left out: they are about another model.
"""

import re

from tasks.convert.readers import Reader
from tasks.convert.readers._conversation import whole
from tasks.convert.verdicts import Malformed, a_list, dialogue, small, text

MARKERS = re.compile(r"\A\s*<\|(?:Human|MOSS)\|>:[ \t]?|\s*<eo[hm]>\s*\Z")


def convert(item, options, file):
    found = _chat(item["chat"]) if "chat" in item else _pairs(a_list(item, "conversation"))
    return dialogue(*whole(found), **small(item, "conversation_id", "category"))


def _pairs(conversation):
    found = []
    for pair in conversation:
        if type(pair) is not dict:
            raise Malformed("wrong type", "conversation")
        found += [("user", text(pair, "human")), ("assistant", text(pair, "assistant"))]
    return found


def _chat(chat):
    if type(chat) is not dict:
        raise Malformed("null field" if chat is None else "wrong type", "chat")
    found = []
    for number in range(1, len(chat) + 1):
        turn = chat.get(f"turn_{number}")
        if type(turn) is not dict:
            raise Malformed("missing field" if turn is None else "wrong type", f"turn_{number}")
        for role, key in (("user", "Human"), ("assistant", "MOSS")):
            content = MARKERS.sub("", text(turn, key))
            found.append((role, text({key: content}, key)))
    return found


READER = Reader(convert, makes="sft")
