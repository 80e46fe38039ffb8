"""What tests/e2e takes for an error in a server's log."""

from __future__ import annotations

import pytest

from tests.support.server_logs import errors

TRACE = "Traceback (most recent call last):\n  File x\n"
CHANNEL = "00:45:21.619 | ERROR   | prefect.server - Worker channel heartbeat persistence failed: a\n" + TRACE

STATE = "00:45:21.619 | ERROR   | prefect.server - Encountered error during state validation\n" + TRACE


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("", 0),
        ("a banner\nCheck out http://127.0.0.1\n", 0),
        ("INFO:     Started server process [1]\n2026/11/29 00:44:37 INFO mlflow.store: no ERRORS\n", 0),
        ("00:35:23.869 | WARNING | prefect - an error-free warning\n", 0),
        (f"00:35:23.869 | ERROR   | docket - it fails\n{TRACE}InvalidRequestError: state\n", 1),
        (f"2026/11/29 00:44:37 ERROR mlflow.server: it fails\n{TRACE}ValueError: x\n", 1),
        (f"ERROR:    Exception in ASGI application\n{TRACE}KeyError: x\n", 1),
        (f"{TRACE}SyntaxError: x\n", 1),
        ("00:35:23.869 | CRITICAL | prefect - a\n00:35:24.869 | ERROR   | prefect - b\n", 2),
        (f"{CHANNEL}OperationalError: database is locked\n", 0),
        (f"{CHANNEL}OperationalError: no such table\n", 1),
        (f"{STATE}database is locked\n[parameters: {{'name': 'Late'}}]\n", 0),
        (f"{STATE}database is locked\n[parameters: {{'name': 'Running'}}]\n", 0),
        (f"{STATE}disk is full\n[parameters: {{'name': 'Late'}}]\n", 1),
        (f"00:45:21.619 | ERROR   | prefect - another one\n{TRACE}database is locked\n", 1),
    ],
)
@pytest.mark.parametrize("name", ["mlflow.log", "mlflow.previous.log"])
def test_errors_are_seen_and_counted(tmp_path, name, text, count):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "mlflow.log").write_text("")
    (tmp_path / "logs" / name).write_text(text)
    assert len(errors(tmp_path, ("mlflow",))) == count


def test_a_missing_log_is_not_taken_for_a_clean_one(tmp_path):
    with pytest.raises(FileNotFoundError):
        errors(tmp_path, ("prefect",))
