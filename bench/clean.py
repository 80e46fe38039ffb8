"""Cleaning side by side: Steel's clean stage against Data-Juicer's own executor, file to file.

    python -m bench.clean [--quick] [--data DIR]

Both sides run the text recipe of the set `paper` with the same models, including its SimHash
deduplication, on the same documents: what Steel's convert makes of the sources, dialogues with their
messages joined by newlines. Data-Juicer runs with np=1, without fusion, tracer and checkpoint (its
fastest setting). Both run in processes of their own, by turns; start-up (imports, operators, models,
a few documents to warm up) is told apart and not counted. Three sizes over a factor of 9 hold the
same mixture. Then convert, on JSON lines.

ratio_vs_stock is that of the largest size. Data-Juicer also starts a process for every pass over the
data, some seconds in all whatever the size; ratio_marginal compares what a further megabyte costs, and is
what the ratio tends to on large data.
"""

from __future__ import annotations

import hashlib
import tempfile
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import median

import orjson

from bench.common import arguments, child, cpu_seconds, finish, interleaved, spread, table, unified_records
from tasks.records import parts

SHARES = (1 / 9, 1 / 3, 1)
COPIES = 4
"""The full bench quadruples the documents: a number before the text makes each copy a text of its own."""
CONVERT_BYTES = 48 << 20
SIDES = {"steel": "bench.clean_steel", "stock": "bench.clean_stock"}


def main() -> None:
    parser = arguments(__doc__.partition("\n")[0])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-clean-") as folder:
        work = Path(folder)
        sources = unified_records(given.data, work)
        documents = list(_documents(sources, 1 if given.quick else COPIES))
        inputs = [_write(work / f"{i}", documents, share) for i, share in enumerate(SHARES)]
        models = _models(sources, work / "models")
        runs = interleaved(
            {
                side: lambda side=side, module=module: child(
                    module, work / side, models, *(path for path, _ in inputs)
                )
                for side, module in SIDES.items()
            },
            repeats=2 if given.quick else 5,
        )
        same = [
            _texts(work / "steel" / str(i)) == _texts(work / "stock" / str(i)) for i in range(len(SHARES))
        ]
        kept = [len(_texts(work / "steel" / str(i))) for i in range(len(SHARES))]
        convert = [_convert(work / "convert", documents) for _ in range(3)]
    sizes = [size / 1e6 for _, size in inputs]
    seconds = {
        side: [[run["seconds"][i] for run in runs[side]] for i in range(len(SHARES))] for side in SIDES
    }
    costs = {side: [median(s) / mb for s, mb in zip(seconds[side], sizes, strict=True)] for side in SIDES}
    marginal = {side: (median(s[-1]) - median(s[0])) / (sizes[-1] - sizes[0]) for side, s in seconds.items()}
    rows = []
    for i, mb in enumerate(sizes):
        for side in SIDES:
            rows.append(
                [
                    f"{side}, {mb:.2f} MB",
                    spread(seconds[side][i], 2),
                    f"{1 / costs[side][i]:.2f}",
                    f"{kept[i]:,}" if same[i] else "DIFFERENT SETS",
                ]
            )
    print(table(["side, size of the texts", "CPU seconds", "MB/s per core", "documents kept"], rows))
    for side in SIDES:
        print(
            f"start-up of {side}, not counted: {spread([run['startup'] for run in runs[side]])} CPU seconds"
        )
    print(f"convert, JSON lines: {spread(convert)} MB/s per core")
    finish(
        {
            "ratio_vs_stock": round(costs["stock"][-1] / costs["steel"][-1], 2),
            "identical_kept_set": all(same),
            "mb_per_s_core": round(1 / costs["steel"][-1], 3),
            "cost_growth": round(costs["steel"][-1] / costs["steel"][0], 3),
            "convert_mb_per_s_core": round(median(convert), 1),
            "ratio_marginal": round(marginal["stock"] / marginal["steel"], 2),
            "ratios_by_size": [round(b / a, 2) for a, b in zip(costs["steel"], costs["stock"], strict=True)],
            "megabytes": [round(mb, 2) for mb in sizes],
            "startup_seconds": {side: round(median(r["startup"] for r in runs[side]), 1) for side in SIDES},
        }
    )


def _documents(sources: dict[str, Path], copies: int) -> Iterable[tuple[str, str]]:
    """(id, text) of every record that is not code, in an order that mixes the sources alike everywhere."""
    found = []
    for folder in sources.values():
        for line in parts.lines(folder):
            record = orjson.loads(line)
            if record["kind"] == "code":
                continue
            text = record.get("text") or "\n".join(m["content"] for m in record["messages"])
            for copy in range(copies):
                shown = f"{copy} {text}" if copy else text
                identity = hashlib.blake2b(f"{copy}{record['id']}".encode(), digest_size=16).hexdigest()
                found.append((identity, shown))
    return sorted(found)


def _write(folder: Path, documents: Sequence[tuple[str, str]], share: float) -> tuple[Path, int]:
    """The first documents as unified records and as Data-Juicer reads them; folder, bytes of text."""
    folder.mkdir()
    chosen = documents[: int(len(documents) * share)]
    with (folder / "records.jsonl").open("wb") as ours, (folder / "stock.jsonl").open("wb") as stock:
        for identity, text in chosen:
            line = {"id": identity, "text": text}
            stock.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
            record = {**line, "source": "bench", "language": "zh", "kind": "text", "meta": {}}
            ours.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))
    return folder, sum(len(text.encode()) for _, text in chosen)


def _models(sources: dict[str, Path], out: Path) -> Path:
    from tasks.clean.assets import train_language
    from tasks.clean.seeds import seed_lines
    from tasks.settings.config import Assets

    out.mkdir()
    settings = Assets()
    lines = seed_lines(sources, settings.max_chars)["zh"]
    info = train_language("zh", lines, out, settings.vocab_size, settings.order)
    if not info["usable"]:
        raise SystemExit(f"the sources hold too little Chinese for a language model: {info['reason']}")
    return out


def _texts(folder: Path) -> list[str]:
    return sorted(orjson.loads(line)["text"] for line in parts.lines(folder))


def _convert(work: Path, documents: Sequence[tuple[str, str]]) -> float:
    """MB/s of JSON lines, one process, all of convert's work: read, check, identify, count, write."""
    from tasks.convert.job import Reading, Settings
    from tasks.convert.source import convert_source

    raw, out = work / "raw", work / f"out-{time.monotonic_ns()}"
    out.mkdir(parents=True)
    if not raw.exists():
        raw.mkdir()
        with (raw / "bench.jsonl").open("wb") as file:
            while file.tell() < CONVERT_BYTES:
                for _, text in documents:
                    line = {"text": f"{file.tell()} {text}"}
                    file.write(orjson.dumps(line, option=orjson.OPT_APPEND_NEWLINE))
    started = cpu_seconds()
    convert_source(raw, out, "bench", Settings(source=Reading(reader="skypile")))
    return (raw / "bench.jsonl").stat().st_size / 1e6 / (cpu_seconds() - started)


if __name__ == "__main__":
    main()
