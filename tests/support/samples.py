"""Records and texts for the clean tests."""

from __future__ import annotations

import hashlib
import json
import random
from pathlib import Path

SUBJECTS = [
    "小学生",
    "老师",
    "医生",
    "农民",
    "科学家",
    "工人",
    "邻居",
    "孩子",
    "朋友",
    "司机",
    "画家",
    "厨师",
    "船长",
    "演员",
]
ACTIONS = [
    "在院子里种了三棵苹果树",
    "每天早上沿着河边跑步",
    "把书架上的旧书送给了图书馆",
    "常常给远方的家人写信",
    "喜欢在雨后去山上采蘑菇",
    "用木头做了一张很结实的桌子",
    "晚上会给大家讲海上的故事",
    "终于学会了骑自行车",
]
ENDINGS = [
    "大家都觉得这是一件好事。",
    "后来人们常常说起这件事。",
    "这让他感到非常高兴。",
    "邻居们也跟着一起做了。",
    "春天来的时候一切都变了样。",
    "他说以后还会这样做的。",
]


def real_text(seed: int) -> str:
    """A few plain Chinese sentences."""
    rng = random.Random(seed)
    return "".join(
        f"{rng.choice(SUBJECTS)}{rng.choice(ACTIONS)}，{rng.choice(ENDINGS)}"
        for _ in range(rng.randint(2, 5))
    )


def shuffled(text: str, seed: int) -> str:
    characters = list(text)
    random.Random(seed).shuffle(characters)
    return "".join(characters)


def record(text: str, kind: str = "text", source: str = "test", **more) -> dict:
    digest = hashlib.blake2b(f"{source}{text}".encode(), digest_size=16).hexdigest()
    return {"id": digest, "source": source, "language": "zh", "kind": kind, "text": text, "meta": {}} | more


def dialogue(*turns: str, source: str = "test") -> dict:
    made = record("\n".join(turns), "dialogue", source)
    del made["text"]
    roles = ("user", "assistant")
    return made | {"messages": [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]}


def write(path: Path, records: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), "utf-8")
    return path
