"""Questions to answers: the one place where the scorer is called.

A protocol's requests are encoded, fitted to the model's context and handed to model.scoring; what comes back becomes
one answer a question, the lines of answers.jsonl.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from tasks.evaluate import checking, extraction, protocols
from tasks.evaluate.benchmarks import Question
from tasks.evaluate.protocols import Form, Protocol
from tasks.evaluate.requests import Encoded, Request, encode
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import TextEncoder

CONTROL = "options-only"
SHUFFLED = "options-shuffled"

Examples = Mapping[tuple[str, str], Sequence[Question]]
"""(benchmark, subject) -> its labelled examples."""
Answer = dict[str, Any]


@dataclass
class Asker:
    """A model with its tokenizer, to be asked."""

    model: Any
    encoder: TextEncoder
    """Text to ids."""
    tokenizer: Any = None
    """model.tokenizer.TextTokenizer: ids to text; only protocols that generate need it."""
    form: Form = "plain"
    batch_tokens: int = 16384
    examples: Examples = field(default_factory=dict)
    tokens: int = 0
    """Asked so far: of all prompts and options."""
    tell: Callable[[float], None] | None = None
    """Is told how many times the model has gone through the questions, with the part of the time that goes on."""
    begun: int = 0
    """Times that it has begun to."""
    made: float = 0.0
    """What was told last."""

    @property
    def context(self) -> int:
        """Tokens the model can see."""
        from model.scores.network import context

        return context(self.model) or 1 << 30

    # ------------------------------------------------------------------------------ questions
    def ask(self, protocol: Protocol, questions: Sequence[Question], *, prior: bool = False) -> list[Answer]:
        """One answer a question. `prior`: cloze is also read per byte and against the neutral question."""
        if protocol.generates:
            return self._generated(protocol, questions)
        if protocol.asks == "letters":
            return self._chosen(protocol, questions, self._letters(protocol, questions))
        encoded = self._encoded(protocol, questions)
        sums = self._sums(encoded)
        scores = [
            [total / len(o) for total, o in zip(s, e.options, strict=True)]
            for s, e in zip(sums, encoded, strict=True)
        ]
        answers = self._chosen(protocol, questions, (scores, encoded))
        if prior:
            before = self._sums(self._encoded(protocol, questions, blank=True))
            for answer, question, total, alone in zip(answers, questions, sums, before, strict=True):
                answer["readings"] = readings(question, total, alone)
        return answers

    def ask_blank(self, protocol: Protocol, questions: Sequence[Question]) -> list[Answer]:
        """The control: the question is replaced by a neutral one."""
        if protocol.asks == "letters":
            scored = self._letters(protocol, questions, blank=True)
        else:
            encoded = self._encoded(protocol, questions, blank=True)
            sums = self._sums(encoded)
            scores = [
                [t / len(o) for t, o in zip(s, e.options, strict=True)]
                for s, e in zip(sums, encoded, strict=True)
            ]
            scored = scores, encoded
        answers = self._chosen(protocol, questions, scored)
        return [_as(answer, CONTROL, protocol.name) for answer in answers]

    def ask_shuffled(self, protocol: Protocol, questions: Sequence[Question], turn: int) -> list[Answer]:
        """The options in another order; answers are told in the order of the question."""
        orders = [order(question, turn) for question in questions]
        moved = [
            replace(
                question,
                choices=tuple(question.choices[k] for k in by),
                answer=None if question.answer is None else by.index(question.answer),
            )
            for question, by in zip(questions, orders, strict=True)
        ]
        lines = []
        for answer, by in zip(self.ask(protocol, moved), orders, strict=True):
            line = _as(answer, SHUFFLED, protocol.name)
            line["order"] = by
            line["answer"] = None if answer["answer"] is None else by[answer["answer"]]
            if "gold" in line:
                line["gold"] = by[line["gold"]]
            if "scores" in line:
                line["scores"] = [score for _, score in sorted(zip(by, answer["scores"], strict=True))]
            lines.append(line)
        return lines

    # ----------------------------------------------------------------------------- the scorer
    def _sums(self, encoded: Sequence[Encoded]) -> list[list[float]]:
        """Sum of log-probabilities of each option behind its prompt."""
        from model import scoring

        found = scoring.choice_logprobs(
            self.model,
            [e.prompt for e in encoded],
            [e.options for e in encoded],
            self.batch_tokens,
            progress=self._progress(),
        )
        return [[total for total, _ in each] for each in found]

    def _letters(
        self, protocol: Protocol, questions: Sequence[Question], blank: bool = False
    ) -> tuple[list[list[float]], list[Encoded]]:
        """Log-probability of each letter behind its prompt."""
        from model import scoring

        if protocol.chat:
            protocols.letter_ids(self.encoder, max(len(q.choices) for q in questions))
        encoded = self._encoded(protocol, questions, blank)
        if any(len(option) != 1 for e in encoded for option in e.options):
            return self._sums(encoded), encoded
        candidates = list(dict.fromkeys(option[0] for e in encoded for option in e.options))
        found = scoring.first_token_logprobs(
            self.model,
            [e.prompt for e in encoded],
            candidates,
            self.batch_tokens,
            progress=self._progress(),
        )
        column = {token: k for k, token in enumerate(candidates)}
        scores = [
            [row[column[option[0]]] for option in e.options] for row, e in zip(found, encoded, strict=True)
        ]
        return scores, encoded

    def _replies(self, encoded: Sequence[Encoded]) -> list[str]:
        """A greedy reply to each prompt."""
        from model import scoring

        if self.tokenizer is None:
            raise NodeError("a protocol that generates needs the tokenizer")
        replies: dict[tuple[int, ...], str] = {}
        progress = self._progress()
        for done, e in enumerate(encoded, 1):
            if (key := tuple(e.prompt)) not in replies:
                [replies[key]] = scoring.generate(self.model, self.tokenizer, [e.prompt], e.reply_tokens)
            if progress is not None:
                progress(done, len(encoded))
        return [replies[tuple(e.prompt)] for e in encoded]

    def _progress(self) -> Callable[[int, int], None] | None:
        """For one time through the questions."""
        before = self.begun
        self.begun += 1
        if (tell := self.tell) is None:
            return None

        def step(done: int, of: int) -> None:
            # the scorer goes twice through options that share no prompts: what was told is not taken back
            self.made = max(self.made, before + done / max(1, of))
            tell(self.made)

        return step

    # -------------------------------------------------------------------------------- answers
    def _encoded(
        self, protocol: Protocol, questions: Sequence[Question], blank: bool = False
    ) -> list[Encoded]:
        found = [encode(self.encoder, self.request(protocol, q, blank), self.context) for q in questions]
        self.tokens += sum(len(e.prompt) + sum(map(len, e.options)) for e in found)
        return found

    def request(self, protocol: Protocol, question: Question, blank: bool = False) -> Request:
        """The question as this model is asked it."""
        examples = self.examples.get((question.benchmark, question.subject), ())
        if len(examples) < protocol.shots:
            raise NodeError(
                f"{protocol.name} needs {protocol.shots} examples a subject: benchmark {question.benchmark}, subject "
                f"{question.subject} has {len(examples)} in its split dev"
            )
        return protocol.request(question, self.form, blank=blank, examples=examples)

    def _chosen(
        self,
        protocol: Protocol,
        questions: Sequence[Question],
        scored: tuple[list[list[float]], list[Encoded]],
    ) -> list[Answer]:
        return [
            self._line(protocol, question, encoded) | choice_of(question, scores)
            for question, scores, encoded in zip(questions, *scored, strict=True)
        ]

    def _line(self, protocol: Protocol, question: Question, encoded: Encoded) -> Answer:
        """What every answer says of its question."""
        line: Answer = {
            "id": question.id,
            "benchmark": question.row,
            "subject": question.subject,
            "protocol": protocol.name,
            "form": protocol.form(self.form),
        }
        if question.answer is not None:
            line["gold"] = question.answer
        if encoded.cut:
            line["prompt_tokens_cut"] = encoded.cut
        if encoded.shots_dropped:
            line["shots_dropped"] = encoded.shots_dropped
        return line

    def _generated(self, protocol: Protocol, questions: Sequence[Question]) -> list[Answer]:
        encoded = self._encoded(protocol, questions)
        replies = self._replies(encoded)
        first = self._first_tokens(questions, encoded) if protocol.asks == "choice reply" else None
        answers = []
        for at, (question, reply, e) in enumerate(zip(questions, replies, encoded, strict=True)):
            line = self._line(protocol, question, e) | {"reply": reply}
            if first is not None:
                picked, rule = extraction.choice(reply, question.choices)
                line |= {
                    "answer": picked,
                    "rule": rule,
                    "parsed": picked is not None,
                    "first_token": first[at],
                }
                line["correct"] = picked is not None and picked == question.answer
            else:
                right, parsed = checking.exact(reply, due(question))
                line |= {"answer": None, "parsed": parsed, "correct": right}
            answers.append(line)
        return answers

    def _first_tokens(self, questions: Sequence[Question], encoded: Sequence[Encoded]) -> list[int]:
        """The likeliest letter as first token behind the same prompts: the twin of a reply."""
        from model import scoring

        most = max(len(q.choices) for q in questions)
        letters = protocols.letter_ids(self.encoder, most)
        found = scoring.first_token_logprobs(
            self.model, [e.prompt for e in encoded], letters, self.batch_tokens, progress=self._progress()
        )
        return [row.index(max(row[: len(q.choices)])) for q, row in zip(questions, found, strict=True)]


def due(question: Question) -> str:
    """The right answer to a question that is asked openly."""
    if question.target:
        return question.target
    if question.answer is None:
        raise NodeError(f"question {question.id} has no answer")
    return question.choices[question.answer]


def choice_of(question: Question, scores: Sequence[float]) -> Answer:
    """The likeliest option. A tie goes to the first."""
    if any(s != s for s in scores):
        raise NodeError(f"the model gives no number (NaN) for question {question.id}")
    best = _best(scores)
    return {
        "answer": best,
        "correct": best == question.answer,
        "scores": [round(s, 6) for s in scores],
    }


def readings(question: Question, total: Sequence[float], alone: Sequence[float]) -> dict[str, int]:
    """The option that is taken when the same sums are normalised otherwise.

    `per-byte`: by the length of the option in UTF-8, as lm-evaluation-harness's acc_norm. `pmi`: minus the sum behind the
    neutral question, so that an option which is likely anyway gains nothing by it (A. Holtzman et al., EMNLP 2021).
    """
    sizes = [max(1, len(choice.encode())) for choice in question.choices]
    return {
        "per-byte": _best([t / n for t, n in zip(total, sizes, strict=True)]),
        "pmi": _best([t - a for t, a in zip(total, alone, strict=True)]),
    }


def order(question: Question, turn: int) -> list[int]:
    """Another order of the options: position -> option. Turn k moves every option by k places, so that over all turns
    each option has had each letter once; from where it begins is drawn by the hash of the question's id."""
    n = len(question.choices)
    if n < 2:
        return list(range(n))
    drawn = hashlib.blake2b(question.id.encode(), digest_size=8).digest()
    step = 1 + (int.from_bytes(drawn, "big") + turn) % (n - 1)
    return [(k + step) % n for k in range(n)]


def _best(scores: Sequence[float]) -> int:
    return max(range(len(scores)), key=lambda k: scores[k])


def _as(answer: Answer, name: str, scoring: str) -> Answer:
    """The answer under the name of a control of a protocol."""
    return answer | {"protocol": name, "scoring": scoring}
