"""A shard that has changed since it was written is found before anything is trained on it."""

from dataclasses import replace

import numpy as np
import pytest

from model.training.loader import DataError
from model.training.shards import Row, file_digest, write_shard
from tests.support import engine_helpers as tiny


@pytest.fixture
def data(tmp_path):
    files = [tiny.shard(tmp_path / f"{name}.arrow", 12, seed=i) for i, name in enumerate("abv")]
    known = [{**file, "digest": file_digest(file["path"])} for file in files]
    return {"files": known[:2], "val_files": known[2:]}


def flip(path, place):
    with open(path, "r+b") as file:
        file.seek(place, 2 if place < 0 else 0)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 4]))


@pytest.mark.parametrize(("file", "place"), [("a", 3), ("b", 1500), ("b", -40), ("b", -1), ("v", 1200)])
def test_a_flipped_bit_stops_a_run_before_its_first_step(data, tmp_path, file, place):
    flip(tmp_path / f"{file}.arrow", place)
    with pytest.raises(DataError, match=rf"1 of 3 data files have changed .*{file}\.arrow"):
        tiny.engine(tiny.settings(tmp_path / "work", data=data))
    assert not list((tmp_path / "work").glob("checkpoints/*"))
    assert not list((tmp_path / "work").glob("metrics.jsonl"))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("place", ["files", "val_files"])
@pytest.mark.parametrize("others", ["two", ""])
def test_shards_of_two_tokenizers_stop_a_run_before_its_first_step(data, tmp_path, place, others, verify):
    for name, tokenizer in (("one", "one"), ("other", others)):
        path = tmp_path / f"{name}.arrow"
        write_shard(path, made_rows(name), tiny.BLOCK, {"tokenizer_digest": tokenizer} if tokenizer else None)
    one, other = ({"path": str(tmp_path / f"{n}.arrow"), "source": n} for n in ("one", "other"))
    both = {"files": [one], "val_files": [], "verify": verify}
    both[place] = [*both[place], other]
    with pytest.raises(DataError, match=r"other\.arrow was made with another tokenizer than .*one\.arrow"):
        tiny.engine(tiny.settings(tmp_path / "work", data=both))
    assert not list((tmp_path / "work").glob("metrics.jsonl"))


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("place", ["files", "val_files"])
def test_data_without_a_target_are_not_trained_on_silently(data, tmp_path, place, verify, caplog):
    tokens, mask = np.arange(tiny.BLOCK + 1, dtype=np.uint32), np.zeros(tiny.BLOCK + 1, np.uint8)
    rows = [Row(tokens, np.array([0]), [bytes([i]) * 16], tiny.BLOCK + 1, mask) for i in range(8)]
    write_shard(tmp_path / "m.arrow", rows, tiny.BLOCK, loss_mask=True)
    masked = {**data, "verify": verify, place: [{"path": str(tmp_path / "m.arrow")}]}
    values = tiny.settings(tmp_path / "work", data=masked, steps=2)
    if verify or place == "val_files":
        with pytest.raises(ValueError, match=f"data.{place} hold nothing to predict"):
            tiny.engine(values)
        assert not (tmp_path / "work/metrics.jsonl").exists(), "before the first step"
    else:
        assert tiny.engine(values) == 0
        assert "had anything to predict" in caplog.text


def test_a_shard_that_is_none_stops_a_run_with_its_reason(data, tmp_path):
    import pyarrow as pa

    table = pa.table({"text": ["a"]}).replace_schema_metadata({"steel_format": "1", "block_size": "24"})
    path = tmp_path / "foreign.arrow"
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    for verify in (True, False):
        values = tiny.settings(tmp_path / "work", data={"files": [{"path": str(path)}], "verify": verify})
        with pytest.raises(
            DataError, match=r"foreign\.arrow is no shard: it needs one column input_ids"
        ) as error:
            tiny.engine(values)
        assert "\n" not in str(error.value)


def made_rows(name, block=tiny.BLOCK, mask=None):
    return [
        Row(np.full(block + 1, len(name), np.uint32), np.array([0]), [bytes([i]) * 16], block + 1, mask)
        for i in range(8)
    ]


def wide(path):
    write_shard(path, made_rows("x", 2 * tiny.BLOCK), 2 * tiny.BLOCK)


def without_targets(path):
    write_shard(path, made_rows("x", mask=np.zeros(tiny.BLOCK + 1, np.uint8)), tiny.BLOCK, loss_mask=True)


ODD = {
    "wide": (wide, {}, rf"odd\.arrow has blocks of {2 * tiny.BLOCK}, not {tiny.BLOCK}"),
    "rows": (lambda path: write_shard(path, made_rows("x"), tiny.BLOCK), {"rows": 99}, "has 8 rows, not 99"),
    "sources": (
        lambda path: write_shard(path, made_rows("x"), tiny.BLOCK),
        {"sources": ["a", "b"]},
        "does not say which sources",
    ),
}


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("place", ["files", "val_files"])
@pytest.mark.parametrize("how", ODD)
def test_a_shard_that_does_not_fit_stops_a_run_before_its_first_step(tmp_path, how, place, told):
    make, more, words = ODD[how]
    good = tiny.shard(tmp_path / "good.arrow", 8) | ({"rows": 8} if told else {})
    make(tmp_path / "odd.arrow")
    odd = {"path": str(tmp_path / "odd.arrow"), **({"rows": 8} if told else {}), **more}
    data = {"files": [good], "val_files": [good], "verify": False}
    data[place] = [good, odd]
    with pytest.raises(DataError, match=words):
        tiny.engine(tiny.settings(tmp_path / "work", data=data))
    assert not list((tmp_path / "work").glob("metrics.jsonl"))


@pytest.mark.parametrize("make", [without_targets, lambda path: write_shard(path, [], tiny.BLOCK)])
def test_validation_files_without_a_target_are_refused_before_the_first_step(tmp_path, make):
    make(tmp_path / "empty.arrow")
    data = {
        "files": [tiny.shard(tmp_path / "good.arrow", 8)],
        "val_files": [{"path": str(tmp_path / "empty.arrow")}],
    }
    with pytest.raises(DataError, match=r"data\.val_files hold nothing to predict"):
        tiny.engine(tiny.settings(tmp_path / "work", data=data))
    assert not list((tmp_path / "work").glob("metrics.jsonl"))


def test_a_document_of_a_source_that_has_no_name_is_one_line(tmp_path):
    rows = [replace(row, doc_sources=np.array([3], np.uint8)) for row in made_rows("x")]
    write_shard(tmp_path / "a.arrow", rows, tiny.BLOCK, doc_sources=True)
    data = {"files": [{"path": str(tmp_path / "a.arrow"), "sources": ["one", "two"]}]}
    with pytest.raises(DataError, match=r"a\.arrow has a document of source 3; 2 are named"):
        tiny.engine(tiny.settings(tmp_path / "work", data=data))


def test_a_bit_that_flips_while_a_run_is_stopped_stops_the_next(data, tmp_path):
    values = tiny.settings(tmp_path / "work", data=data)
    assert tiny.engine(values, tiny.StopAt(3)) == 75
    flip(tmp_path / "a.arrow", 1500)
    with pytest.raises(DataError, match=r"1 of 3 data files have changed .*a\.arrow"):
        tiny.engine(values)
    flip(tmp_path / "a.arrow", 1500)
    assert tiny.engine(values) == 0
