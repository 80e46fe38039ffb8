"""metrics.jsonl after a crash: what is torn is skipped and told, what is whole is read."""

import json

import pytest

from model.training import lines
from model.training.metrics import Metrics

WHOLE = [
    {"step": 1, "loss": 2.5},
    {"step": 2, "loss": 2.25, "val_loss_by_source": {"知乎": 1.0, "行\u2028分": 2.0, "\x85": 3.0}},
    {"step": 3, "loss": 2.0},
]
TORN = {
    "a key": b'{"step": 4, "lo',
    "a number": b'{"step": 4, "loss": 1.',
    "a character": '{"step": 4, "val_loss_by_source": {"知'.encode()[:-1],
    "all but its first byte": '{"step": 4, "x": {"知'.encode()[:-2],
    "NUL bytes": b"\0" * 4096,
    "NUL bytes after a start": b'{"step": 4' + b"\0" * 100,
    "no object": b"12",
    "no step": b'{"loss": 1.0}',
    "no number": b'{"step": "4"}',
    "nothing but brackets": b"[" * 100_000,
}


def encoded(entry):
    return json.dumps(entry, ensure_ascii=False).encode() + b"\n"


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
@pytest.mark.parametrize("place", range(4))
def test_a_torn_line_is_skipped_and_told(tmp_path, caplog, torn, place):
    path = tmp_path / "metrics.jsonl"
    written = [encoded(entry) for entry in WHOLE]
    written.insert(place, torn if place == 3 else torn + b"\n")
    path.write_bytes(b"".join(written))
    assert list(lines.read(path)) == WHOLE
    assert "skipped 1 line(s)" in caplog.text


def test_a_hole_of_nul_bytes_hides_no_whole_line(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(encoded(WHOLE[0]) + b"\0" * 512 + encoded(WHOLE[1]) + b"\n\n" + encoded(WHOLE[2]))
    assert list(lines.read(path)) == WHOLE


def test_no_file_and_an_empty_one_hold_nothing(tmp_path, caplog):
    assert list(lines.read(tmp_path / "metrics.jsonl")) == []
    (tmp_path / "metrics.jsonl").touch()
    assert list(lines.read(tmp_path / "metrics.jsonl")) == []
    assert not caplog.text


@pytest.mark.parametrize("torn", TORN.values(), ids=TORN)
def test_a_resume_keeps_the_bytes_up_to_its_step(tmp_path, torn):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(encoded(entry) for entry in WHOLE) + torn)
    metrics = Metrics(path, active=True, step=2)
    metrics.write({"step": 3, "loss": 1.75})
    metrics.close()
    assert path.read_bytes() == b"".join(map(encoded, [*WHOLE[:2], {"step": 3, "loss": 1.75}]))
