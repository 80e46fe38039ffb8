"""What is planted is what stands in the files; the same world gives the same bytes."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections import Counter
from itertools import combinations

import pytest

from tasks import world
from tasks.settings.config import World
from tasks.world import dirt, exam, spoil, voice

FULL = World()
ESSENTIAL = {
    "skypile": "text",
    "wanjuan": "content",
    "wikipedia_cn": "completion",
    "baidu_qa": "answer",
    "zhihu": "RESPONSE",
    "belle_2m": "output",
    "belle_3_5m": "conversations",
    "moss": "conversation",
    "firefly": "target",
    "starcoder": "content",
}


def records(w: World, name: str) -> tuple[list[dict], int]:
    """Readable records of a source's files, and how many lines are not readable."""
    import pyarrow.parquet as pq

    found, broken = [], 0
    for path, content in world.files(w, name).items():
        if path.endswith(".parquet"):
            found += pq.read_table(io.BytesIO(content)).to_pylist()
        elif name == "wikipedia_cn":
            found += json.loads(content)
        else:
            for line in content.decode().splitlines():
                try:
                    found.append(json.loads(line))
                except json.JSONDecodeError:
                    broken += 1
    return found, broken


def strings(value) -> list[str]:
    if isinstance(value, str):
        return [value]
    if isinstance(value, dict):
        return [s for key, v in value.items() if key not in ("url", "METADATA") for s in strings(v)]
    return [s for v in value for s in strings(v)] if isinstance(value, list) else []


def is_null(name: str, record: dict) -> bool:
    if name == "baidu_baike":
        return record["summary"] is None and not record["sections"]
    return record[ESSENTIAL[name]] is None


@pytest.mark.parametrize("size", ["full", "small"])
@pytest.mark.parametrize("name", voice.PRETRAIN_SOURCES)
def test_planted_dirt_is_found(name, size):
    w = World(size=size)
    planted = world.expected(w, name)
    found, broken = records(w, name)
    assert broken == planted["broken_json"]
    assert len(found) + broken == planted["records"]
    assert sum(is_null(name, r) for r in found) == planted["null_fields"]
    bodies = ["\n".join(strings(r)) for r in found if not is_null(name, r)]
    if name != "starcoder":
        assert sum("<p>" in b for b in bodies) == planted["html"]
        assert sum(bool(re.search(r"\w@\w+\.\w", b)) for b in bodies) == planted["email"]
        assert sum("http://" in b for b in bodies) == planted["link"]
        assert sum(bool(re.search(r"\b\d+\.\d+\.\d+\.\d+\b", b)) for b in bodies) == planted["ip"]
        assert sum(spoil._convert("t2s", b) != b for b in bodies) == planted["traditional"]
        asked = {q.question for q in exam.questions(w) if q.split == "val"}
        assert sum(any(line in asked for line in b.split("\n")) for b in bodies) == planted["contaminated"]
        signs = sum(len(re.findall(r"[\W\d_]", b)) / len(b) > 0.7 for b in bodies)
    else:
        signs = sum(max(map(len, b.split("\n"))) > 1000 for b in bodies)
    assert signs == planted["gibberish"]
    if name == "baidu_baike":
        assert sum(r["summary"] is None and bool(r["sections"]) for r in found) == planted["null_summary"]
    if name == "zhihu":
        few = [r for r in found if "万" not in r["METADATA"]]
        votes = [int(re.search(r"赞同 (\d+)", r["METADATA"])[1]) for r in few]
        assert sum(v < 100 for v in votes) == planted["low_votes"]


def shingles(text: str) -> frozenset[str]:
    plain = re.sub(r"[\W_]", "", text)
    return frozenset(plain[i : i + 5] for i in range(len(plain) - 4))


def test_only_planted_documents_are_near_each_other():
    """Every pair of documents with half of their 5-grams in common was planted."""
    docs, index = [], {}
    for name in voice.PRETRAIN_SOURCES:
        for doc in world.documents(FULL, name):
            if doc.dirt & {"broken_json", "null_fields", "low_votes", "gibberish"} or len(doc.text) < 100:
                continue
            text = doc.text if name != "starcoder" else "\n".join(doc.parts)
            docs.append((name, doc, shingles(text)))
    copies = {"exact_duplicate", "near_duplicate", "cross_duplicate"}
    planted = sum(world.expected(FULL, n)[kind] for n in voice.PRETRAIN_SOURCES for kind in copies)
    for k, (_, _, grams) in enumerate(docs):
        # a pair with a Jaccard index of a half shares one of the rarest grams of each
        for gram in sorted(grams)[:: max(1, len(grams) // 24)]:
            index.setdefault(gram, []).append(k)
    near = set()
    for group in index.values():
        if len(group) <= 30:
            for a, b in combinations(group, 2):
                first, second = docs[a][2], docs[b][2]
                if len(first & second) / len(first | second) > 0.6:
                    near.add((a, b))
    assert all((docs[a][1].dirt | docs[b][1].dirt) & copies for a, b in near)
    assert len(near) >= planted * 0.9


def test_long_documents_are_texts_of_lines():
    for name in ("skypile", "wanjuan", "wikipedia_cn", "baidu_baike"):
        docs = [d for d in world.documents(FULL, name) if not d.dirt]
        lengths = sorted(len(d.text) for d in docs)
        assert lengths[len(lengths) // 20] >= 150
        assert lengths[-len(lengths) // 20] <= 600
        for doc in docs:
            lines = doc.text.split("\n")
            assert max(map(len, lines)) <= 300
            assert len(doc.text) / len(lines) >= 10
            said = [line for line in lines if not line.startswith(("答案", "Answer"))]
            assert len(set(said)) == len(said)


def test_sizes_and_languages():
    characters = Counter()
    for name in voice.PRETRAIN_SOURCES:
        for doc in world.documents(FULL, name):
            characters[doc.language] += len(doc.text)
    assert 850_000 <= sum(characters.values()) <= 1_200_000
    assert characters["code"] <= 0.12 * sum(characters.values())
    small = sum(len(d.text) for n in voice.PRETRAIN_SOURCES for d in world.documents(World(size="small"), n))
    assert small <= sum(characters.values()) / 2.4


def test_post_training_sets():
    for name in world.posttrain.SFT_SETS:
        rows = json.loads(world.files(FULL, name)[f"{name}.json"])
        assert all(set(r) == {"instruction", "input", "output"} and r["output"] for r in rows)
        assert len(rows) == world.expected(FULL, name)["records"]
    for row in json.loads(world.files(FULL, "demo_cot")["demo_cot.json"]):
        letter = row["output"][-1]
        said = row["output"].removesuffix(letter)
        answer = next(line for line in row["instruction"].splitlines() if line.startswith(f"{letter}. "))[3:]
        assert said.endswith(("答案为", "The answer is "))
        assert answer in said
    counts = {}
    for name in world.posttrain.PREFERENCE_SETS:
        rows = json.loads(world.files(FULL, name)[f"{name}.json"])
        assert all(r["chosen"]["value"] != r["rejected"]["value"] for r in rows)
        assert len({r["conversations"][0]["value"] for r in rows}) == len(rows)
        counts[name] = len(rows)
    assert counts["demo_dpo_zh"] >= 1200
    assert 3.5 <= counts["demo_dpo_zh"] / counts["demo_dpo_en"] <= 4.5


def test_same_world_same_bytes_in_another_process():
    """Python's own hashes differ between processes; nothing may depend on them."""
    program = (
        "import hashlib\n"
        "from tasks.settings.config import World\n"
        "from tasks import world\n"
        "h = hashlib.sha256()\n"
        "for size in ('small', 'full'):\n"
        "    for name in world.names():\n"
        "        for path, content in sorted(world.files(World(size=size), name).items()):\n"
        "            h.update(path.encode() + content)\n"
        "print(h.hexdigest())\n"
    )
    digests = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": "."},
            capture_output=True,
            check=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(digests) == 1


def test_another_seed_is_another_world():
    assert world.files(World(seed=1), "skypile") != world.files(FULL, "skypile")


def test_unknown_name():
    with pytest.raises(KeyError, match="no data set"):
        world.files(FULL, "nonsense")


def test_amounts_of_the_small_world():
    assert dirt.amounts(World(size="small"), "skypile")["html"] == 4
