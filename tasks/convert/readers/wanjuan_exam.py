"""WanJuan's exam questions for tuning: asked in the paper's words, answered at once or after reasoning.

JSON lines with q_type, q_main, option_a … option_e, std_ans, answer_detail. Option `cot` chooses the
form. What cannot be a lesson is dropped by name: a question without an answer (`no-answer`), one whose
answer or detail only says that it is left out ("略", `answer-left-out`) and, with `cot`, one without
reasoning (`no-reasoning`). The original dropped every reply with that character, 策略 and 战略 included,
asked some of these for reasons and answered with a full stop.
"""

import re

from tasks.convert.readers import Options, Reader
from tasks.convert.verdicts import Malformed, Unwanted, dialogue, optional, small, text

LEFT_OUT = re.compile(r"\W*(?:答案|解析|解答|详解|过程)?\W*略\W*")
CONCLUSION = "故选"
"""What follows it repeats the answer."""
REASONS = 10
"""Characters below which a detail is no reasoning."""


class ExamOptions(Options):
    cot: bool = False
    """Reasons first, then the answer."""


def convert(item, options, file):
    question, answer, detail = (
        text(item, "q_main"),
        optional(item, "std_ans"),
        optional(item, "answer_detail"),
    )
    kind = optional(item, "q_type") or "单选题"
    choices = [
        f"{letter.upper()}. {choice}\n"
        for letter in "abcde"
        if (choice := optional(item, f"option_{letter}"))
    ]
    how = "请先给出解释再给出答案。" if options.cot else "请给出答案。"
    asked = f"以下是一道{kind}:\n{question}\n{''.join(choices)}{how}\n"
    reasons = detail.partition(CONCLUSION)[0].strip()
    reply = f"{reasons}答案为{answer}" if options.cot else f"{answer}。{detail}"
    record = dialogue(("user", asked), ("assistant", reply), **small(item, "id", "grade", "major"))
    if not answer and not detail:
        raise Malformed("empty text", "std_ans and answer_detail")
    if not answer:
        raise Unwanted("no-answer", record)
    if LEFT_OUT.fullmatch(answer) or LEFT_OUT.fullmatch(detail):
        raise Unwanted("answer-left-out", record)
    if options.cot and len(reasons) < REASONS:
        raise Unwanted("no-reasoning", record)
    return record


READER = Reader(convert, makes="sft", options=ExamOptions)
