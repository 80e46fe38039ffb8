"""What became of a source's records in one node: counted, checked to add up, written as accounting.json.

Every data stage writes one for each source. Convert, clean, dedup and decontaminate write a
`SourceAccount`, tokenize a `TokenizeAccount`; `write` refuses one whose records do not add up, and the
report's funnel chains them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, final

import orjson

from tasks.settings.errors import NodeError

FILE = "accounting.json"
Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")

StepAccount = TypedDict(
    "StepAccount",
    {
        "operator": str,
        "recipe": NotRequired[str],
        "changed": int,
        "dropped": int,
        "quarantined": NotRequired[int],
        "in": int,
        "out": int,
        "chars_in": int,
        "chars_out": int,
    },
)
"""One operator of one recipe (or one step of convert): records and characters that reached and left it."""


class SkippedStep(TypedDict):
    """An operator of the recipe that could not run."""

    recipe: str
    operator: str
    reason: str


@final
class SourceAccount(TypedDict):
    """records_in = kept + quarantined + dropped, both by reason."""

    source: str
    records_in: int
    chars_in: int
    kept: int
    chars_out: int
    quarantined: dict[str, int]
    dropped: dict[str, int]
    changed: dict[str, int]
    """Operator -> records that it changed."""
    steps: list[StepAccount]
    skipped: NotRequired[list[SkippedStep]]
    """Of clean, dedup and decontaminate."""
    files: NotRequired[int]
    """Of convert, as those that follow: raw files that were read,"""
    files_ignored: NotRequired[int]
    """those that are none of the reader's,"""
    ignored: NotRequired[list[str]]
    """and the first of them by name;"""
    files_without_records: NotRequired[int]
    """of the files that were read, those of which no record came,"""
    without_records: NotRequired[list[str]]
    """and the first of them by name;"""
    bytes_in: NotRequired[int]
    bytes_lost: NotRequired[int]
    """bytes of what went to quarantine (tasks.convert.lost)."""


class SplitAccount(TypedDict):
    """The shards of one split of a source."""

    documents: int
    rows: int
    tokens: int
    shards: list[dict[str, Any]]
    """As model.training.shards.ShardWriter.close tells each."""


@final
class TokenizeAccount(TypedDict):
    """records_in = documents of both splits + dropped."""

    source: str
    records_in: int
    dropped: dict[str, int]
    """`drops` (by clean:dedup and clean:decontaminate) and `empty` (without any token)."""
    characters: int
    tokenizer_digest: str
    encoder: str
    warnings: list[str]
    train: SplitAccount
    val: SplitAccount


def balance(source: str, what: str, came: int, kept: int, **lost: int) -> None:
    """NodeError when what came in is not what was kept and lost: a fault of the house, never of the data."""
    if came != kept + sum(lost.values()):
        rest = "".join(f" + {count} {name}" for name, count in lost.items())
        raise NodeError(f"{source}: {came} {what} came in, but {kept} kept{rest} are accounted for")


def kept_of(account: SourceAccount | TokenizeAccount) -> int:
    """Records that go on to the next stage; of tokenize, those that became documents."""
    return account["kept"] if "kept" in account else sum(account[split]["documents"] for split in SPLITS)


def check(account: SourceAccount | TokenizeAccount) -> None:
    """NodeError when the records do not add up."""
    quarantined = sum(account["quarantined"].values()) if "quarantined" in account else 0
    dropped = sum(account["dropped"].values())
    came, kept = account["records_in"], kept_of(account)
    balance(account["source"], "records", came, kept, quarantined=quarantined, dropped=dropped)


def write(folder: Path, account: SourceAccount | TokenizeAccount, end: bytes = b"") -> None:
    """accounting.json in `folder`, ended by `end`; NodeError when the records do not add up."""
    check(account)
    (folder / FILE).write_bytes(orjson.dumps(account, option=orjson.OPT_INDENT_2) + end)


def read(folder: Path) -> Any:
    """The SourceAccount or TokenizeAccount in `folder`."""
    return orjson.loads((folder / FILE).read_bytes())


@dataclass
class StepCount:
    """One operator of one recipe, over the records that reached it."""

    operator: str
    recipe: str
    records_in: int = 0
    records_out: int = 0
    changed: int = 0
    dropped: int = 0
    chars_in: int = 0
    chars_out: int = 0
    quarantined: int = 0

    def as_json(self) -> StepAccount:
        return {
            "operator": self.operator,
            "recipe": self.recipe,
            "changed": self.changed,
            "dropped": self.dropped,
            "chars_in": self.chars_in,
            "chars_out": self.chars_out,
            "quarantined": self.quarantined,
            "in": self.records_in,
            "out": self.records_out,
        }

    def add(self, fields: StepAccount) -> None:
        """Count the same step of another part, as `as_json` gave it."""
        self.records_in += fields["in"]
        self.records_out += fields["out"]
        for name in ("changed", "dropped", "quarantined", "chars_in", "chars_out"):
            setattr(self, name, getattr(self, name) + fields[name])


@dataclass
class Accounting:
    """What became of the records of one source in one node."""

    source: str
    records_in: int = 0
    chars_in: int = 0
    kept: int = 0
    chars_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    steps: list[StepCount] = field(default_factory=list)
    skipped: list[SkippedStep] = field(default_factory=list)
    """Operators of the recipe that could not run, with the reason."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Reason -> records on which an operator failed."""

    def as_json(self) -> SourceAccount:
        """The account with its steps; NodeError if the numbers do not add up."""
        changed: Counter[str] = Counter()
        for step in self.steps:
            changed[step.operator] += step.changed
        account = self.without_steps(changed)
        self._check_steps()
        return account | {"steps": [step.as_json() for step in self.steps], "skipped": self.skipped}

    def without_steps(self, changed: Mapping[str, int] = {}) -> SourceAccount:
        """The account but for its steps, which convert counts in its own way."""
        account: Any = {
            "source": self.source,
            "records_in": self.records_in,
            "chars_in": self.chars_in,
            "kept": self.kept,
            "chars_out": self.chars_out,
            "quarantined": _positive(self.quarantined),
            "dropped": _positive(self.dropped),
            "changed": _positive(changed),
        }
        check(account)
        return account

    def _check_steps(self) -> None:
        """What leaves a step reaches the next of its recipe, and what all of them lost is what the source lost."""
        dropped: Counter[str] = Counter()
        last: dict[str, StepCount] = {}
        lost = lost_chars = quarantined = 0
        for step in self.steps:
            name = f"{self.source}, {step.operator} ({step.recipe})"
            if step.records_in != step.records_out + step.dropped + step.quarantined:
                raise NodeError(f"{name}: records in are not those out, dropped and quarantined: {step}")
            before = last.get(step.recipe)
            left = before and (before.records_out, before.chars_out)
            if left and left != (step.records_in, step.chars_in):
                raise NodeError(f"{name}: {left} records and characters left the step before: {step}")
            last[step.recipe] = step
            dropped[step.operator] += step.dropped
            quarantined += step.quarantined
            lost += step.records_in - step.records_out
            lost_chars += step.chars_in - step.chars_out
        if (+dropped, quarantined) != (+self.dropped, self.quarantined.total()):
            raise NodeError(f"{self.source}: the steps dropped {dict(+dropped)}, not {dict(+self.dropped)}")
        if (lost, lost_chars) != (self.records_in - self.kept, self.chars_in - self.chars_out):
            raise NodeError(
                f"{self.source}: the steps took {lost} records and {lost_chars} characters away, the source lost "
                f"{self.records_in - self.kept} and {self.chars_in - self.chars_out}"
            )


def total(source: str, accounts: Sequence[SourceAccount]) -> SourceAccount:
    """The accounting of a source from those of its parts; the sums have to agree once more."""
    whole = Accounting(source)
    steps: dict[tuple[str, int], StepCount] = {}
    for account in accounts:
        for name in ("records_in", "chars_in", "kept", "chars_out"):
            setattr(whole, name, getattr(whole, name) + account[name])
        whole.dropped.update(account["dropped"])
        whole.quarantined.update(account["quarantined"])
        whole.skipped += [item for item in account["skipped"] if item not in whole.skipped]
        place: Counter[str] = Counter()
        for step in account["steps"]:
            at = step["recipe"], place[step["recipe"]]
            place[step["recipe"]] += 1
            sums = steps.setdefault(at, StepCount(step["operator"], step["recipe"]))
            if sums.operator != step["operator"]:
                raise NodeError(f"{source}: parts were cleaned by different recipes of {step['recipe']}")
            sums.add(step)
    whole.steps = [steps[at] for at in sorted(steps)]
    whole.skipped.sort(key=lambda item: item["recipe"])
    return whole.as_json()


def headline(accounts: Iterable[SourceAccount]) -> str:
    """`9,512 of 10,104 kept`."""
    accounts = list(accounts)
    return f"{sum(a['kept'] for a in accounts):,} of {sum(a['records_in'] for a in accounts):,} kept"


def _positive(counts: Mapping[str, int]) -> dict[str, int]:
    return {name: count for name, count in sorted(counts.items()) if count}
