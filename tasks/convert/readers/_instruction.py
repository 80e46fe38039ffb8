"""Shared by the readers of instruction/input/output records."""

from tasks.convert.verdicts import Malformed, a_list, dialogue, optional, text


def exchange(item, instruction="instruction", more="input", output="output"):
    """Instruction (with its input below it) and output as a dialogue; `system` and `history` if given.

    The question may stand in the input alone. A pair of `history` that is blank on both sides says nothing.
    The names are those of the item's fields.
    """
    turns = []
    if system := optional(item, "system"):
        turns.append(("system", system))
    for past in a_list(item, "history") if item.get("history") else []:
        if type(past) is not list or len(past) != 2 or not all(p is None or type(p) is str for p in past):
            raise Malformed("wrong type", "history")
        said = [bool(p and p.strip()) for p in past]
        if any(said) and not all(said):
            raise Malformed("empty text", "history")
        turns += [("user", past[0]), ("assistant", past[1])] if all(said) else []
    below = optional(item, more)
    above = optional(item, instruction) if below else text(item, instruction)
    turns.append(("user", f"{above}\n{below}" if above and below else above or below))
    return dialogue(*turns, ("assistant", text(item, output)))
