"""Each source's own file format: records under the field names of the original data set.

Broken JSON is a line cut in the middle; a null field is the one without which the record says nothing.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any

from tasks.settings.config import World
from tasks.world import code, voice
from tasks.world.document import Doc

Record = dict[str, Any]


def emit(world: World, source: str, docs: list[Doc]) -> dict[str, bytes]:
    """Path on the hub -> content."""
    if source == "starcoder":
        return _starcoder(docs)
    make = _RECORDS[source]
    records = [(make(world, k, doc), doc) for k, doc in enumerate(docs)]
    if source == "wikipedia_cn":
        array = [record for record, _ in records]
        return {"wikipedia-cn-20230720-filtered.json": _dump(array)}
    if source == "zhihu":
        return {"data/train-00000-of-00001.parquet": parquet([record for record, _ in records])}
    return {_LINES[source]: _lines(records)}


def _dump(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


def _lines(records: Iterable[tuple[Record, Doc]]) -> bytes:
    out = []
    for record, doc in records:
        line = json.dumps(record, ensure_ascii=False)
        out.append(line[: len(line) * 2 // 3] if "broken_json" in doc.dirt else line)
    return ("\n".join(out) + "\n").encode()


def parquet(records: list[Record]) -> bytes:
    """One row group, no compression-level or time-dependent metadata: the same rows give the same bytes."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records), sink, compression="snappy")
    return sink.getvalue()


def _null(doc: Doc) -> bool:
    return "null_fields" in doc.dirt


def _body(doc: Doc) -> str:
    return "\n".join(part for part in doc.parts if part)


def _skypile(world: World, k: int, doc: Doc) -> Record:
    return {"text": None if _null(doc) else _body(doc)}


def _wanjuan(world: World, k: int, doc: Doc) -> Record:
    return {"id": _hex(world, "wanjuan", k, 20), "content": None if _null(doc) else _body(doc)}


def _wikipedia(world: World, k: int, doc: Doc) -> Record:
    return {"completion": None if _null(doc) else doc.text, "source": "wikipedia.zh2307"}


def _baike(world: World, k: int, doc: Doc) -> Record:
    titles = ("概述", "基本内容", "相关知识", "补充", "其他", "参考", "附录")
    url = f"http://baike.example.com/view/{k:05d}.htm"
    if _null(doc):
        return {"title": doc.title, "summary": None, "sections": [], "tags": [], "url": url}
    summary, *rest = doc.parts
    if "null_summary" in doc.dirt:
        summary, rest = None, list(doc.parts)
    sections = [
        {"title": titles[n % len(titles)], "content": "\n".join(rest[n * 2 : n * 2 + 2])}
        for n in range(-(-len(rest) // 2))
    ]
    tags = ["常识", "百科"] if doc.language == "zh" else ["常识", "英语"]
    return {"title": doc.title, "summary": summary, "sections": sections, "tags": tags, "url": url}


def _baidu_qa(world: World, k: int, doc: Doc) -> Record:
    description, answer = (doc.parts[0], "\n".join(doc.parts[1:])) if doc.parts else ("", "")
    return {
        "qid": f"qid_{5_000_000_000_000 + world.seed * 100_000 + k}",
        "category": "教育/科学-学习帮助" if doc.language == "zh" else "教育/科学-外语学习",
        "title": doc.title,
        "desc": description,
        "answer": None if _null(doc) else answer,
    }


def _zhihu(world: World, k: int, doc: Doc) -> Record:
    random = voice.rng(world, "zhihu-votes", k)
    votes = str(random.randrange(120, 9999)) if k % 3 else f"{random.randrange(10, 99) / 10} 万"
    if "low_votes" in doc.dirt:
        votes = str(random.randrange(1, 80))
    metadata = {
        "question_id": float(300_000_000 + k),
        "answer_id": float(900_000_000 + k),
        "url": f"https://www.zhihu.com/question/{300_000_000 + k}/answer/{900_000_000 + k}",
        "upvotes": f"赞同 {votes}",
        "answer_creation_time": f"2021-0{1 + k % 9}-1{k % 10}T08:00:00.000Z",
    }
    return {
        "INSTRUCTION": doc.title,
        "RESPONSE": None if _null(doc) else _body(doc),
        "SOURCE": "Zhihu",
        "METADATA": json.dumps(metadata, ensure_ascii=False),
    }


def _belle_2m(world: World, k: int, doc: Doc) -> Record:
    (question, answer), *_ = doc.turns
    # some instructions keep their list in `input`, as in the original
    instruction, _, rest = question.partition("\n")
    return {"instruction": instruction, "input": rest, "output": None if _null(doc) else answer}


def _belle_3_5m(world: World, k: int, doc: Doc) -> Record:
    turns = []
    for question, answer in doc.turns:
        turns += [{"from": "human", "value": question}, {"from": "assistant", "value": answer}]
    return {"conversations": None if _null(doc) else turns, "id": str(66_000_000 + k)}


def _moss(world: World, k: int, doc: Doc) -> Record:
    turns = [{"human": question, "assistant": answer} for question, answer in doc.turns]
    category = "Brainstorming" if doc.language == "zh" else "Open QA"
    return {"conversation_id": k + 1, "category": category, "conversation": None if _null(doc) else turns}


def _firefly(world: World, k: int, doc: Doc) -> Record:
    (question, answer), *more = doc.turns
    return {"kind": doc.kind or "OpenQA", "input": question, "target": None if _null(doc) else answer}


def _starcoder(docs: list[Doc]) -> dict[str, bytes]:
    files = {}
    for language in code.LANGUAGES:
        rows = [
            {
                "max_stars_repo_path": doc.title,
                "max_stars_repo_name": f"lessons/{language}-basics",
                "max_stars_count": (k * 7) % 50,
                "id": str(k),
                "content": None if _null(doc) else code.content(doc),
            }
            for k, doc in enumerate(d for d in docs if d.kind == language)
        ]
        files[f"{language}/train-00000-of-00001.parquet"] = parquet(rows)
    return files


def _hex(world: World, name: str, k: int, length: int) -> str:
    return f"{voice.rng(world, name, 'id', k).getrandbits(4 * length):0{length}x}"


_RECORDS: dict[str, Callable[[World, int, Doc], Record]] = {
    "skypile": _skypile,
    "wanjuan": _wanjuan,
    "wikipedia_cn": _wikipedia,
    "baidu_baike": _baike,
    "baidu_qa": _baidu_qa,
    "zhihu": _zhihu,
    "belle_2m": _belle_2m,
    "belle_3_5m": _belle_3_5m,
    "moss": _moss,
    "firefly": _firefly,
}
_LINES = {
    "skypile": "2021-31_zh_head_0000.jsonl",
    "wanjuan": "part-010205-demo.jsonl",
    "baidu_baike": "563w_baidubaike.json",
    "baidu_qa": "baike_qa_train.json",
    "belle_2m": "train_2M_CN.json",
    "belle_3_5m": "train_3.5M_CN.json",
    "moss": "moss-003-sft-data.jsonl",
    "firefly": "firefly-train-1.1M.jsonl",
}
"""Sources of JSON lines, whatever their files are called."""
