"""`make prompts`: what a model is asked, to the last character."""

import pytest

from tasks.evaluate import protocols
from tasks.inspect.prompts import lines
from tasks.settings.config import SteelRun
from tasks.settings.errors import NodeError

HEAD = "id,question,A,B,C,D,answer\n"


@pytest.fixture
def run(tmp_path):
    exam = tmp_path / "benchmarks" / "exam"
    (exam / "dev").mkdir(parents=True)
    (exam / "val").mkdir()
    rows = "".join(f"{k},例{k},甲,乙,丙,丁,B\n" for k in range(5))
    (exam / "dev" / "law_dev.csv").write_text(HEAD + rows, "utf-8")
    (exam / "val" / "law_val.csv").write_text(HEAD + "0,问____。,甲,乙,丙,丁,A\n", "utf-8")
    (tmp_path / "benchmarks" / "sums").mkdir()
    (tmp_path / "benchmarks" / "sums" / "test.jsonl").write_text('{"question": "2+3?", "answer": "5"}\n')
    sources = {
        "exam": {"dataset": "exam", "reader": "ceval", "use": "benchmark"},
        "sums": {"dataset": "sums", "reader": "arithmetic", "use": "benchmark", "language": "en"},
    }
    return SteelRun.model_validate(
        {
            "profile": "test",
            "sources": sources,
            "evaluate": {"benchmarks": ["exam", "sums"], "protocols": ["cloze", "open-exact"]},
            "runtime": {
                "folders": {"benchmarks": str(tmp_path / "benchmarks")},
                "artifacts": str(tmp_path / "artifacts"),
            },
        }
    )


def test_every_protocol_is_shown_with_its_digest(run):
    text = "\n".join(lines(run, list(protocols.PROTOCOLS)))
    for name, protocol in protocols.PROTOCOLS.items():
        assert f"=== {name}, version {protocol.version}, sha256 {protocol.digest}" in text
    assert (
        "--- exam, law, zh, plain form\n问题：问____。\n答案：⟂\nscored behind ⟂: '甲', '乙', '丙', '丁'"
        in text
    )
    assert (
        "以下是一道单选题:\n问( )\n\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n请给出答案。\n<|im_end|>\n<|im_start|>assistant\n⟂"
        in text
    )
    shots = "".join(f"例{k}\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：B\n\n" for k in range(5))
    head = "以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\n"
    assert (
        f"{head}{shots}问____。\nA. 甲\nB. 乙\nC. 丙\nD. 丁\n答案：⟂\nscored behind ⟂: 'A', 'B', 'C', 'D'"
        in text
    )
    assert "--- sums, arithmetic, en, chat form" in text
    assert "Question: 2+3?\nAnswer:⟂\nthen a reply of at most 64 tokens" in text


def test_one_protocol_and_one_benchmark(run):
    text = "\n".join(lines(run, ["open-exact"], "sums"))
    assert text.count("===") == 1
    assert "exam" not in text


@pytest.mark.parametrize(
    ("names", "benchmark", "reason"),
    [
        (["guess"], "", "there is no protocol guess; there are: cloze, "),
        (["cloze"], "other", "there is no benchmark 'other' in test; there are: exam, sums"),
    ],
)
def test_unknown_names(run, names, benchmark, reason):
    with pytest.raises(NodeError, match=reason):
        list(lines(run, names, benchmark))
