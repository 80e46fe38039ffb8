"""What deduplication costs as the number of documents grows: CPU time, peak memory, bytes on disk.

    python -m bench.dedup [--quick]

Signatures are synthetic (random hashes; 3 % exact copies; 4 % in families of close hashes, whose texts are
really compared), so that millions cost no cleaning. Each size runs in a process of its own, with a small
bound on buckets, so that what memory grows with shows.
"""

from __future__ import annotations

import resource
import sys
import tempfile
from pathlib import Path

import numpy as np

from bench.common import arguments, child, cpu_seconds, finish, table
from tasks.clean import dedup, signatures
from tasks.clean.recipe import load_set
from tasks.clean.spill import Spill

MEMORY = 64 << 20
PART = 100_000
"""Records a part: about what 64 MiB of web text hold."""
FAMILIES, FAMILY_TEXTS = 100, 4


def main() -> None:
    if len(sys.argv) > 2 and sys.argv[1] == "--one":
        print(one(int(sys.argv[2])))
        return
    given = arguments(__doc__.partition("\n")[0]).parse_args()
    counts = (
        [125_000, 250_000, 500_000] if given.quick else [250_000, 500_000, 1_000_000, 2_000_000, 4_000_000]
    )
    runs = [child("bench.dedup", "--one", count) for count in counts]
    rows = [
        [
            f"{count:,}",
            f"{run['cpu_seconds']:.1f}",
            f"{1e6 * run['cpu_seconds'] / count:.1f}",
            f"{run['growth_mib']:.0f}",
            f"{run['largest_bucket_mib']:.1f}",
            f"{run['exact']:,}",
            f"{run['near']:,}",
        ]
        for count, run in zip(counts, runs, strict=True)
    ]
    head = [
        "documents",
        "CPU seconds",
        "s per million",
        "memory, MiB",
        "largest bucket, MiB",
        "exact",
        "near",
    ]
    print(table(head, rows))
    print(f"buckets bounded by {MEMORY >> 20} MiB; memory is the peak less that after the imports")
    each = [run["cpu_seconds"] / count for count, run in zip(counts, runs, strict=True)]
    finish(
        {
            "documents": counts,
            "cpu_seconds": [run["cpu_seconds"] for run in runs],
            "memory_mib": [run["growth_mib"] for run in runs],
            "largest_bucket_mib": [run["largest_bucket_mib"] for run in runs],
            "cost_growth": round(each[-1] / each[0], 3),
        }
    )


def one(count: int) -> str:
    """Deduplicate `count` synthetic documents; returns a JSON line."""
    import orjson

    near = {kind: recipe.near_duplicates for kind, recipe in load_set("steel").items()}
    with tempfile.TemporaryDirectory(prefix="bench-dedup-") as folder:
        hashed = _synthetic(Path(folder), count)
        largest = _watch_buckets()
        before, started = _peak_mib(), cpu_seconds()
        accounts, _ = dedup.decide(["web"], hashed, near, Path(folder) / "out", MEMORY)
        result = {
            "cpu_seconds": round(cpu_seconds() - started, 2),
            "growth_mib": round(_peak_mib() - before, 1),
            "largest_bucket_mib": round(max(largest) / (1 << 20), 2),
            "exact": accounts[0]["dropped"].get("exact", 0),
            "near": accounts[0]["dropped"].get("near", 0),
        }
    return orjson.dumps(result).decode()


def _synthetic(folder: Path, count: int) -> list[tuple[str, Path, Path]]:
    """Parts of one source: their signatures, all pointing into one small file of texts."""
    rng = np.random.default_rng(1)
    path, offsets = _texts(folder, rng)
    centres = rng.integers(0, 2**64, count // 100, dtype=np.uint64)
    exact = rng.integers(0, 2**64, count, dtype=np.uint64)
    hashed = []
    for number, start in enumerate(range(0, count, PART)):
        size = min(PART, count - start)
        rows = np.zeros(size, signatures.ROW)
        ids = np.arange(start, start + size, dtype=">u8")
        rows["id"][:, 8:] = ids.view(np.uint8).reshape(-1, 8)
        copies = rng.random(size) < 0.03
        mine = exact[start : start + size]
        mine[copies] = exact[rng.integers(0, start + size, copies.sum())]
        rows["exact"][:, 0] = mine
        rows["simhash"] = rng.integers(0, 2**64, size, dtype=np.uint64)
        family = rng.random(size) < 0.04
        chosen = rng.integers(0, len(centres), family.sum())
        flip = np.uint64(1) << rng.integers(0, 64, family.sum(), dtype=np.uint64)
        rows["simhash"][family] = centres[chosen] ^ flip
        which = rng.integers(0, FAMILY_TEXTS, family.sum())
        rows["offset"][family] = offsets[chosen % FAMILIES, which]
        rows["chars"] = 600
        signed = folder / f"{number}"
        signed.mkdir()
        np.save(signed / signatures.FILE, rows, allow_pickle=False)
        hashed.append(("web", path, signed / signatures.FILE))
    return hashed


def _texts(folder: Path, rng: np.random.Generator) -> tuple[Path, np.ndarray]:
    """Families of texts of 600 characters, half of them alike, and where each begins."""
    import orjson

    path, at = folder / "records.jsonl", 0
    offsets = np.zeros((FAMILIES, FAMILY_TEXTS), np.uint64)
    with path.open("wb") as file:
        for family in range(FAMILIES):
            base = "".join(map(chr, rng.integers(0x4E00, 0x9FA5, 600)))
            for member in range(FAMILY_TEXTS):
                text = (
                    base[: 600 - member] + "尾" * member
                    if member < 2
                    else base[300:] + chr(0x4E00 + member) * 300
                )
                line = orjson.dumps({"kind": "text", "text": text}) + b"\n"
                file.write(line)
                offsets[family, member] = at
                at += len(line)
    return path, offsets


def _watch_buckets() -> list[int]:
    """The sizes of all pieces that are read from now on, in bytes."""
    sizes = [0]
    real = Spill.bucket

    def measured(self: Spill, number: int) -> np.ndarray:
        rows = real(self, number)
        sizes.append(rows.nbytes)
        return rows

    Spill.bucket = measured
    return sizes


def _peak_mib() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
