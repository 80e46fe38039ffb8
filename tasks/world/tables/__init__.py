"""Facts typed from tables of general knowledge: one module a domain, one row a fact.

Invariant (tested): an answer's text belongs to one relation only, so that all answers of a relation
are met equally often in training.
"""

from __future__ import annotations


def rows(text: str) -> list[list[str]]:
    """Parse a table: one row a line, columns separated by two or more spaces or a tab."""
    table = []
    for line in text.strip().splitlines():
        columns = [c.strip() for c in line.replace("\t", "  ").split("  ") if c.strip()]
        if columns:
            table.append(columns)
    return table


def column(table: list[list[str]], answer: int, subject: int = 0) -> list[tuple[str, str]]:
    """(subject, answer) pairs of two columns; rows with "-" for an answer are left out."""
    return [(row[subject], row[answer]) for row in table if row[answer] != "-"]
