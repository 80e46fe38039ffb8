"""Who changed and who dropped what: counted per operator, asserted to add up, shown as a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

WINDOW = 160  # characters of an example


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

    def as_json(self) -> dict[str, Any]:
        fields = asdict(self)
        fields["in"], fields["out"] = fields.pop("records_in"), fields.pop("records_out")
        return fields

    def add(self, fields: Mapping[str, Any]) -> None:
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
    skipped: list[dict[str, str]] = field(default_factory=list)
    """Operators of the recipe that could not run, with the reason."""
    quarantined: Counter[str] = field(default_factory=Counter)
    """Reason -> records on which an operator failed."""

    def as_json(self) -> dict[str, Any]:
        """The room's accounting.json; raises if the numbers do not add up."""
        if self.records_in != self.kept + self.dropped.total() + self.quarantined.total():
            raise AssertionError(
                f"{self.source}: {self.records_in} records in, but {self.kept} kept, "
                f"{self.dropped.total()} dropped and {self.quarantined.total()} quarantined"
            )
        self._check_steps()
        changed: Counter[str] = Counter()
        for step in self.steps:
            changed[step.operator] += step.changed
        return {
            "source": self.source,
            "records_in": self.records_in,
            "chars_in": self.chars_in,
            "kept": self.kept,
            "chars_out": self.chars_out,
            "quarantined": {reason: n for reason, n in sorted(self.quarantined.items()) if n},
            "dropped": {name: n for name, n in sorted(self.dropped.items()) if n},
            "changed": {name: n for name, n in sorted(changed.items()) if n},
            "steps": [step.as_json() for step in self.steps],
            "skipped": self.skipped,
        }

    def _check_steps(self) -> None:
        """What leaves a step reaches the next of its recipe, and what all of them lost is what the source lost."""
        dropped: Counter[str] = Counter()
        last: dict[str, StepCount] = {}
        lost = lost_chars = quarantined = 0
        for step in self.steps:
            name = f"{self.source}, {step.operator} ({step.recipe})"
            if step.records_in != step.records_out + step.dropped + step.quarantined:
                raise AssertionError(f"{name}: records in are not those out, dropped and quarantined: {step}")
            before = last.get(step.recipe)
            left = before and (before.records_out, before.chars_out)
            if left and left != (step.records_in, step.chars_in):
                raise AssertionError(f"{name}: {left} records and characters left the step before: {step}")
            last[step.recipe] = step
            dropped[step.operator] += step.dropped
            quarantined += step.quarantined
            lost += step.records_in - step.records_out
            lost_chars += step.chars_in - step.chars_out
        if (+dropped, quarantined) != (+self.dropped, self.quarantined.total()):
            raise AssertionError(
                f"{self.source}: the steps dropped {dict(+dropped)}, not {dict(+self.dropped)}"
            )
        if (lost, lost_chars) != (self.records_in - self.kept, self.chars_in - self.chars_out):
            raise AssertionError(
                f"{self.source}: the steps took {lost} records and {lost_chars} characters away, the source lost "
                f"{self.records_in - self.kept} and {self.chars_in - self.chars_out}"
            )


def total(source: str, accounts: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
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
                raise AssertionError(f"{source}: parts were cleaned by different recipes of {step['recipe']}")
            sums.add(step)
    whole.steps = [steps[at] for at in sorted(steps)]
    whole.skipped.sort(key=lambda item: item["recipe"])
    return whole.as_json()


def excerpt(text: str, around: int = 0) -> str:
    """At most WINDOW characters of `text`, from a little before position `around`."""
    start = max(0, around - WINDOW // 4)
    return text[start : start + WINDOW]


def first_difference(before: str, after: str) -> int:
    """Position of the first character in which two texts differ."""
    for position, (a, b) in enumerate(zip(before, after, strict=False)):
        if a != b:
            return position
    return min(len(before), len(after))


def headline(accounts: Iterable[Mapping[str, Any]]) -> str:
    """`9,512 of 10,104 kept`."""
    accounts = list(accounts)
    return f"{sum(a['kept'] for a in accounts):,} of {sum(a['records_in'] for a in accounts):,} kept"


def steps_table(account: Mapping[str, Any]) -> str:
    """Markdown: the steps of one source."""
    lines = [
        f"### {account['source']}: {headline([account])}, "
        f"{account['chars_in']:,} → {account['chars_out']:,} characters",
        "",
        "| recipe | operator | in | changed | dropped | characters out |",
        "|---|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s['recipe']} | {s['operator']} | {s['in']:,} | {s['changed']:,} | {s['dropped']:,} | {s['chars_out']:,} |"
        for s in account["steps"]
        if s["in"]
    ]
    lines += [f"\nQuarantined: {reason}: {n:,}" for reason, n in account["quarantined"].items()]
    lines += [f"\nNot run: {s['operator']} ({s['recipe']}): {s['reason']}" for s in account["skipped"]]
    return "\n".join(lines) + "\n"


def sources_table(accounts: Iterable[Mapping[str, Any]]) -> str:
    """Markdown: one line per source."""
    lines = ["| source | in | kept | dropped | characters kept |", "|---|---:|---:|---|---:|"]
    for a in accounts:
        dropped = ", ".join(f"{name} {n:,}" for name, n in a["dropped"].items()) or "–"
        lines.append(
            f"| {a['source']} | {a['records_in']:,} | {a['kept']:,} | {dropped} | {a['chars_out']:,} |"
        )
    return "\n".join(lines) + "\n"
