"""The heads of the real data sets, record by record: nothing of their content is lost on the way.

STEEL_SAMPLES names a folder with sources/, posttrain/ and benchmarks/ as the profile `samples` has them.
"""

from __future__ import annotations

import os
from pathlib import Path

import orjson
import pyarrow.parquet as pq
import pytest

from tasks.convert.job import Reading, Settings
from tasks.convert.source import convert_source
from tasks.download.local import BELOW
from tasks.download.patterns import matching
from tasks.settings import profiles
from tests.support.convert import Converted

SAMPLES = Path(os.environ.get("STEEL_SAMPLES", "/nowhere"))
CONFIG = profiles.load("samples")
pytestmark = pytest.mark.skipif(
    "STEEL_SAMPLES" not in os.environ,
    reason="needs real samples: set STEEL_SAMPLES=FOLDER, or make test-full SAMPLES=FOLDER (sources/ posttrain/ benchmarks/)",
)

KEPT = {
    "skypile": 700, "wanjuan": 700, "wikipedia_cn": 175, "baidu_baike": 694, "baidu_qa": 700, "zhihu": 700,
    "belle_2m": 700, "belle_3_5m": 700, "firefly": 700, "starcoder": 1050, "moss": 620,
    "alpaca_zh": 992, "alpaca_en": 985, "ruozhiba": 1475, "self": 91, "english_mc": 8321,
    "dpo_zh": 289, "dpo_en": 294, "ceval": 79, "cmmlu": 467, "mmlu": 513,
}  # fmt: skip
QUARANTINED = {"baidu_baike": {"empty text": 5}}


def converted(tmp_path: Path, name: str, **changes) -> Converted:
    source = CONFIG.sources[name]
    raw = SAMPLES / (source.below or BELOW[source.use]) / source.dataset
    found = [p.relative_to(raw).as_posix() for p in raw.rglob("*") if p.is_file()]
    files = [path for path in found if matching(path, source.files)]
    (tmp_path / "out").mkdir()
    settings = Settings(source=Reading.of(source), **changes)
    return Converted(tmp_path / "out", convert_source(raw, tmp_path / "out", name, settings, files))


@pytest.mark.parametrize("name", sorted(CONFIG.sources))
def test_counts(tmp_path, name):
    done = converted(tmp_path, name)
    assert done.account["kept"] == KEPT[name]
    assert done.account["quarantined"] == QUARANTINED.get(name, {})
    assert set(done.account["dropped"]) <= {"duplicate-id"}


CONTENT = {
    "skypile": lambda item: [item["text"]],
    "wanjuan": lambda item: [item["content"]],
    "wikipedia_cn": lambda item: [item["completion"]],
    # a heading without content is no text: two of them here
    "baidu_baike": lambda item: [
        item["title"],
        item["summary"],
        *(text for section in item["sections"] for text in _filled(section)),
    ],
    "baidu_qa": lambda item: [item["title"], item["desc"].strip(), item["answer"]],
    "zhihu": lambda item: [item["INSTRUCTION"], item["RESPONSE"]],
    "belle_2m": lambda item: [item["instruction"], item["input"], item["output"]],
    "belle_3_5m": lambda item: [turn["value"] for turn in item["conversations"]],
    "firefly": lambda item: [item["input"], item["target"]],
}


def _filled(section: dict) -> list[str]:
    return [section["title"], section["content"]] if section["content"].strip() else []


@pytest.mark.parametrize("name", sorted(CONTENT))
def test_every_content_is_in_its_record(tmp_path, name):
    done = converted(tmp_path, name, max_chars=10_000_000)
    (path,) = [p for p in (SAMPLES / "sources" / name).iterdir() if p.is_file()]
    if path.suffix == ".parquet":
        items = pq.read_table(path).to_pylist()
    else:
        body = path.read_bytes().strip()
        items = orjson.loads(body if body.startswith(b"[") else b"[" + b",".join(body.split(b"\n")) + b"]")
    by_place = {int(record["meta"]["at"].rpartition(":")[2]): record for record in done.records}
    aside = {line["position"] for line in done.quarantine}
    aside |= {int(line["at"].rpartition(":")[2]) for line in done.dropped}
    assert len(by_place) + len(aside) == len(items)
    for position, item in enumerate(items, 1):
        if position in aside:
            continue
        record = by_place[position]
        text = record.get("text") or "\n".join(message["content"] for message in record["messages"])
        for part in CONTENT[name](item):
            assert not part or not part.strip() or part in text, position


def test_what_the_original_lost_is_here(tmp_path):
    zhihu = converted(tmp_path, "zhihu").records
    votes = [record["meta"]["votes"] for record in zhihu]
    assert sum(v >= 10_000 for v in votes) == 12
    assert sum(v >= 100 for v in votes) == 270
    (tmp_path / "baike").mkdir()
    baike = converted(tmp_path / "baike", "baidu_baike")
    assert baike.account["chars_out"] > 500_000  # with the 491 entries of 700 that have a null summary
