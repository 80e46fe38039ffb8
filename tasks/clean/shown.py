"""What people are shown of a cleaning: excerpts of texts, and accounts as Markdown tables."""

from __future__ import annotations

from collections.abc import Iterable

from tasks.records.account import SourceAccount, headline

WINDOW = 160
"""Characters of an excerpt."""


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


def steps_table(account: SourceAccount) -> str:
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


def sources_table(accounts: Iterable[SourceAccount]) -> str:
    """Markdown: one line per source."""
    lines = ["| source | in | kept | dropped | characters kept |", "|---|---:|---:|---|---:|"]
    for a in accounts:
        dropped = ", ".join(f"{name} {n:,}" for name, n in a["dropped"].items()) or "–"
        lines.append(
            f"| {a['source']} | {a['records_in']:,} | {a['kept']:,} | {dropped} | {a['chars_out']:,} |"
        )
    return "\n".join(lines) + "\n"
