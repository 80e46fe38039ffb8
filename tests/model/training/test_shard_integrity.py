"""A shard that has changed since it was written is found before anything is trained on it."""

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


def made_rows(name):
    return [
        Row(np.full(tiny.BLOCK + 1, len(name), np.uint32), np.array([0]), [bytes([i]) * 16], tiny.BLOCK + 1)
        for i in range(8)
    ]


def test_a_bit_that_flips_while_a_run_is_stopped_stops_the_next(data, tmp_path):
    values = tiny.settings(tmp_path / "work", data=data)
    assert tiny.engine(values, tiny.StopAt(3)) == 75
    flip(tmp_path / "a.arrow", 1500)
    with pytest.raises(DataError, match=r"1 of 3 data files have changed .*a\.arrow"):
        tiny.engine(values)
    flip(tmp_path / "a.arrow", 1500)
    assert tiny.engine(values) == 0
