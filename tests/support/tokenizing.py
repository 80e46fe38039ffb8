"""A small corpus in cleaned form, and the settings of a small tokenizer."""

import hashlib
from pathlib import Path

import orjson

from tasks.tokenize.tokenizer import Settings

SETTINGS = Settings(vocab_size=600, merge_han=False, max_token_bytes=16)
SENTENCES = (
    "北京是中国的首都。",
    "上海是中国最大的城市，人口众多。",
    "The capital of France is Paris.",
    "The capital of Italy is Rome, isn't it?",
    "def add(a, b):\n    return a + b\n",
)


def record(text: str, source: str = "wiki") -> dict:
    digest = hashlib.md5((source + text).encode()).hexdigest()
    return {"id": digest, "source": source, "language": "zh", "kind": "text", "text": text, "meta": {}}


def dialogue(*turns: str, source: str = "wiki") -> dict:
    """User and assistant in turn."""
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(turns)]
    digest = hashlib.md5((source + repr(turns)).encode()).hexdigest()
    return {
        "id": digest,
        "source": source,
        "language": "zh",
        "kind": "dialogue",
        "messages": messages,
        "meta": {},
    }


def write_lines(path: Path, rows: list[dict]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"".join(orjson.dumps(row) + b"\n" for row in rows))
    return path


def corpus() -> list[dict]:
    texts = [record(f"{sentence} {i}") for i in range(60) for sentence in SENTENCES]
    return texts + [dialogue(f"{i} 加 1 等于几？", f"{i} 加 1 等于 {i + 1}。") for i in range(60)]
