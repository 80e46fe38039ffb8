"""Every reader, every field, every wrong value: quarantined or kept, never a crash, never a lost record."""

from __future__ import annotations

import copy
import gzip
import io
import random
from contextlib import suppress

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.convert import readers
from tasks.convert.job import convert_file
from tasks.convert.verdicts import Malformed, Unwanted
from tests.support.convert import convert
from tests.support.corpus import tar_gz, zstd

TURN = {"Human": "<|Human|>: q<eoh>\n", "MOSS": "<|MOSS|>: a<eom>\n"}
SAMPLES = {
    "skypile": [{"text": "t"}],
    "wanjuan": [
        {"id": "1", "content": "t"},
        {"q_main": "q", "option_a": "a", "std_ans": "A", "answer_detail": "d", "grade": "g"},
    ],
    "wikipedia_cn": [{"completion": "t", "source": "s"}],
    "baidu_baike": [
        {"title": "t", "summary": "s", "sections": [{"title": "a", "content": "b"}], "tags": [], "url": "u"}
    ],
    "baidu_qa": [{"qid": "1", "category": "c", "title": "t", "desc": "d", "answer": "a"}],
    "zhihu": [{"INSTRUCTION": "q", "RESPONSE": "a", "SOURCE": "Zhihu", "METADATA": '{"upvotes": "赞同 3"}'}],
    "belle_2m": [{"instruction": "q", "input": "i", "output": "a"}],
    "belle_3_5m": [
        {"id": "1", "conversations": [{"from": "human", "value": "q"}, {"from": "assistant", "value": "a"}]}
    ],
    "moss": [
        {"conversation_id": 1, "category": "c", "conversation": [{"human": "q", "assistant": "a"}]},
        {"conversation_id": "1", "chat": {"turn_1": TURN}},
    ],
    "firefly": [{"kind": "k", "input": "q", "target": "a"}],
    "starcoder": [
        {"max_stars_repo_path": "p", "max_stars_repo_name": "n", "max_stars_count": 1, "content": "x = 1"}
    ],
    "alpaca": [{"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q0", "a0"]]}],
    "sharegpt": [
        {"system": "s", "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]},
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
    ],
    "ruozhiba": [{"instruction": "q", "output": "a"}],
    "self_cognition": [{"instruction": "q", "input": "", "output": "I am {{name}}"}],
    "mc_en": [
        {"instruction": "q? Answer1: a Answer2: b Answer format: x", "output": "o", "answer": "answer1"}
    ],
    "dpo_sharegpt": [
        {
            "conversations": [{"from": "human", "value": "q"}],
            "chosen": {"from": "gpt", "value": "a"},
            "rejected": {"from": "gpt", "value": "b"},
        }
    ],
    "infinity_instruct": [
        {
            "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}],
            "langdetect": "zh-cn",
            "source": "s",
        }
    ],
    "webinstruct": [{"question": "q", "answer": "a", "source": "s"}],
    "wanjuan_exam": [
        {"q_main": "q", "q_type": "t", "option_a": "a", "std_ans": "A", "answer_detail": "d", "grade": "g"}
    ],
    "arc": [
        {"id": "1", "question": "q", "choices": {"text": ["a", "b"], "label": ["A", "B"]}, "answerKey": "B"},
        {
            "question": {"stem": "q", "choices": [{"text": "a", "label": "1"}, {"text": "b", "label": "2"}]},
            "answerKey": "2",
        },
    ],
    "logiqa": [{"id": 1, "text": "t", "question": "q", "options": ["a", "b"], "answer": 0}],
    "ultrafeedback_zh": [
        {"instruction": "q", "chosen_response": "a", "rejected_response": "b", "chosen_rating": 4.0}
    ],
    "ultrafeedback_binarized": [
        {
            "chosen": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}],
            "rejected": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "b"}],
            "score_chosen": 4.0,
        }
    ],
}
SAMPLES["text"] = SAMPLES["skypile"]
SAMPLES["messages"] = [
    *SAMPLES["sharegpt"],
    {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "q"}]},
            {"role": "assistant", "content": "a", "weight": 0},
            {"role": "assistant", "content": "b", "loss": True},
        ]
    },
]
SAMPLES["pairs"] = [
    {"prompt": "q", "chosen": "a", "rejected": "b"},
    {"prompt": [{"role": "user", "content": "q"}], **SAMPLES["ultrafeedback_binarized"][0]},
    {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
]
SAMPLES["choices"] = [
    {"question": "q", "A": "a", "B": "b", "answer": "B"},
    {"question": "q", "A": "1", "B": "2", "C": "3", "answer": 1},
]
MISSING = object()
WRONG = [
    None, 0, 12, -1.5, 10**18, True, False, "", " ", "\u3000\n", "x", "x" * 3000, "\x00", [], ["x"], [None], [[]],
    [1, "x"], {}, {"x": 1}, {"x": None}, [{}], [{"from": "human"}], {"turn_2": {}}, MISSING,
]  # fmt: skip


def places(value, path=()):
    """Paths of every field and element below a value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, below in items:
        yield (*path, key)
        yield from places(below, (*path, key))


def spoiled(sample):
    """The sample with each field replaced by each wrong value in turn."""
    for path in places(sample):
        for wrong in WRONG:
            item = copy.deepcopy(sample)
            *way, last = path
            at = item
            for key in way:
                at = at[key]
            if wrong is MISSING:
                del at[last]
            else:
                at[last] = wrong
            yield item


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_wrong_values(tmp_path, name):
    bad = [item for sample in SAMPLES[name] for item in spoiled(sample)]
    reader = readers.load(name)
    if reader.suffixes == (".parquet",):
        kept = quarantined = 0
        for item in bad:  # by hand: a parquet column has one type
            found = orjson.loads(orjson.dumps(item))
            try:
                reader.convert(found, reader.options(), "python/x.parquet")
                kept += 1
            except Malformed:
                quarantined += 1
            except Unwanted:
                kept += 1
        assert kept + quarantined == len(bad)
        return
    body = b"".join(orjson.dumps(item) + b"\n" for item in bad)
    done = convert(tmp_path, name, {"a.jsonl": body})
    assert done.account["records_in"] == len(bad)
    assert done.account["kept"] > 0
    assert done.account["quarantined"]
    for record in done.records:
        texts = [record.get("text"), record.get("chosen"), record.get("rejected")]
        texts += [m["content"] for m in record.get("messages", [])]
        assert all(isinstance(t, str) and t.strip() for t in texts if t is not None)


def test_the_samples_cover_every_reader():
    assert set(SAMPLES) == {name for name in readers.names() if readers.load(name).makes != "benchmark"}


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_a_reader_makes_what_it_says(name):
    reader = readers.load(name)
    drafts = []
    for sample in SAMPLES[name]:
        with suppress(Unwanted):
            drafts.append(
                reader.convert(orjson.loads(orjson.dumps(sample)), reader.options(), "python/x.parquet")
            )
    says = {"pretrain": {"text", "code"}, "sft": {"dialogue"}, "preference": {"preference"}}[reader.makes]
    assert {draft["kind"] for draft in drafts} <= says
    assert drafts


@pytest.mark.parametrize("name", ["skypile", "wikipedia_cn", "ceval", "mmlu", "zhihu"])
def test_damaged_bytes(tmp_path, name):
    """Random bytes overwritten, inserted and cut: the counts still add up (helpers.convert checks)."""
    rng = random.Random(name)
    for _ in range(25):
        body = bytearray(_file(name))
        for _ in range(rng.randrange(1, 20)):
            at = rng.randrange(len(body))
            kind = rng.randrange(3)
            if kind == 0:
                body[at] = rng.randrange(256)
            elif kind == 1:
                body[at:at] = rng.choice(
                    [b'"', b"{", b"]", b"\n", b"\r", b"\x00", b"\xff", b",", b"\\", b"PAR1"]
                )
            else:
                del body[at : at + rng.randrange(40)]
        suffix = {"ceval": "val/law_val.csv", "mmlu": "val/law_val.csv", "zhihu": "a.parquet"}.get(
            name, "a.jsonl"
        )
        good = suffix.replace("law", "logic").replace("a.", "b.")
        convert(tmp_path, name, {suffix: bytes(body), good: _file(name)})


PACKED = {"a.jsonl.gz": gzip.compress, "a.jsonl.zst": zstd, "a.tar.gz": lambda body: tar_gz(a=body)}


@pytest.mark.parametrize("name", PACKED)
def test_damaged_compressed_bytes(tmp_path, name):
    """Bytes changed, cut and inserted in compressed files: whatever comes, the job's sums agree."""
    rng = random.Random(5)
    lines = b"".join(b'{"text": "%d %s"}\n' % (i, rng.randbytes(40).hex().encode()) for i in range(400))
    whole, path = PACKED[name](lines), tmp_path / name
    for round_ in range(40):
        body = bytearray(whole)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(body))
            body[at : at + rng.randrange(3)] = rng.randbytes(rng.randrange(3))
        path.write_bytes(bytes(body[: rng.randrange(len(body))] if round_ % 4 == 0 else body))
        out = tmp_path / f"{round_}"
        out.mkdir()
        tally = convert_file(path, out, "skypile")
        assert tally["kept"] <= 400
        assert tally["records_in"] == tally["kept"] + sum(tally["quarantined"].values())
        assert tally["kept"] == 400 or tally["quarantined"]


def _file(name):
    if name == "zhihu":
        rows = [{"INSTRUCTION": f"q{i}", "RESPONSE": "a" * 50, "METADATA": "{}"} for i in range(50)]
        sink = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(rows), sink, row_group_size=10)
        return sink.getvalue()
    if name in ("ceval", "mmlu"):
        head = "id,question,A,B,C,D,answer\n" if name == "ceval" else ""
        number = "{i}," if name == "ceval" else ""
        return (
            head
            + "".join(f'{number}"问题 ""{i}""",甲,乙,丙,丁,A\n'.replace("{i}", str(i)) for i in range(30))
        ).encode()
    field = "text" if name == "skypile" else "completion"
    lines = [orjson.dumps({field: f'第{i}条 \\ " 文'}) for i in range(30)]
    return b"\n".join(lines) if name == "skypile" else b"[" + b", ".join(lines) + b"]"
