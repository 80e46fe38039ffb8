"""How a question is put to a model and what counts as its answer: each way has a name, a version and a digest.

The digest covers all that decides a score beside the model and the questions: texts, examples, what is scored, how
it is normalised, how replies are read, what is cut when a prompt is too long. It stands beside every score. A test
holds the digest of every version: whoever changes a text or a rule has to raise the version, too.

`cloze`: the question, and each option's text as the answer to it. Asked plainly (the form in which question and answer
stand in pre-training text) or in the chat template (the form tuned models know). The option with the highest
log-probability per token is the answer; per byte, and against its probability without the question, are beside it.

`paper-first-token`: the prompt of the Steel-LLM paper (Chinese one-question multiple choice, options lettered, chat
template for every model), answered by the likeliest of the letters as the reply's first token: the deterministic
twin of generating and parsing. English questions are asked in English.

`paper-gen`: the paper's own prompts, a greedy reply, read strictly (extraction.py).

`official-5shot`: each benchmark's own text with five examples. `lm-eval-compat`: the text of lm-evaluation-harness.

`open-exact`: the question alone, without options; the short answer has to be right (checking.py).

All but the generating ones can be asked *blank*: the question is replaced by a neutral one and the options stay. What
a model scores then, it scores without reading the question (`options-only`).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from tasks.evaluate import checking, extraction, subjects, wording
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.requests import Request
from tasks.tokenize.chat import SYSTEM, TextEncoder

Form = Literal["plain", "chat"]
Asks = Literal["options", "letters", "choice reply", "short reply"]
"""What a protocol takes as an answer: the likeliest option text, the likeliest letter, a reply that names a letter, a
reply that is the answer."""


@dataclass(frozen=True)
class Protocol:
    """One way to ask."""

    name: str
    version: int
    asks: Asks
    build: Callable[[Question, str, Form, Sequence[Question]], Request]
    """(question, its text or a neutral one, form, examples) -> the request."""
    rules: dict[str, Any]
    """All that decides a score, as data."""
    shots: int = 0
    chat: bool | None = None
    """Asked in the chat template: always, never, or (None) as the model is asked elsewhere."""
    average: Literal["", "micro"] = ""
    """The average of this protocol's authors, where it is not that of the benchmark."""
    digest: str = field(init=False)
    """sha256 of name, version and rules."""

    def __post_init__(self) -> None:
        whole = {"name": self.name, "version": self.version, "shots": self.shots, **self.rules}
        text = json.dumps(whole, ensure_ascii=False, sort_keys=True)
        object.__setattr__(self, "digest", hashlib.sha256(text.encode()).hexdigest())

    @property
    def generates(self) -> bool:
        """Whether a model has to write a reply."""
        return self.asks in ("choice reply", "short reply")

    @property
    def shows_options(self) -> bool:
        """Whether the prompt lists the options, so that their order may matter."""
        return self.asks in ("letters", "choice reply")

    def form(self, form: Form) -> Form:
        """The form in which a model is asked that is asked in `form` elsewhere."""
        return form if self.chat is None else "chat" if self.chat else "plain"

    def suits(self, question: Question) -> bool:
        """Whether the question can be asked so: an open question has no options to choose from."""
        if question.choices:
            return True
        return self.asks == "short reply"

    def request(
        self, question: Question, form: Form, *, blank: bool = False, examples: Sequence[Question] = ()
    ) -> Request:
        """The question as text; `examples` are the labelled ones of its subject, of which the first are used."""
        text = wording.NEUTRAL[wording.language(question)] if blank else question.question
        return self.build(question, text, self.form(form), examples[: self.shots])


def _cloze(question: Question, text: str, form: Form, examples: Sequence[Question]) -> Request:
    if form == "chat":
        return Request(turns=(("user", text),), options=question.choices, spare=1)
    tail = wording.PLAIN[wording.language(question)].format(question=text)
    return Request(tail=tail, options=question.choices, seam="parting", spare=1)


def _first_token(question: Question, text: str, form: Form, examples: Sequence[Question]) -> Request:
    turns = (("user", wording.lettered(question, text)),)
    return Request(turns=turns, options=tuple(wording.letters(question)))


def _paper_reply(question: Question, text: str, form: Form, examples: Sequence[Question]) -> Request:
    turns = (("user", wording.paper(question, text)),)
    return Request(turns=turns, reply_tokens=REPLY_TOKENS)


def _official(question: Question, text: str, form: Form, examples: Sequence[Question]) -> Request:
    return _few_shot(wording.OFFICIAL, question, text, examples, strip=False, seam="parting")


def _harness(question: Question, text: str, form: Form, examples: Sequence[Question]) -> Request:
    request = _few_shot(wording.HARNESS, question, text, examples, strip=True, seam="context")
    return replace(request, head=request.head + "".join(request.shots), shots=())


def _few_shot(texts: Any, question: Question, text: str, examples: Any, *, strip: bool, seam: Any) -> Request:
    asked = replace(question, question=text)
    return Request(
        head=wording.head(texts, question),
        shots=tuple(wording.shot(texts, example, question, strip) for example in examples),
        tail=wording.asked(texts, asked, question, strip),
        options=wording.answers(texts, question),
        seam=seam,
    )


def _open(question: Question, text: str, form: Form, examples: Sequence[Question]) -> Request:
    language = wording.language(question)
    if form == "chat":
        content = wording.OPEN[language].format(question=text)
        return Request(turns=(("user", content),), reply_tokens=REPLY_TOKENS)
    tail = wording.PLAIN[language].format(question=text).rstrip(" ")
    return Request(tail=tail, reply_tokens=REPLY_TOKENS)


REPLY_TOKENS = 64
"""Largest length of a generated reply, as in the paper's script for CMMLU."""
CUT = "tokens at the beginning of the prompt"
CHAT = {"template": "chatml", "system": SYSTEM}
GREEDY = {"decoding": "greedy", "reply_tokens": REPLY_TOKENS}
FEW_SHOT = {
    "examples": "the first of the split dev of the subject",
    "truncation": f"the longest example first, then {CUT}",
}

PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol(
            "cloze",
            1,
            "options",
            _cloze,
            {
                "plain": wording.PLAIN,
                "neutral": wording.NEUTRAL,
                "chat": CHAT,
                "scoring": "sum of log-probabilities of the option's text",
                "normalisation": "per token; beside it per byte of UTF-8, and minus the sum behind the neutral question",
                "seam": "chat: apart; plain: parting",
                "truncation": CUT,
            },
        ),
        Protocol(
            "paper-first-token",
            1,
            "letters",
            _first_token,
            {
                "text": wording.LETTERED,
                "neutral": wording.NEUTRAL,
                "letters": wording.LETTERS,
                "chat": CHAT,
                "scoring": "log-probability of the letter as first token of the reply",
                "normalisation": "none",
                "truncation": CUT,
            },
            chat=True,
        ),
        Protocol(
            "paper-gen",
            1,
            "choice reply",
            _paper_reply,
            {
                "text": wording.PAPER,
                "blanks": wording.PAPER_BLANKS,
                "letters": wording.LETTERS,
                "chat": CHAT,
                "scoring": "the letter that the reply names; none or several: wrong",
                **GREEDY,
                "extraction": extraction.RULES,
                "truncation": CUT,
            },
            chat=True,
        ),
        Protocol(
            "official-5shot",
            1,
            "letters",
            _official,
            {
                "text": wording.OFFICIAL,
                "subjects": subjects.prompt_names(),
                "neutral": wording.NEUTRAL,
                "letters": wording.LETTERS,
                "scoring": "log-probability of the letter",
                "normalisation": "none",
                "seam": "parting",
                **FEW_SHOT,
            },
            shots=5,
            chat=False,
        ),
        *(
            Protocol(
                f"lm-eval-compat{suffix}",
                1,
                "letters",
                _harness,
                {
                    "text": wording.HARNESS,
                    "subjects": subjects.prompt_names(),
                    "neutral": wording.NEUTRAL,
                    "letters": wording.LETTERS,
                    "scoring": "log-probability of space and letter",
                    "normalisation": "none",
                    "seam": "context",
                    "average": "micro",
                    # with examples lm-evaluation-harness cuts at the beginning, and drops no example
                    "examples": "the first of the split dev of the subject",
                    "truncation": CUT,
                },
                shots=shots,
                chat=False,
                average="micro",
            )
            for suffix, shots in (("", 0), ("-5shot", 5))
        ),
        Protocol(
            "open-exact",
            1,
            "short reply",
            _open,
            {
                "plain": wording.PLAIN,
                "text": wording.OPEN,
                "chat": CHAT,
                "scoring": "the short answer, exactly",
                **GREEDY,
                "checking": checking.RULES,
                "truncation": CUT,
            },
        ),
    )
}
"""Name -> protocol."""


def of(name: str) -> Protocol:
    """The protocol of this name. Raises KeyError."""
    return PROTOCOLS[name]


def letter_ids(encoder: TextEncoder, count: int = 4) -> list[int]:
    """The token of each letter where a reply begins; one token each, or `paper-first-token` has no meaning."""
    from tasks.evaluate.requests import ids

    found = [ids(encoder, letter) for letter in wording.LETTERS[:count]]
    if any(len(i) != 1 for i in found):
        raise ValueError(
            f"the tokenizer has no single token for each of the letters {wording.LETTERS[:count]}"
        )
    return [i[0] for i in found]
