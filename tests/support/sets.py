"""Post-training sets: conversations and preference pairs, numbered, so that a test knows each by its id."""

import hashlib

import orjson


def record_id(name, k):
    return hashlib.blake2b(f"{name}/{k}".encode(), digest_size=16).hexdigest()


def dialogue(name, k, reply=None):
    turns = [
        {"role": "user", "content": f"{name} asks {k}?"},
        {"role": "assistant", "content": reply or f"It is {k * 7}."},
    ]
    return {
        "id": record_id(name, k),
        "source": name,
        "language": "en",
        "kind": "dialogue",
        "messages": turns,
        "meta": {},
    }


def preference(name, k, language, chosen=None, rejected="Bad.", prompt=None):
    return {
        "id": record_id(name, k),
        "source": name,
        "language": language,
        "kind": "preference",
        "messages": [{"role": "user", "content": prompt or f"{name} {k}?"}],
        "chosen": chosen or f"Good {k}.",
        "rejected": rejected,
        "meta": {},
    }


def write_set(folder, name, n, records=None):
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    lines = records or [dialogue(name, k) for k in range(n)]
    (place / "records.jsonl").write_bytes(b"".join(orjson.dumps(r) + b"\n" for r in lines))
    return place
