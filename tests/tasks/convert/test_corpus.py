"""The corpus of malformed inputs: every case ends as its table says, and nothing goes missing."""

from __future__ import annotations

from collections import Counter

import pytest

from tasks.convert.job import convert_pieces
from tasks.convert.jobs import Piece
from tests.support.convert import convert, convert_settings, lines
from tests.support.corpus import MAX_CHARS, cases

CASES = cases()


def test_the_corpus_is_large_and_its_names_are_unique():
    assert len(CASES) >= 200
    assert max(Counter(case.name for case in CASES).values()) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_case(tmp_path, case):
    for name, body in case.files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(body)
    (tmp_path / "out").mkdir()
    pieces = [Piece(name, "") for name in sorted(case.files)]
    chosen = convert_settings(case.reader, case.options, max_chars=MAX_CHARS)
    tally = convert_pieces(tmp_path / "out", str(tmp_path), pieces, "src", chosen)
    quarantine, dropped = lines(tmp_path / "out/quarantine.jsonl"), lines(tmp_path / "out/dropped.jsonl")
    kept = [record for part in tally["parts"] for record in lines(tmp_path / "out" / part["file"])]
    assert tally["records_in"] == len(kept) + len(dropped) + sum(q.get("records", 1) for q in quarantine)
    reasons = [(line["position"], line["reason"]) for line in quarantine]
    if case.kept >= 0:
        assert reasons == case.reasons
        assert len(kept) + len(dropped) == case.kept
    else:  # damage somewhere in the file: how much is left depends on where a block ends
        assert kept
        assert set(case.reasons) <= set(reasons)
    for line in quarantine:
        assert line["file"] == min(case.files)
        assert len(line["excerpt"]) <= 200
        assert "detail" not in line or len(line["detail"]) <= 200


@pytest.mark.parametrize("reader", sorted({case.reader for case in CASES}))
def test_all_cases_of_a_reader_as_one_source(tmp_path, reader):
    """The whole stage over the whole corpus: it goes on to the end, and the sums agree (in the helper)."""
    mine = [case for case in CASES if case.reader == reader and not case.options]
    files = {
        f"{number:03d}/{name}": body for number, case in enumerate(mine) for name, body in case.files.items()
    }
    done = convert(tmp_path, reader, files, max_chars=MAX_CHARS)
    expected = Counter(reason for case in mine if case.kept >= 0 for _, reason in case.reasons)
    found = Counter(line["reason"] for line in done.quarantine)
    assert not expected - found
    assert done.account["kept"] > 0
