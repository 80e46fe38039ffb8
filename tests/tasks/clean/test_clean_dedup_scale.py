"""Deduplication in buckets finds what a plain one in memory finds, whatever the memory, and stays within it."""

import json
import random
import zlib
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.clean import dedup, near, signatures
from tasks.clean.recipe import NearDuplicates
from tasks.clean.spill import Spill
from tests.support.samples import real_text, write

TINY, AMPLE = 1 << 13, 1 << 28
STEEL = NearDuplicates(
    tokenization="character", window_size=6, num_blocks=6, hamming_distance=4, min_similarity=0.7
)
PAPER = STEEL.model_copy(update={"min_similarity": None})


# ------------------------------------------------------------------------------- the plain way
def plain(rows, texts, rule):
    """{position: (position of the kept one, method)} by dictionaries, a loop, and the operator's own search."""
    import simhash

    drops, first = {}, {}
    for i, row in enumerate(rows):
        key = row["exact"].tobytes()
        if key in first:
            drops[i] = (first[key], "exact")
        first.setdefault(key, i)
    left = [i for i, row in enumerate(rows) if row["kind"] == 0 and i not in drops]
    value = {i: int(rows[i]["simhash"]) for i in left}
    close = defaultdict(set)
    for a, b in simhash.find_all(np.unique(np.array(list(value.values()), np.uint64)), 6, 4):
        close[int(a)].add(int(b))
        close[int(b)].add(int(a))
    if rule.min_similarity is None:
        leader = {}
        for i in left:
            if value[i] in leader:
                drops[i] = (leader[value[i]], "near")
                continue
            reached, queue = {value[i]}, [value[i]]
            while queue:
                new = close[queue.pop()] - reached
                reached |= new
                queue += new
            leader |= dict.fromkeys(reached, i)
        return drops
    shingles = {i: {texts[i][k : k + 6] for k in range(max(1, len(texts[i]) - 5))} for i in left}
    kept = defaultdict(list)
    for i in left:
        for j in [j for v in (value[i], *sorted(close[value[i]])) for j in kept[v]][: dedup.MAX_COMPARED]:
            if len(shingles[i] & shingles[j]) >= rule.min_similarity * len(shingles[i] | shingles[j]):
                drops[i] = (j, "near")
                break
        else:
            kept[value[i]].append(i)
    return drops


def corpus(seed, count):
    """Texts in families, with hashes that are close in families too (not the same ones)."""
    rng = random.Random(seed)
    centres = [rng.getrandbits(64) for _ in range(max(2, count // 12))]
    families = [real_text(rng.randrange(10_000)) for _ in range(max(2, count // 10))]
    texts, rows = [], np.zeros(count, signatures.ROW)
    for i in range(count):
        text = rng.choice(families)
        if rng.random() < 0.7:
            at = rng.randrange(len(text))
            text = text[:at] + "甲乙丙丁"[: rng.randrange(1, 4)] + text[at + 1 :]
        texts.append(text)
        hashed = rng.choice(centres)
        for _ in range(rng.choice((0, 0, 1, 2, 3))):
            hashed ^= 1 << rng.randrange(64)
        rows[i]["id"] = np.frombuffer(i.to_bytes(16, "big"), np.uint8)
        rows[i]["exact"] = (zlib.crc32(text.encode()) * 0x9E3779B97F4A7C15 % 2**64, 7)
        rows[i]["simhash"] = 0 if rng.random() < 0.03 else hashed
        rows[i]["kind"] = -1 if rng.random() < 0.1 else 0
        rows[i]["chars"] = len(text)
    return texts, rows


def signed(folder, texts, rows, sizes):
    """The corpus as parts of two sources, in order."""
    hashed, start = [], 0
    for number, size in enumerate(sizes):
        part = rows[start : start + size].copy()
        path = folder / f"{number}" / "records.jsonl"
        items = [{"kind": "text", "text": text} for text in texts[start : start + size]]
        write(path, items)
        line_bytes = [len(line) for line in path.read_bytes().splitlines(keepends=True)]
        part["offset"] = np.concatenate([[0], np.cumsum(line_bytes)[:-1]]) if size else []
        np.save(path.parent / signatures.FILE, part, allow_pickle=False)
        hashed.append(("a" if number < 2 else "b", path, path.parent / signatures.FILE))
        start += size
    return hashed


def decided(out, hashed, rule, memory):
    rules = {"text": rule}
    accounts, report = dedup.decide(["a", "b"], hashed, rules, out, memory)
    drops = {}
    for name in ("a", "b"):
        for line in map(json.loads, (out / name / "drops.jsonl").read_text().splitlines()):
            drops[int(line["id"], 16)] = (int(line["duplicate_of"], 16), line["method"])
    return drops, accounts, report


@pytest.mark.parametrize("rule", [STEEL, PAPER], ids=["steel", "paper"])
@pytest.mark.parametrize("memory", [TINY, AMPLE])
@pytest.mark.parametrize("seed", [1, 2])
def test_the_plain_way_finds_the_same(tmp_path, rule, memory, seed):
    count = 1500
    texts, rows = corpus(seed, count)
    hashed = signed(tmp_path, texts, rows, (700, 0, 300, 500))
    drops, accounts, report = decided(tmp_path / "out", hashed, rule, memory)
    expected = plain(rows, texts, rule)
    assert drops == expected
    assert list(drops) == sorted(drops)
    methods = Counter(method for _, method in expected.values())
    assert min(methods["exact"], methods["near"]) > 20  # else nothing was tested
    assert [a["records_in"] for a in accounts] == [700, 800]
    assert sum(a["kept"] for a in accounts) == count - len(expected)
    sizes = Counter(expected.values())
    top = sorted((-n, f"{of:032x}", method) for (of, method), n in sizes.items())[:10]
    assert [(1 - g["size"], g["id"], g["method"]) for g in report["largest_groups"]] == [
        (n, of, method) for n, of, method in top
    ]
    across = sum(1 for i, (of, _) in expected.items() if i >= 700 > of)
    assert report["across_sources"] == {"a": 0, "b": across}


def test_buckets_stay_small(tmp_path):
    """40 times more rows than fit: every bucket stays below the bound, and the bytes written are the same."""
    texts, rows = corpus(3, 4000)
    hashed = signed(tmp_path, texts, rows, (2000, 1000, 1000))
    sizes = {}
    real = Spill.bucket

    def measured(self, number):
        bucket = real(self, number)
        sizes[memory] = max(sizes.get(memory, 0), bucket.nbytes)
        return bucket

    Spill.bucket = measured
    try:
        for memory in (TINY, AMPLE):
            decided(tmp_path / str(memory), hashed, STEEL, memory)
    finally:
        Spill.bucket = real
    assert sizes[AMPLE] > 10 * TINY > 10 * sizes[TINY] > 0
    for name in ("a/drops.jsonl", "b/drops.jsonl", "a/accounting.json", "report.json"):
        assert (tmp_path / str(TINY) / name).read_bytes() == (tmp_path / str(AMPLE) / name).read_bytes()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 5), st.sampled_from([None, 7, 8]))
def test_all_close_pairs_are_found_once_for_any_number_of_blocks(tmp_path_factory, seed, distance, blocks):
    rng = np.random.default_rng(seed)
    centres = rng.integers(0, 2**64, 12, dtype=np.uint64)
    values = rng.choice(centres, 150)
    for _ in range(4):
        flip = np.uint64(1) << rng.integers(0, 64, 150, dtype=np.uint64)
        values = np.where(rng.random(150) < 0.5, values ^ flip, values)
    values = np.unique(values)
    work = tmp_path_factory.mktemp("near")
    chunks = [values[:40], values[40:]]
    found = list(near.close_pairs(lambda: chunks, len(values), distance, TINY, work, blocks))
    pairs = [frozenset(pair) for chunk in found for pair in chunk.tolist()]
    apart = np.bitwise_count(values[:, None] ^ values[None, :])
    a, b = np.nonzero(np.triu(apart <= distance, 1))
    assert Counter(pairs) == Counter(
        frozenset(p) for p in zip(values[a].tolist(), values[b].tolist(), strict=True)
    )


def test_more_hashes_want_more_blocks():
    chosen = [near.blocks_for(count, 4) for count in (10**4, 10**6, 10**8, 10**9, 10**10)]
    assert chosen == sorted(chosen)
    assert (chosen[0], chosen[-1] > 7) == (6, True)


def test_groups_are_connected_components():
    hashes = np.arange(100, dtype=np.uint64) * np.uint64(7)
    groups = near.Groups(hashes)
    chain = np.stack([hashes[:50], hashes[1:51]], axis=1)[::-1]
    groups.join(chain[:20])
    groups.join(chain[20:])
    groups.join(np.array([[560, 693]], np.uint64))
    held, group = groups.of(np.array([0, 3, 350, 357, 560, 693], np.uint64))
    assert held.tolist() == [True, False, True, True, True, True]
    assert group[0] == group[1] != group[2]
    assert group[3] == group[4]
