"""Run a reader over files made on the spot."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import orjson

from tasks.convert.job import Reading, Settings
from tasks.convert.source import at_once, convert_source
from tasks.records import parts
from tasks.settings.config import Runtime
from tasks.stage.node import Context


def convert_settings(
    reader: str, options: dict[str, Any] | None = None, language: str = "zh", **changes: Any
) -> Settings:
    """Those of a node, for short records of which any number may be unreadable."""
    source = Reading(reader=reader, language=language, options=options or {})
    return Settings(source=source, **{"max_chars": 2000, "max_quarantined_share": 1.0, **changes})


class Converted:
    """What convert_source left behind."""

    def __init__(self, out: Path, account: dict[str, Any]):
        self.account = account
        questions = out / "questions.jsonl"
        self.records = lines(questions) if questions.exists() else []
        for part in [] if questions.exists() else parts.parts(out):
            self.records += lines(part)
        self.quarantine = lines(out / "quarantine.jsonl")
        self.dropped = lines(out / "dropped.jsonl")

    @property
    def reasons(self) -> list[tuple[int, str]]:
        return [(q["position"], q["reason"]) for q in self.quarantine]


def lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []


def jsonl(*values: Any) -> bytes:
    """JSON lines; bytes among the values are put in as they are."""
    return b"".join((v if isinstance(v, bytes) else json.dumps(v).encode()) + b"\n" for v in values)


def convert(
    tmp_path: Path,
    reader: str,
    files: dict[str, bytes],
    options: dict | None = None,
    language="zh",
    **changes,
) -> Converted:
    """Write the raw files, convert them, and check that the counts add up."""
    raw, out = tmp_path / "raw", tmp_path / "out"
    for name, body in files.items():
        (raw / name).parent.mkdir(parents=True, exist_ok=True)
        (raw / name).write_bytes(body)
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    account = convert_source(
        str(raw), str(out), "src", convert_settings(reader, options, language, **changes)
    )
    done = Converted(out, account)
    quarantined, dropped = sum(account["quarantined"].values()), sum(account["dropped"].values())
    assert account["records_in"] == account["kept"] + quarantined + dropped
    assert len(done.records) == account["kept"]
    assert sum(q.get("records", 1) for q in done.quarantine) == quarantined
    assert len(done.dropped) == dropped
    assert len({record["id"] for record in done.records}) == len(done.records)
    assert json.loads((out / "accounting.json").read_text("utf-8")) == account
    return done


def one(tmp_path: Path, reader: str, *values: Any, file: str = "part.jsonl", **kwargs: Any) -> dict[str, Any]:
    """The single record that comes of these values."""
    done = convert(tmp_path, reader, {file: jsonl(*values)}, **kwargs)
    assert len(done.records) == 1, done.quarantine
    return done.records[0]


def in_node(tmp_path: Path, number: int, submit=at_once, **changes) -> tuple[dict, Path]:
    """Convert tmp_path/raw as the node does, in a work folder of its own below one store."""
    out = tmp_path / f"convert/s-{number}.partial"
    out.mkdir(parents=True)
    ctx = Context("convert:s", out, {}, {}, Runtime(), 0, logging.getLogger("test"), None)
    settings = convert_settings("skypile", **{"job_bytes": 300, **changes})
    return convert_source(tmp_path / "raw", out, "s", settings, place=ctx, submit=submit), out
