"""Shared by the readers of instruction/input/output records."""

from tasks.convert.verdicts import Malformed, a_list, dialogue, optional, text


def exchange(item):
    """Instruction (with its input below it) and output as a dialogue; `system` and `history` if given."""
    turns = []
    if system := optional(item, "system"):
        turns.append(("system", system))
    for past in a_list(item, "history") if item.get("history") else []:
        if type(past) is not list or len(past) != 2 or not all(type(p) is str and p.strip() for p in past):
            raise Malformed("wrong type", "history")
        turns += [("user", past[0]), ("assistant", past[1])]
    question, more = text(item, "instruction"), optional(item, "input")
    turns.append(("user", f"{question}\n{more}" if more else question))
    return dialogue(*turns, ("assistant", text(item, "output")))
