"""A file that is one object around its records: `{"data": [{…}, {…}]}`, `{"0": {…}, "1": {…}}`.

Nothing in its bytes tells it from a file of one record, which may well hold a list of objects (a dialogue's turns).
So the reader is asked: it cannot read the whole, but what is inside. Only the sole object of a file is taken
apart; among other records it would be a bad one. A larger one than a record may be is read by json_documents.py.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import chain
from typing import Any

from tasks.convert.values import Items

DEPTH = 3
"""Objects around a list of records at most."""
TRIED = 5
"""Records of a list that the reader is asked about."""


def unwrapped(items: Items, reads: Callable[[dict[str, Any]], bool]) -> Items:
    """The items of a file; where the only one is an object around records, these. `reads` asks the reader."""
    first = list(_take(items, 2))
    if len(first) == 1 and type(first[0][1]) is dict and not reads(first[0][1]):
        inside = list(_records(first[0][1], reads, DEPTH))
        if inside:
            yield from ((number, value, value) for number, value in enumerate(inside, start=1))
            return
    yield from chain(first, items)


def _take(items: Items, n: int) -> Items:
    for _, item in zip(range(n), items, strict=False):
        yield item


def _records(value: dict[str, Any], reads: Callable[[dict[str, Any]], bool], depth: int) -> list[Any]:
    """All records of the lists inside an object, in order; none if the reader cannot read any."""
    if _are_records(members := list(value.values()), reads):
        return members
    found: list[Any] = []
    for member in members:
        if type(member) is list and _are_records(member, reads):
            found += member
        elif type(member) is dict and depth > 1:
            found += _records(member, reads, depth - 1)
    return found


def _are_records(values: list[Any], reads: Callable[[dict[str, Any]], bool]) -> bool:
    tried = values[:TRIED]
    return all(type(value) is dict for value in tried) and any(reads(value) for value in tried)
