"""Shared by the readers of dialogues given as lists of turns."""

from tasks.convert.verdicts import Malformed, text

ROLES = {
    "system": "system",
    "human": "user",
    "user": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
}


def turns(raw, role_key="from", content_key="value"):
    """(role, content) pairs from a list of `{"from", "value"}`; every turn counts, whatever its index."""
    found = []
    for turn in raw:
        if type(turn) is not dict:
            raise Malformed("wrong type", "turn")
        role = ROLES.get(text(turn, role_key).lower())
        if role is None:
            raise Malformed("unknown role", turn[role_key][:40])
        found.append((role, text(turn, content_key)))
    return found


def whole(found):
    """The turns, if somebody asks and somebody answers; else Malformed."""
    roles = {role for role, _ in found}
    if not {"user", "assistant"} <= roles:
        raise Malformed("incomplete dialogue", "no question" if "user" not in roles else "no answer")
    return found
