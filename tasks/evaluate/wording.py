"""The texts of every protocol. A change here is a new version of the protocols that use it (protocols.py).

Whose texts they are: `PAPER` of the Steel-LLM paper's scripts, `OFFICIAL` of the benchmarks themselves (C-Eval's and
CMMLU's evaluation code, hendrycks/test), `HARNESS` of lm-evaluation-harness 0.4.13.
"""

from __future__ import annotations

from tasks.evaluate import subjects
from tasks.evaluate.benchmarks import Question

LETTERS = "ABCDEFGHIJ"

PLAIN = {"zh": "问题：{question}\n答案：", "en": "Question: {question}\nAnswer: "}
NEUTRAL = {"zh": "请回答。", "en": "Please answer."}
"""In place of a question that is removed."""
LETTERED = {
    "zh": "以下是一道单选题:\n{question}\n\n{options}\n请给出答案。\n",
    "en": "Here is a multiple-choice question:\n{question}\n\n{options}\nPlease give the answer.\n",
}
PAPER = {
    "zh": LETTERED["zh"],
    "en": (
        "The following is a multiple-choice question. Please choose the most suitable one among {letters} as the "
        "answer to this question.\n\n{question}\n{options}\n"
    ),
}
PAPER_BLANKS = {"ceval": [["____。", "( )"]], "cmmlu": [["____", ""]]}
"""What the paper's scripts replace in a question before they ask it."""
OPEN = {"zh": "{question}\n请只写出答案。", "en": "{question}\nGive only the answer."}
"""An open question in chat."""

OFFICIAL: dict[str, dict[str, str]] = {
    "ceval": {
        "head": "以下是中国关于{subject}考试的单项选择题，请选出其中的正确答案。\n\n",
        "question": "{question}\n{options}\n答案：",
        "answer": "{letter}",
        "end": "\n\n",
    },
    "cmmlu": {
        "head": "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n",
        "question": "题目：{question}\n{options}\n答案是：",
        "answer": "{letter}",
        "end": "\n\n",
    },
    "mmlu": {
        # two spaces before the subject: so the benchmark's own script makes it
        "head": "The following are multiple choice questions (with answers) about  {subject}.\n\n",
        "question": "{question}\n{options}\nAnswer:",
        "answer": " {letter}",
        "end": "\n\n",
    },
}
HARNESS: dict[str, dict[str, str]] = {
    "ceval": {
        "head": "以下是中国关于{subject}的单项选择题，请选出其中的正确答案。\n\n",
        "question": "{question}\n{options}\n答案：",
        "answer": " {letter}",
        "end": "\n\n",
    },
    "cmmlu": {
        "head": "以下是关于{subject}的单项选择题，请直接给出正确答案的选项。\n\n",
        "question": "{question}\n{options}\n答案：",
        "answer": " {letter}",
        "end": "\n\n",
    },
    "mmlu": {
        "head": "The following are multiple choice questions (with answers) about {subject}.\n\n",
        "question": "{question}\n{options}\nAnswer:",
        "answer": " {letter}",
        "end": "\n\n",
    },
}


def language(question: Question) -> str:
    """`zh` or `en`: in which a question is asked."""
    return "zh" if question.language == "zh" else "en"


def letters(question: Question) -> str:
    """The letters of its options."""
    return LETTERS[: len(question.choices)]


def options(question: Question) -> str:
    """The options, a lettered line each."""
    return "\n".join(f"{x}. {c}" for x, c in zip(letters(question), question.choices, strict=True))


def lettered(question: Question, asked: str) -> str:
    """The user's turn of paper-first-token."""
    return LETTERED[language(question)].format(question=asked, options=options(question))


def paper(question: Question, asked: str) -> str:
    """The user's turn of the paper's scripts, their treatment of blanks included."""
    for old, new in PAPER_BLANKS.get(question.family, []):
        asked = asked.replace(old, new)
    named = list(letters(question))
    among = f"{', '.join(named[:-1])} and {named[-1]}"
    return PAPER[language(question)].format(question=asked, options=options(question), letters=among)


def family(question: Question) -> str:
    """Whose texts a question gets: its benchmark's; English ones of a benchmark in C-Eval's layout those of MMLU."""
    if question.family in ("cmmlu", "mmlu"):
        return question.family
    return "ceval" if language(question) == "zh" else "mmlu"


def head(texts: dict[str, dict[str, str]], question: Question) -> str:
    """What stands above the examples."""
    name = subjects.name(question.family, question.subject)
    return texts[family(question)]["head"].format(subject=name)


def asked(texts: dict[str, dict[str, str]], question: Question, like: Question, strip: bool) -> str:
    """A question up to the place of its letter, in the wording of the question `like`."""
    text = question.question.strip() if strip else question.question
    return texts[family(like)]["question"].format(question=text, options=options(question))


def answers(texts: dict[str, dict[str, str]], question: Question) -> tuple[str, ...]:
    """What is scored behind it: each letter, with the space that the wording has before it."""
    form = texts[family(question)]["answer"]
    return tuple(form.format(letter=letter) for letter in letters(question))


def shot(texts: dict[str, dict[str, str]], example: Question, like: Question, strip: bool) -> str:
    """A worked example."""
    if example.answer is None:
        raise ValueError(f"example {example.id} has no answer")
    words = texts[family(like)]
    letter = words["answer"].format(letter=LETTERS[example.answer])
    return asked(texts, example, like, strip) + letter + words["end"]
