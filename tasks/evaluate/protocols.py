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
from typing import Any, Literal

from tasks.evaluate.benchmarks import Question

Form = Literal["plain", "chat"]

LETTERS = "ABCD"
SYSTEM = "You are a helpful assistant."
PLAIN = {"zh": "问题：{question}\n答案：", "en": "Question: {question}\nAnswer: "}
NEUTRAL = {"zh": "请回答。", "en": "Please answer."}
LETTERED = {
    "zh": "以下是一道单选题:\n{question}\n\n{options}\n请给出答案。\n",
    "en": "Here is a multiple-choice question:\n{question}\n\n{options}\nPlease give the answer.\n",
}


def cloze(
    tokenizer: Any, questions: Sequence[Question], form: Form, blank: bool = False
) -> tuple[list[list[int]], list[list[list[int]]]]:
    """Prompt and option ids per question.

    Prompt and option are tokenized together, as the model met such text in training, and split where
    the four sequences part: a token across the seam belongs to the option.
    """
    texts: list[str] = []
    for question in questions:
        asked = NEUTRAL[_wording(question)] if blank else question.question
        if form == "chat":
            prompt = chat_prompt(tokenizer, [{"role": "user", "content": asked}])
        else:
            prompt = PLAIN[_wording(question)].format(question=asked)
        texts.append(prompt)
        texts += [prompt + choice for choice in question.choices]
    encoded = iter(encode(tokenizer, texts))
    prompts, options = [], []
    for question in questions:
        alone = next(encoded)
        whole = [next(encoded) for _ in question.choices]
        seam = min(min(_common(alone, ids), len(ids) - 1) for ids in whole)
        prompts.append(alone[:seam])
        options.append([ids[seam:] for ids in whole])
    return prompts, options


def lettered(tokenizer: Any, questions: Sequence[Question], blank: bool = False) -> list[list[int]]:
    """Prompt ids up to the first token of the assistant's reply."""
    texts = []
    for question in questions:
        asked = NEUTRAL[_wording(question)] if blank else question.question
        options = "\n".join(f"{x}. {c}" for x, c in zip(LETTERS, question.choices, strict=True))
        content = LETTERED[_wording(question)].format(question=asked, options=options)
        turns = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": content}]
        texts.append(chat_prompt(tokenizer, turns))
    return encode(tokenizer, texts)


def letter_ids(tokenizer: Any) -> list[int]:
    """The token of each letter where a reply begins; one token each, or the protocol has no meaning."""
    ids = [tokenizer.encode(letter, add_special_tokens=False) for letter in LETTERS]
    if any(len(i) != 1 for i in ids):
        raise ValueError("the tokenizer has no single token for each of the letters A, B, C and D")
    return [i[0] for i in ids]


def chat_prompt(tokenizer: Any, turns: list[dict[str, str]]) -> str:
    """The conversation in the tokenizer's chat template, open for the assistant's reply."""
    return tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)


def encode(tokenizer: Any, texts: Sequence[str]) -> list[list[int]]:
    if not texts:
        return []
    return tokenizer(list(texts), add_special_tokens=False, return_attention_mask=False)["input_ids"]


def _wording(question: Question) -> str:
    return "zh" if question.language == "zh" else "en"


def _common(a: Sequence[int], b: Sequence[int]) -> int:
    """Length of the common prefix."""
    for k, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return k
    return min(len(a), len(b))
