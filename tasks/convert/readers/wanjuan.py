"""WanJuan 1.0: JSON lines, either texts `{"id", "content"}` or the exam part.

An exam record has q_main, option_a … option_e, std_ans, answer_detail. Its parts go on lines of
their own, and a null part is left out: with the original one null lost the whole record.
"""

from tasks.convert.readers import Reader
from tasks.convert.verdicts import optional, small, text


def convert(item, options, file):
    if "q_main" in item:
        return {"kind": "text", "text": _exam(item), "meta": small(item, "id", "q_type", "grade", "major")}
    return {"kind": "text", "text": text(item, "content"), "meta": small(item, "id")}


def _exam(item):
    lines = [text(item, "q_main")]
    for letter in "abcde":
        if option := optional(item, f"option_{letter}"):
            lines.append(f"{letter.upper()}. {option}")
    if answer := optional(item, "std_ans") or optional(item, "answer"):
        lines.append(f"答案：{answer}")
    if detail := optional(item, "answer_detail"):
        lines.append(f"解析：{detail}")
    return "\n".join(lines)


READER = Reader(convert)
