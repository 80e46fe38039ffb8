"""From unified records on disk to digested shards, per core, beside what is usually done.

    steel          tasks.tokenize.job: parse, encode, pack, write Arrow, digest
    datasets.map   datasets.map(batched=True, batch_size=1000, num_proc=1) with the fast HF tokenizer, its
                   second pass, writing its own Arrow; neither parsing nor packing nor digesting
    original       10,000 lines joined and encoded in one call, as Steel-LLM's preparation script does
    tiktoken       tiktoken behind NFC in the place of our encoder, all the rest as in `steel`

Every run is a process of its own that loads its tokenizer, works on an eighth of the records, and is
then timed (CPU seconds, all threads) on the others, which it has not seen. The slow ones get a part
of them with the same mix. A megabyte is 10^6 bytes of UTF-8 text, whatever is made of it.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson

from bench import common
from tasks.tokenize.encode import Encoder
from tasks.work.pool import few_collections

BLOCK = 2048
WORLDS = 6
"""The demo's corpus has 2 MB: too little to time."""
SLOW = ("datasets.map", "original")


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--child", choices=CHILDREN, help="(internal) one timed run")
    parser.add_argument("--work", type=Path, help="(internal) its folder")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args.work, args.tokenizer)))
        return
    with tempfile.TemporaryDirectory(prefix="bench-tokenize-") as folder:
        common.finish(measure(Path(folder), args))


def measure(work: Path, args: Any) -> dict[str, Any]:
    """Prepare the records, run the contenders, print the tables."""
    sources = common.unified_records(args.data and args.data.resolve(), work, WORLDS)
    tokenizer = args.tokenizer.resolve() if args.tokenizer else _train(work, sources)
    sizes = _cut(work, sources, 6 if args.quick else 2)
    print(f"{sizes['timed']:.1f} MB of text ({sizes['few']:.1f} for the slow ones), {len(sources)} sources\n")

    def run(name: str) -> Callable[[], dict[str, Any]]:
        return lambda: common.child(
            "bench.tokenize", "--child", name, "--work", work, "--tokenizer", tokenizer
        )

    fast = common.interleaved(
        {n: run(n) for n in ("steel", "tiktoken", "encoder alone")}, 3 if args.quick else 7
    )
    slow = common.interleaved({n: run(n) for n in SLOW}, 1 if args.quick else 3)
    speed = {
        name: [sizes["few" if name in SLOW else "timed"] / r["cpu"] for r in results]
        for name, results in {**fast, **slow}.items()
    }
    middle = {name: median(values) for name, values in speed.items()}
    rows = [(n, common.spread(v, 2), f"{middle['steel'] / middle[n]:.1f}") for n, v in speed.items()]
    print(common.table(("", "MB/s a core", "steel is … times as fast"), rows))
    steps = run("steps")()["steps"]
    whole = sum(steps.values())
    print("\n" + common.table(("step", "share"), [(n, f"{s / whole:.1%}") for n, s in steps.items()]))
    limit = middle["steel"] / middle["encoder alone"]
    checked = run("check")()
    same = {name: {r["shards"] for r in fast[name]} for name in ("steel", "tiktoken")}
    print(
        f"\nsteel reaches {limit:.0%} of its encoder alone ({fast['steel'][0]['encoder']})."
        f"\n{checked['documents']:,} documents compared with transformers: {checked['different']} differ."
        f"\ntiktoken's shards have {'the same' if same['tiktoken'] == same['steel'] else 'other'} bytes."
    )
    return {
        "bench": "tokenize",
        "ratio_vs_datasets_map": round(middle["steel"] / middle["datasets.map"], 2),
        "ratio_vs_tiktoken": round(middle["steel"] / middle["tiktoken"], 2),
        "ratio_vs_original": round(middle["steel"] / middle["original"], 2),
        "identical_ids": checked["different"] == 0 and len(same["steel"]) == 1,
        "tiktoken_identical": same["tiktoken"] == same["steel"],
        "end_to_end_mb_per_s_core": round(middle["steel"], 2),
        "share_of_encoder_limit": round(limit, 3),
        "mb_per_s_core": {name: round(value, 3) for name, value in middle.items()},
        "steps": {name: round(seconds / whole, 3) for name, seconds in steps.items()},
        "mb": round(sizes["timed"], 1),
    }


def _train(work: Path, sources: dict[str, Path]) -> Path:
    """A tokenizer as the demo trains it."""
    from tasks.settings.profiles import load
    from tasks.tokenize.tokenizer import Settings, train

    (work / "drops.jsonl").touch()
    (work / "tokenizer").mkdir()
    chosen = load("demo").tokenize.model_dump(include=set(Settings.model_fields) - {"tokenizer"})
    files = {name: (str(folder), str(work / "drops.jsonl")) for name, folder in sources.items()}
    train(files, str(work / "tokenizer"), Settings(**chosen))
    return work / "tokenizer"


def _cut(work: Path, sources: dict[str, Path], thin: int) -> dict[str, float]:
    """warm.jsonl, timed.jsonl and few.jsonl (every thin-th of the timed); megabytes of text in each."""
    from tasks.records import parts

    sizes = dict.fromkeys(("warm", "timed", "few"), 0.0)
    with (
        open(work / "warm.jsonl", "wb") as warm,
        open(work / "timed.jsonl", "wb") as timed,
        open(work / "few.jsonl", "wb") as few,
    ):
        files = {"warm": warm, "timed": timed, "few": few}
        for folder in sources.values():
            for i, line in enumerate(parts.lines(folder)):
                size = sum(len(text.encode()) for text in _texts(orjson.loads(line))) / 1e6
                whole, rest = divmod(i, 8)
                names = ("warm",) if not rest else ("timed", "few") if whole % thin == 0 else ("timed",)
                for name in names:
                    files[name].write(line)
                    sizes[name] += size
    return sizes


def _texts(record: dict[str, Any]) -> list[str]:
    return [record["text"]] if "text" in record else [m["content"] for m in record["messages"]]


def _records(path: Path) -> Iterator[dict[str, Any]]:
    with open(path, "rb") as lines:
        yield from map(orjson.loads, lines)


# ------------------------------------------------------------------------- one run, in a child
def _timed(work: Callable[[], Any]) -> dict[str, Any]:
    before, begun = common.cpu_seconds(), time.perf_counter()
    work()
    return {"cpu": common.cpu_seconds() - before, "wall": time.perf_counter() - begun}


def _shards(work: Path, tokenizer: Path, name: str, file: str = "timed.jsonl") -> Path:
    """Tokenize a file into an empty folder."""
    from tasks.tokenize.job import Settings, tokenize_part

    out = work / f"shards-{name}"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    settings = Settings(block_size=BLOCK, val_share=0.01)
    tokenize_part(out, "bench", str(work / file), b"", str(tokenizer), "auto", settings)
    return out


def steel(work: Path, tokenizer: Path, name: str = "steel") -> dict[str, Any]:
    _shards(work, tokenizer, name, "warm.jsonl")
    few_collections()
    result = _timed(lambda: _shards(work, tokenizer, name))
    account = json.loads((work / f"shards-{name}" / "accounting.json").read_text("utf-8"))
    digests = [shard["digest"] for split in ("train", "val") for shard in account[split]["shards"]]
    return {**result, "encoder": account["encoder"], "shards": " ".join(digests)}


def tiktoken(work: Path, tokenizer: Path) -> dict[str, Any]:
    """Our tokenization with another encoder in it."""
    from tasks.tokenize import job

    encoder = _Tiktoken(tokenizer)
    job.shared_encoder = lambda folder, backend: encoder
    return steel(work, tokenizer, "tiktoken")


class _Tiktoken(Encoder):
    """tiktoken with the vocabulary of a byte-level tokenizer.json whose ids are in the order of its merges."""

    def __init__(self, folder: Path) -> None:
        import importlib.metadata

        from tiktoken import Encoding

        from tasks.tokenize.tokenizer import QWEN_SPLIT

        super().__init__(folder, "tokenizers")
        self.backend = f"tiktoken {importlib.metadata.version('tiktoken')}"
        vocabulary = json.loads((folder / "tokenizer.json").read_text("utf-8"))["model"]["vocab"]
        to_byte = {letter: byte for byte, letter in _byte_letters().items()}
        ranks = {bytes(to_byte[c] for c in token): rank for token, rank in vocabulary.items()}
        self._encode = Encoding("bench", pat_str=QWEN_SPLIT, mergeable_ranks=ranks, special_tokens={})

    def encode_flat(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        normal = unicodedata.normalize
        found = [self._encode.encode_to_numpy(normal("NFC", t), disallowed_special=()) for t in texts]
        return np.concatenate(found), np.cumsum([0, *map(len, found)], dtype=np.int64)


def _byte_letters() -> dict[int, str]:
    """Byte -> the printable character that stands for it in a byte-level vocabulary (GPT-2's table)."""
    kept = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    others = [byte for byte in range(256) if byte not in kept]
    return {**{b: chr(b) for b in kept}, **{b: chr(256 + i) for i, b in enumerate(others)}}


def encoder_alone(work: Path, tokenizer: Path) -> dict[str, Any]:
    """The limit: texts in memory to ids in memory."""
    from tasks.tokenize.job import BATCH_BYTES

    encoder = Encoder(tokenizer)
    encoder._batches = 1  # without the comparison with the reference

    def batches(path: Path) -> list[list[str]]:
        made, size = [[]], 0
        for record in _records(path):
            texts = _texts(record)
            made[-1] += texts
            size += sum(len(text.encode()) for text in texts)
            if size >= BATCH_BYTES:
                made.append([])
                size = 0
        return made

    for batch in batches(work / "warm.jsonl"):
        encoder.encode_flat(batch)
    timed = batches(work / "timed.jsonl")
    return _timed(lambda: [encoder.encode_flat(batch) for batch in timed])


def datasets_map(work: Path, tokenizer: Path) -> dict[str, Any]:
    import datasets
    from transformers import AutoTokenizer

    datasets.disable_progress_bars()
    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    table = datasets.Dataset.from_dict({"text": _rendered(work / "few.jsonl")})
    # A file, as a user's data set is one; in memory it would write none itself.
    table.save_to_disk(work / "texts")
    table = datasets.load_from_disk(work / "texts")

    def encode(batch: dict[str, list[str]]) -> dict[str, Any]:
        return loaded(batch["text"], return_attention_mask=False)

    def once() -> None:
        cache = work / "mapped.arrow"
        cache.unlink(missing_ok=True)
        table.map(
            encode,
            batched=True,
            batch_size=1000,
            num_proc=1,
            remove_columns=["text"],
            load_from_cache_file=False,
            cache_file_name=str(cache),
        )

    once()
    return _timed(once)


def original(work: Path, tokenizer: Path) -> dict[str, Any]:
    """10,000 documents, each with its end, as one string."""
    from transformers import AutoTokenizer

    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    lines = _rendered(work / "few.jsonl")

    def once() -> None:
        with open(work / "original.bin", "wb") as out:
            for i in range(0, len(lines), 10_000):
                joined = "".join(line + "<|im_end|>" for line in lines[i : i + 10_000])
                out.write(np.array(loaded.encode(joined), np.int32).tobytes())

    loaded.encode("warm")
    return _timed(once)


def _rendered(path: Path) -> list[str]:
    """What a tokenizer is given where the template is applied before."""
    from tasks.tokenize.chat import chat_pieces

    return [
        record["text"]
        if "text" in record
        else "".join(piece.text for piece in chat_pieces(record["messages"]))
        for record in _records(path)
    ]


def steps(work: Path, tokenizer: Path) -> dict[str, Any]:
    """Where the time goes: CPU seconds of each step, without those of steps inside it."""
    from model.training.shards import ShardWriter
    from tasks.tokenize import documents, encode, job, packing

    spent: dict[str, float] = {}
    stack: list[list[float]] = []

    def watch(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def watched(*args: Any, **kwargs: Any) -> Any:
            stack.append([time.process_time(), 0.0])
            try:
                return function(*args, **kwargs)
            finally:
                begun, inside = stack.pop()
                took = time.process_time() - begun
                spent[name] = spent.get(name, 0.0) + took - inside
                if stack:
                    stack[-1][1] += took

        return watched

    def listed(method: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *args: list(method(*args))

    _shards(work, tokenizer, "steps", "warm.jsonl")
    encode.Encoder.encode_flat = watch("encode", encode.Encoder.encode_flat)
    documents.Tokenizer.__call__ = watch("render and join", documents.Tokenizer.__call__)
    packing.Packer.add = watch("pack", listed(packing.Packer.add))
    packing.Packer.close = watch("pack", listed(packing.Packer.close))
    ShardWriter.write_batch = watch("write Arrow", ShardWriter.write_batch)
    ShardWriter.close = watch("write Arrow", ShardWriter.close)
    sys.modules["model.training.shards"].file_digest = watch(
        "digest", sys.modules["model.training.shards"].file_digest
    )
    job.orjson = type("Timed", (), {**vars(orjson), "loads": staticmethod(watch("parse JSON", orjson.loads))})
    watch("read, count, split", _shards)(work, tokenizer, "steps")
    return {"steps": dict(sorted(spent.items(), key=lambda item: -item[1]))}


def check(work: Path, tokenizer: Path) -> dict[str, Any]:
    """Compare documents in the shards with what transformers makes of their pieces."""
    from transformers import AutoTokenizer

    from model.training.shards import ShardFile
    from tasks.tokenize.chat import END_OF_TEXT, Piece, chat_pieces

    made: dict[str, list[int]] = {}
    for path in sorted((work / "shards-steel").glob("*.arrow")):
        shard = ShardFile(path)
        for i in range(shard.rows):
            row = shard.read(i)
            ends = [*row.doc_starts[1:], row.valid]
            for begin, end, id in zip(row.doc_starts, ends, row.doc_ids, strict=True):
                made.setdefault(id.hex(), []).extend(row.input_ids[begin:end].tolist())
    loaded = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    documents = different = 0
    for record in _records(work / "few.jsonl"):
        pieces = chat_pieces(record["messages"]) if "messages" in record else [Piece(record["text"])]
        due: list[int] = []
        for piece in pieces:
            due += (
                [loaded.convert_tokens_to_ids(piece.text)]
                if piece.special
                else loaded(piece.text, split_special_tokens=True)["input_ids"]
            )
        documents += 1
        different += made[record["id"]] != [*due, loaded.convert_tokens_to_ids(END_OF_TEXT)]
    return {"documents": documents, "different": different}


CHILDREN = {
    "steel": steel,
    "tiktoken": tiktoken,
    "encoder alone": encoder_alone,
    "datasets.map": datasets_map,
    "original": original,
    "steps": steps,
    "check": check,
}

if __name__ == "__main__":
    main()
