"""flows.prefect_server: a schema is checked once, and a wrong one every time."""

from __future__ import annotations

import pytest
from jsonschema import Draft202012Validator, SchemaError

from flows.prefect_server import once


def test_a_schema_that_has_passed_is_not_checked_again():
    seen = []
    checked = once(lambda schema, **options: seen.append((schema, options)))
    first, second = {"type": "object"}, {"type": "string"}
    checked(first)
    checked({"type": "object"})
    checked(second)
    checked(first, format_checker=object())
    assert [schema for schema, _ in seen] == [first, second, first], (
        "another way of checking is another check"
    )


def test_a_wrong_one_is_refused_every_time():
    checked = once(Draft202012Validator.check_schema)
    for _ in range(2):
        with pytest.raises(SchemaError):
            checked({"type": "no such type"})
    checked({"type": "object"})
