"""Documents of a step and steps of a document, against what the engine really read."""

import json
from collections import Counter

import pytest

from model.training import provenance
from model.training.loader import DataError
from model.training.shards import ShardFile, file_digest
from tests.support import engine_helpers as tiny
from tests.support.recording_engine import _digest, consumed, recording


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A parent of 5 steps on two shards, and its continuation to step 14 on three, with a larger batch."""
    folder = tmp_path_factory.mktemp("trained")
    files = []
    for n, rows in enumerate((13, 9, 11)):
        path = folder / f"train-{n:05d}.arrow"
        tiny.shard(path, rows, seed=n)
        files.append(
            {
                "path": str(path),
                "source": "abc"[n],
                "rows": rows,
                "repeats": 1 + n % 2,
                "digest": file_digest(path),
            }
        )
    parent = tiny.settings(folder / "parent", data={"files": files[:2]}, steps=5, keep_final=True)
    more = {"continue_from": str(folder / "parent/checkpoints/step-000005"), "batch_size": 6}
    child = tiny.settings(folder / "child", data={"files": files}, steps=14, **more)
    for name, values in (("parent", parent), ("child", child)):
        (folder / name).mkdir()
        (folder / name / "CONFIG.json").write_text(json.dumps({"seed": 1234, **values}))
        with recording(folder / name):
            assert tiny.engine(values) == 0
    return folder, files


def documents(files, digests):
    """What rows, known by the digest of their tokens, hold: (id, source, file, row, tokens)."""
    rows = {}
    for file in files:
        shard = ShardFile(file["path"])
        for number in range(shard.rows):
            row = shard.read(number)
            ends = [*row.doc_starts[1:], row.valid]
            rows[_digest(row.input_ids)] = [
                (i.hex(), file["source"], shard.path.name, number, int(e - s))
                for i, s, e in zip(row.doc_ids, row.doc_starts, ends, strict=True)
            ]
    return [document for digest in digests for document in rows[digest]]


def test_the_documents_of_every_step_are_those_that_were_read(trained):
    folder, files = trained
    read = consumed(folder / "parent") | consumed(folder / "child")
    for name, steps in (("parent", range(5)), ("child", range(14))):
        known = provenance.Provenance(folder / name)
        assert known.trained == len(steps)
        for step in steps:
            found = [(p.id, p.source, p.file, p.row, p.tokens) for p in known.documents(step + 1)]
            assert found == documents(files, read[step])


def test_every_sighting_of_every_document(trained):
    folder, files = trained
    read = consumed(folder / "parent") | consumed(folder / "child")
    expected: dict[tuple, Counter] = {}
    for step, digests in read.items():
        for record, source, file, row, _ in documents(files, digests):
            expected.setdefault((record, source, file, row), Counter())[step + 1] += 1
    known = provenance.Provenance(folder / "child")
    everything = {(d[0], d[1]) for d in documents(files, {r for rows in read.values() for r in rows})}
    for record, source in everything:
        for one in known.sightings(record, source):
            due = expected.get((one.id, one.source, one.file, one.row), Counter())
            assert Counter(step for _, step in one.seen) == due
    assert sum(map(len, expected.values()))


def test_told_in_words(trained, capsys):
    folder, _ = trained
    assert provenance.main([str(folder / "child"), "--step", "6"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].endswith("documents or parts of them in 6 rows")
    assert provenance.main([str(folder / "child"), "--step", "15"]) == 0
    assert "yet to come (14 are trained)" in capsys.readouterr().out
    record = lines[2].split()[0]
    assert provenance.main([str(folder / "child"), "--id", record[:31]]) == 0
    assert "step 6 (epoch " in capsys.readouterr().out
    assert provenance.main([str(folder / "child"), "--id", "f" * 32]) == 0
    assert "in none of the shards" in capsys.readouterr().out
    assert provenance.main([str(folder), "--step", "1"]) == 2
    assert "no CONFIG.json" in capsys.readouterr().err
    with pytest.raises(DataError, match="8 to 32 hex digits"):
        list(provenance.Provenance(folder / "child").sightings("xyz"))
