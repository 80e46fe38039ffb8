"""How a question is put to a model, as token ids; what is done with them is the scorer's business.

`cloze`: the question, and each option's text as the answer to it. Asked plainly (the form in which
question and answer stand in pre-training text) or in the chat template (the form tuned models know).
The option with the highest log-probability per token is the answer.

`paper-first-token`: the prompt of the Steel-LLM paper (Chinese one-question multiple choice, options
lettered, chat template for every model), answered by the likeliest of the letters A to D as the
reply's first token: the deterministic twin of generating and parsing. English questions are asked
in English.

Both can be asked *blank*: the question is replaced by a neutral one and the options stay. What a
model scores then, it scores without reading the question (`options-only`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from tasks.evaluate.benchmarks import Question
from tasks.tokenize.chat import TextEncoder, render_chat, reply_ids

Form = Literal["plain", "chat"]

LETTERS = "ABCD"
PLAIN = {"zh": "问题：{question}\n答案：", "en": "Question: {question}\nAnswer: "}
NEUTRAL = {"zh": "请回答。", "en": "Please answer."}
LETTERED = {
    "zh": "以下是一道单选题:\n{question}\n\n{options}\n请给出答案。\n",
    "en": "Here is a multiple-choice question:\n{question}\n\n{options}\nPlease give the answer.\n",
}


def cloze(
    encoder: TextEncoder, questions: Sequence[Question], form: Form, blank: bool = False
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompt and option ids per question.

    In the chat form a reply is encoded by itself, as training and generation do. Plainly, prompt and
    option are encoded together, as pre-training met such text, and split where the four sequences
    part: a token across the seam belongs to the option.
    """
    prompts, options = [], []
    for question in questions:
        wording = _wording(question)
        asked = NEUTRAL[wording] if blank else question.question
        if form == "chat":
            turns = [{"role": "user", "content": asked}]
            prompts.append(_chat(encoder, turns))
            options.append([reply_ids(encoder, turns, choice, end=False) for choice in question.choices])
        else:
            prompt = PLAIN[wording].format(question=asked)
            alone = _ids(encoder, prompt)
            whole = [_ids(encoder, prompt + choice) for choice in question.choices]
            seam = min(min(_common(alone, ids), len(ids) - 1) for ids in whole)
            prompts.append([*encoder.begin, *alone[:seam]])
            options.append([ids[seam:] for ids in whole])
    return prompts, options


def lettered(encoder: TextEncoder, questions: Sequence[Question], blank: bool = False) -> list[list[int]]:
    """Prompt ids up to the first token of the assistant's reply."""
    prompts = []
    for question in questions:
        wording = _wording(question)
        asked = NEUTRAL[wording] if blank else question.question
        options = "\n".join(f"{x}. {c}" for x, c in zip(LETTERS, question.choices, strict=True))
        content = LETTERED[wording].format(question=asked, options=options)
        prompts.append(_chat(encoder, [{"role": "user", "content": content}]))
    return prompts


def letter_ids(encoder: TextEncoder) -> list[int]:
    """The token of each letter where a reply begins; one token each, or the protocol has no meaning."""
    turns = [{"role": "user", "content": NEUTRAL["en"]}]
    ids = [reply_ids(encoder, turns, letter, end=False) for letter in LETTERS]
    if any(len(i) != 1 for i in ids):
        raise ValueError("the tokenizer has no single token for each of the letters A, B, C and D")
    return [i[0] for i in ids]


def _chat(encoder: TextEncoder, turns: list[dict[str, str]]) -> list[int]:
    """The conversation, open for the assistant's reply."""
    return render_chat(encoder, turns, generation_prompt=True)[0]


def _ids(encoder: TextEncoder, text: str) -> list[int]:
    return [int(i) for i in encoder.encode(text)]


def _wording(question: Question) -> str:
    return "zh" if question.language == "zh" else "en"


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return k
    return min(len(a), len(b))
