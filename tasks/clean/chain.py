"""A recipe at work: its operators in order over batches of records, each change and drop attributed.

Data-Juicer's own executor does not say which operator dropped which record, and an exception inside
it silently costs a thousand rows. So its operators are called here directly, one after the other, on plain
`{"text": [...]}` batches. Mappers see one text or message at a time; filters judge a record by its
texts joined with newlines. A record whose text (or one of whose messages) a mapper has emptied is
dropped by that mapper: a dialogue with a missing turn teaches nonsense.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from itertools import count as numbers
from itertools import islice
from pathlib import Path
from typing import Any

import regex

from tasks.clean import operators
from tasks.clean.language import language_of
from tasks.clean.recipe import Step
from tasks.clean.shown import excerpt, first_difference
from tasks.records.account import SkippedStep, StepCount
from tasks.records.record import Record, length, texts, with_texts
from tasks.settings.errors import NodeError

MAX_FAILURES, MAX_FAILED_SHARE = 10, 0.001
"""Records of a part, and again of a source, that operators may fail on before it is the operator's fault."""

_CODE = regex.compile(r"(?s)(```.*?(?:```|\Z)|`[^`\n]+`)")


@dataclass
class Row:
    """One record on its way through a chain."""

    record: Record
    texts: list[str]
    chars: int
    """Of `texts`."""
    changed: bool = False
    dropped_by: str = ""
    failed_at: str = ""
    """The operator that could not stand it: no verdict on the record, so it is quarantined, not dropped."""
    why: dict[str, Any] = field(default_factory=dict)

    @property
    def gone(self) -> bool:
        return bool(self.dropped_by or self.failed_at)

    @property
    def quarantined(self) -> str:
        """The reason, or ""."""
        return f"operator failed: {self.failed_at}" if self.failed_at else ""

    @cached_property
    def language(self) -> str:
        """Of the record as it came."""
        return language_of("\n".join(texts(self.record)[:4]))

    def result(self) -> Record:
        return with_texts(self.record, self.texts) if self.changed else self.record


class Chain:
    """The steps of one recipe, loaded, with their counts."""

    def __init__(self, kind: str, steps: Sequence[Step], models: Path | None, examples: int):
        self.kind = kind
        self.skipped = [
            SkippedStep(recipe=kind, operator=step.operator, reason=reason)
            for step in steps
            if (reason := _cannot_run(step, models))
        ]
        steps = [step for step in steps if not _cannot_run(step, models)]
        self.steps = [(step, _loaded(step.model_dump_json(), models)) for step in steps]
        self.counts = [StepCount(step.operator, kind) for step in steps]
        self.seen = self.failures = 0
        self.most_examples = examples
        self.examples: dict[str, list[dict[str, Any]]] = {}

    def run(self, records: Iterable[Record]) -> list[Row]:
        """Clean one batch; every record comes back as a row, in order."""
        rows = []
        for record in records:
            own = texts(record)
            rows.append(Row(record, own, length(own)))
        self.seen += len(rows)
        reached, chars = rows, sum(row.chars for row in rows)
        for (step, op), count in zip(self.steps, self.counts, strict=True):
            count.records_in += len(reached)
            count.chars_in += chars
            self._apply(step, op, _chosen(step, reached), count)
            left = [row for row in reached if not row.gone]
            count.quarantined += sum(bool(row.failed_at) for row in reached)
            count.dropped += sum(bool(row.dropped_by) for row in reached)
            reached, chars = left, sum(row.chars for row in left)
            count.records_out += len(reached)
            count.chars_out += chars
        return rows

    def _apply(self, step: Step, op: Any, rows: Sequence[Row], count: StepCount) -> None:
        """Run one operator; a record that it cannot stand is quarantined alone, not its whole batch."""
        try:
            (self._filter if step.is_filter else self._map)(step, op, rows, count)
        except (OSError, MemoryError, NodeError):
            raise  # the machine's or the house's, not the record's
        except Exception as error:  # whatever it is: written to dropped.jsonl, and raised if it is not rare
            if len(rows) > 1:
                for half in (rows[: len(rows) // 2], rows[len(rows) // 2 :]):
                    self._apply(step, op, half, count)
                return
            self.failures += 1
            message = f"{type(error).__name__}: {error}"
            if self.failures > max(MAX_FAILURES, MAX_FAILED_SHARE * self.seen):
                raise NodeError(
                    f"{step.operator} failed on {self.failures} of {self.seen} records, last on "
                    f"{rows[0].record['id']}: {message}"
                ) from error
            rows[0].failed_at, rows[0].why = step.operator, {"error": message[:200]}

    def _map(self, step: Step, op: Any, rows: Sequence[Row], count: StepCount) -> None:
        before = [text for row in rows for text in row.texts]
        mapped = iter(_sparing_code(op, before) if step.spare_code else _mapped(op, before))
        for row in rows:
            new = list(islice(mapped, len(row.texts)))
            if new == row.texts:
                continue
            count.changed += 1
            row.changed = True
            self._keep_example(step, row, new)
            if any(old.strip() and not text.strip() for old, text in zip(row.texts, new, strict=True)):
                row.dropped_by, row.why = step.operator, {"emptied": True}
            row.texts, row.chars = new, length(new)

    def _filter(self, step: Step, op: Any, rows: Sequence[Row], count: StepCount) -> None:
        from data_juicer.utils.constant import Fields

        batch = {"text": ["\n".join(row.texts) for row in rows], Fields.stats: [{} for _ in rows]}
        batch = op.compute_stats_batched(batch)
        verdicts = list(op.process_batched(batch))
        for row, keep, stats in zip(rows, verdicts, batch[Fields.stats], strict=True):
            if not keep:
                row.dropped_by = step.operator
                row.why = {name: round(float(value), 4) for name, value in stats.items()}
                self._keep_example(step, row, None)

    def _keep_example(self, step: Step, row: Row, new: list[str] | None) -> None:
        examples = self.examples.setdefault(f"{self.kind}/{step.operator}", [])
        if len(examples) >= self.most_examples:
            return
        if new is None:
            examples.append(
                {"id": row.record["id"], "dropped": excerpt("\n".join(row.texts)), "why": row.why}
            )
            return
        old, text = next((a, b) for a, b in zip(row.texts, new, strict=True) if a != b)
        at = first_difference(old, text)
        examples.append({"id": row.record["id"], "before": excerpt(old, at), "after": excerpt(text, at)})


def _mapped(op: Any, before: list[str]) -> list[str]:
    # the operators write into the list they are given
    return op.process_batched({"text": list(before)})["text"] if before else []


def _sparing_code(op: Any, texts: list[str]) -> Iterator[str]:
    """The mapped texts, with the code in them as it was: the operator sees its number between two signs."""
    signs = [_unused_sign(text) if "`" in text else "" for text in texts]
    codes = [_CODE.findall(text) if sign else [] for text, sign in zip(texts, signs, strict=True)]
    before = []
    for text, sign in zip(texts, signs, strict=True):
        number = numbers()
        before.append(_CODE.sub(lambda _, n=number, s=sign: f"{s}{next(n)}{s}", text) if sign else text)
    for text, sign, code in zip(_mapped(op, before), signs, codes, strict=True):
        yield (
            regex.sub(f"{sign}([0-9]+){sign}", lambda at, code=code: code[int(at[1])], text) if code else text
        )


def _unused_sign(text: str) -> str:
    """A character of the private use area that the text has not."""
    return next(sign for sign in map(chr, range(0xE000, 0xF900)) if sign not in text)


def _chosen(step: Step, rows: list[Row]) -> list[Row]:
    if step.language is None and not step.min_chars:
        return rows
    return [row for row in rows if row.chars >= step.min_chars and step.language in (None, row.language)]


def _cannot_run(step: Step, models: Path | None) -> str:
    if step.operator == "perplexity_filter" and not operators.has_models(models, step.settings()["lang"]):
        return f"no language model for {step.settings()['lang']} in the assets: too little text to train one"
    return ""


@lru_cache(maxsize=128)
def _loaded(step: str, models: Path | None) -> Any:
    """Operators are kept between nodes: a worker process cleans many sources with the same recipe."""
    parsed = Step.model_validate_json(step)
    return operators.load(parsed.operator, parsed.settings(), models, parsed.engine)
