"""Shared by the readers of preference pairs."""

from tasks.convert.verdicts import Malformed, message


def pair(prompt, chosen, rejected, **meta):
    """A preference record from the prompt's turns, (role, content) first, and two replies."""
    if not prompt or prompt[-1][0] not in ("user", "tool"):
        raise Malformed("incomplete dialogue", "the prompt does not end with a question")
    if chosen == rejected:
        raise Malformed("equal replies")
    messages = [message(*turn[:2]) for turn in prompt]
    return {"kind": "preference", "messages": messages, "chosen": chosen, "rejected": rejected, "meta": meta}
