"""Shared by the readers of preference pairs."""

from tasks.convert.verdicts import Malformed


def pair(prompt, chosen, rejected, **meta):
    """A preference record from the prompt's (role, content) pairs and two replies."""
    if not prompt or prompt[-1][0] != "user":
        raise Malformed("incomplete dialogue", "the prompt does not end with a question")
    if chosen == rejected:
        raise Malformed("equal replies")
    messages = [{"role": role, "content": content} for role, content in prompt]
    return {"kind": "preference", "messages": messages, "chosen": chosen, "rejected": rejected, "meta": meta}
