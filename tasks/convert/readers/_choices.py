"""Shared by the readers of multiple-choice sets for tuning: lettered lines, and a reply that names its letter."""

from tasks.convert.verdicts import Malformed, dialogue

LETTERS = "ABCDEFGH"


def exchange(question, choices, right, **meta):
    """Question and choices as lettered lines; the reply starts with the letter, as exams ask for it."""
    if not 2 <= len(choices) <= len(LETTERS):
        raise Malformed("no choices", f"{len(choices)} choices")
    if not all(type(choice) is str and choice.strip() for choice in choices):
        raise Malformed("no choices", "an empty or wrong one")
    if not 0 <= right < len(choices):
        raise Malformed("bad answer", f"{right}")
    lines = [question, *(f"{letter}. {choice}" for letter, choice in zip(LETTERS, choices, strict=False))]
    reply = f"{LETTERS[right]}. {choices[right]}"
    return dialogue(("user", "\n".join(lines)), ("assistant", reply), answer=LETTERS[right], **meta)
