"""Shared by the readers of dialogues given as lists of turns, in the forms of ShareGPT and of OpenAI.

    {"conversations": [{"from": "human", "value": "…"}, …]}     ShareGPT
    {"messages": [{"role": "user", "content": "…"}, …]}         OpenAI; content also as a list of text parts

A turn with calls of tools beside its content (OpenAI's `tool_calls`, `function_call`) is no text: its record is
quarantined, for the text alone would teach the model to go on without the call. A turn with `loss`, `weight` or `train` of 0 or false is kept, and marked so that tuning does not learn it.
"""

from typing import NamedTuple

import orjson

from tasks.convert.verdicts import Malformed, a_list, field_of, missing, optional, text

LISTS = ("conversations", "messages", "conversation", "dialog", "dialogue", "turns", "chat")
"""Names of the list of turns, the first that is there and not null."""
SYSTEM = ("system", "system_prompt", "system_message")
FLAGS = ("loss", "weight", "train")
CALLS = ("tool_calls", "function_call")
TEXT_PARTS = ("text", "input_text", "output_text")
"""Kinds of content parts that are text, of OpenAI's chat and its responses."""
ROLES = {
    "system": "system",
    "developer": "system",
    "human": "user",
    "user": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "function": "tool",
    "observation": "tool",
}
"""`function_call` is what the assistant says to a tool; `tool` is what a tool answers."""


class Turn(NamedTuple):
    """One turn, in the order of verdicts.message."""

    role: str
    content: str
    loss: bool = True


def conversation(item, field=""):
    """The turns of a record, those of its system field first; `field` names the list (empty: one of LISTS)."""
    names = (field,) if field else LISTS
    name = next((name for name in names if field_of(item, name) is not None), None)
    if name is None:
        there = next((name for name in names if name in item), None)
        if there:
            raise Malformed("null field", there)
        raise missing(item, " or ".join(names[:2]))
    found = turns(as_list(item, name))
    system = next((given for key in SYSTEM if (given := optional(item, key))), "")
    if system and found and found[0].role == "system":
        first = found.pop(0).content
        system = system if first == system else f"{system}\n{first}"
    return [Turn("system", system), *found] if system else found


def as_list(item, key):
    """A required list, or a string that holds one as JSON, as tables do."""
    value = field_of(item, key)
    if type(value) is str and value.lstrip().startswith("["):
        try:
            value = orjson.loads(value)
        except orjson.JSONDecodeError:
            raise Malformed("broken JSON", key) from None
    return a_list(item if value is None else {**item, key: value}, key)


def turns(raw):
    """The turns of a list; every one counts, whatever its index. A blank system turn says nothing."""
    found = []
    for turn in raw:
        if type(turn) is not dict:
            raise Malformed("wrong type", "turn")
        role_key = "role" if "role" in turn and "from" not in turn else "from"
        role = ROLES.get(text(turn, role_key).strip().lower())
        if role is None:
            raise Malformed("unknown role", turn[role_key][:40])
        if call := next((name for name in CALLS if _says(turn.get(name))), None):
            raise Malformed("not a text", call)
        key = "value" if "value" in turn and "content" not in turn else "content"
        key = key if key in turn else "text" if "text" in turn else "value"
        content = _joined(turn[key], key) if type(turn.get(key)) is list else turn.get(key)
        if role == "system" and (content is None or type(content) is str and not content.strip()):
            continue
        found.append(Turn(role, text({**turn, key: content} if key in turn else turn, key), _loss(turn)))
    return found


def whole(found):
    """The turns, if somebody asks and somebody answers what may be learnt; else Malformed."""
    found = [Turn(*turn) for turn in found]
    roles = {turn.role for turn in found}
    if not {"user", "assistant"} <= roles:
        raise Malformed("incomplete dialogue", "no question" if "user" not in roles else "no answer")
    if not any(turn.loss for turn in found if turn.role == "assistant"):
        raise Malformed("incomplete dialogue", "no answer is to be learnt: loss, weight or train of all is 0")
    return found


def _joined(parts, key):
    """The text of OpenAI's content parts; anything but text cannot be read."""
    texts = []
    for part in parts:
        if type(part) is dict and part.get("type", "text") in TEXT_PARTS:
            texts.append(text(part, "text"))
        elif type(part) is str:
            texts.append(part)
        else:
            raise Malformed("not a text", str(part.get("type"))[:40] if type(part) is dict else key)
    return "\n".join(texts)


def _says(call):
    """Whether something is called: tables have JSON as text, and fields of null where a turn has no call."""
    if type(call) is dict:
        return any(value is not None for value in call.values())
    return bool(call) and call not in ("[]", "{}", "null")


def _loss(turn):
    flags = [(key, turn[key]) for key in FLAGS if turn.get(key) is not None]
    for key, value in flags:
        if not isinstance(value, bool | int | float) or value not in (0, 1):
            raise Malformed("wrong type", f"{key} of a turn is neither 0 nor 1")
    return all(value for _, value in flags)
