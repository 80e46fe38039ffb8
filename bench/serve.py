"""`python -m bench.serve`: our server against `transformers serve`, on one stock folder, at 1 and 8 clients.

    python -m bench.serve [--quick] [--folder FOLDER] [--continuous-batching]

Every client sends one streamed, greedy chat completion after another. Counted are tokens a second of all clients
together (the reply's tokens by the model's tokenizer, for both servers alike) and the time to the first piece of text.
Both servers get the same folder, the same threads and the same requests, in turns. Without --folder a model of the
demo's size with random weights is made, whose ends are never the likeliest token.

Wall-clock time, as clients see it: on a shared machine compare the ratio, and look at the ranges.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from typing import Any

import httpx

from bench import common
from model.tokenizer import TextTokenizer

CLIENTS = (1, 8)
QUESTIONS = ("你是谁？", "法国的首都是哪里？", "Name three primary colours.", "水在多少度沸腾？")


def main() -> None:
    parser = common.arguments(__doc__.partition("\n")[0])
    parser.add_argument("--folder", type=Path, help="a stock model folder (default: one of random weights)")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each server")
    parser.add_argument("--continuous-batching", action="store_true", help="of transformers serve")
    args = parser.parse_args()
    tokens, rounds = (32, 2) if args.quick else (96, 3)
    with tempfile.TemporaryDirectory() as work:
        folder = args.folder.resolve() if args.folder else made(Path(work), args.tokenizer)
        load = Load(TextTokenizer.open(folder), tokens, 1 if args.quick else 2)
        with (
            ours(folder, args.threads) as here,
            theirs(folder, args.threads, args.continuous_batching) as there,
        ):
            contenders = {"steel": here, "transformers serve": there}
            for address, name in contenders.values():
                load.run(address, name, 1)  # warm
            result: dict[str, Any] = {"tokens": tokens, "threads": args.threads, "clients": {}}
            for clients in CLIENTS:
                runs: dict[str, Callable[[], Any]] = {
                    name: lambda at=at, n=clients: load.run(*at, n) for name, at in contenders.items()
                }
                result["clients"][clients] = compared(common.interleaved(runs, rounds))
    show(result)
    one = result["clients"][CLIENTS[0]]
    common.finish(
        {
            "tokens_per_s_ratio_vs_transformers": one["ratio"],
            **{
                f"tokens_per_s_ratio_vs_transformers_{n}_clients": result["clients"][n]["ratio"]
                for n in CLIENTS[1:]
            },
            "first_token_ms": round(1000 * one["steel"]["first_s"], 1),
            "first_token_ms_transformers": round(1000 * one["transformers serve"]["first_s"], 1),
            **result,
        }
    )


class Load:
    """Clients that ask one after another."""

    def __init__(self, tokenizer: TextTokenizer, tokens: int, each: int):
        self.tokenizer, self.tokens, self.each = tokenizer, tokens, each

    def run(self, address: str, model: str, clients: int) -> dict[str, Any]:
        """Tokens a second of all together, and every time to the first text."""
        first: list[float] = []
        counts: list[int] = []
        failures: list[Exception] = []

        def client(number: int) -> None:
            try:
                for turn in range(self.each):
                    question = QUESTIONS[(number + turn) % len(QUESTIONS)]
                    seconds, text = self._ask(connections[number], address, model, question)
                    first.append(seconds)
                    counts.append(len(self.tokenizer.encode(text)))
            except Exception as error:  # noqa: BLE001  (raised again in the caller's thread)
                failures.append(error)

        # made before the clock starts, and kept, as clients do: each reads the certificates of the machine
        connections = [httpx.Client(timeout=300) for _ in range(clients)]
        begun = time.perf_counter()
        threads = [threading.Thread(target=client, args=(i,)) for i in range(clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        seconds = time.perf_counter() - begun
        for connection in connections:
            connection.close()
        if failures:
            raise failures[0]
        return {"tokens_per_s": sum(counts) / seconds, "first_s": first}

    def _ask(self, http: httpx.Client, address: str, model: str, question: str) -> tuple[float, str]:
        body = {
            "model": model,
            "messages": [{"role": "user", "content": question}],
            "max_tokens": self.tokens,
            "temperature": 0,
            "stream": True,
        }
        begun, first, text = time.perf_counter(), 0.0, []
        with http.stream("POST", f"{address}/v1/chat/completions", json=body) as reply:
            if reply.status_code != 200:
                raise RuntimeError(f"{address} says {reply.status_code}: {reply.read()[:500]!r}")
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    for choice in json.loads(line[6:])["choices"]:
                        piece = choice["delta"].get("content")
                        if piece:
                            first = first or time.perf_counter() - begun
                            text.append(piece)
        return first, "".join(text)


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Medians of each contender, and how many times as fast ours is."""
    table = {
        name: {
            "tokens_per_s": [round(run["tokens_per_s"], 1) for run in mine],
            "first_s": round(median(seconds for run in mine for seconds in run["first_s"]), 4),
        }
        for name, mine in runs.items()
    }
    speed = {name: median(row["tokens_per_s"]) for name, row in table.items()}
    return {**table, "ratio": round(speed["steel"] / speed["transformers serve"], 2)}


def show(result: dict[str, Any]) -> None:
    rows = [
        (f"{clients} clients, {name}", common.spread(row["tokens_per_s"]), f"{1000 * row['first_s']:.0f}")
        for clients, of in result["clients"].items()
        for name, row in of.items()
        if name != "ratio"
    ]
    print(common.table(("", "tokens/s", "first text, ms"), rows))
    for clients, of in result["clients"].items():
        print(f"{clients} clients: {of['ratio']} times the tokens a second of transformers serve")


# ----------------------------------------------------------------------------------- servers
@contextmanager
def ours(folder: Path, threads: int) -> Iterator[tuple[str, str]]:
    """(address, name of the model)."""
    port = free_port()
    command = [sys.executable, "-m", "serve", f"m={folder}", "--port", str(port), "--threads", str(threads)]
    with running(command, f"http://127.0.0.1:{port}", threads) as address:
        yield address, "m"


@contextmanager
def theirs(folder: Path, threads: int, batching: bool) -> Iterator[tuple[str, str]]:
    """The same of transformers; its models are named by their folder."""
    port = free_port()
    start = "from transformers.cli.transformers import main; main()"
    command = [sys.executable, "-c", start, "serve", str(folder), "--port", str(port), "--device", "cpu"]
    command += ["--dtype", "float32", *(["--continuous-batching"] if batching else [])]
    with running(command, f"http://localhost:{port}", threads) as address:
        yield address, str(folder)


@contextmanager
def running(command: list[str], address: str, threads: int) -> Iterator[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "HF_HUB_OFFLINE": "1"}
    environment.pop("STEEL_API_KEY", None)
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(command, cwd=common.ROOT, env=environment, stdout=log, stderr=log)
        try:
            end = time.monotonic() + 300
            while True:
                try:
                    if httpx.get(f"{address}/health", timeout=5).status_code == 200:
                        break
                except httpx.HTTPError:
                    pass
                if process.poll() is not None or time.monotonic() > end:
                    log.seek(0)
                    raise RuntimeError(f"{' '.join(command)} did not start:\n{log.read()[-2000:]}")
                time.sleep(0.3)
            yield address
        finally:
            process.terminate()
            process.wait(timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# ------------------------------------------------------------------------------------- model
def made(work: Path, tokenizer: Path | None) -> Path:
    """A stock folder of the demo's size with random weights."""
    import torch

    from model.export.stock import write_stock
    from model.steel import SteelConfig, SteelForCausalLM
    from model.training.export import write_export

    folder = tokenizer or trained_tokenizer(work)
    size = -(-TextTokenizer.open(folder).vocab_size // 64) * 64
    torch.manual_seed(0)
    config = SteelConfig(
        vocab_size=size, hidden_size=192, num_hidden_layers=4, num_attention_heads=6, ffn="dense",
        expert="swiglu", max_position_embeddings=1024, initializer_range=0.06,
    )  # fmt: skip
    lm = SteelForCausalLM(config)
    opened = TextTokenizer.open(folder)
    with torch.no_grad():
        for token in opened.added:
            lm.lm_head.weight[opened.special_id(token)] = 0
        lm.lm_head.weight[opened.vocab_size :] = 0
    weights = {name: parameter.detach() for name, parameter in lm.named_parameters()}
    write_export(work / "own", config, weights, folder)
    write_stock(work / "own", work / "stock")
    return work / "stock"


def trained_tokenizer(work: Path) -> Path:
    """As in the demo, on its world."""
    from tasks.settings.profiles import load
    from tasks.tokenize.tokenizer import Settings, train

    drops, out = work / "drops.jsonl", work / "tokenizer"
    drops.touch()
    out.mkdir()
    chosen = load("demo").tokenize.model_dump(include=set(Settings.model_fields) - {"tokenizer"})
    records = common.unified_records(None, work)
    files = {name: (str(folder), str(drops)) for name, folder in records.items()}
    train(files, str(out), Settings(**chosen))
    return out


if __name__ == "__main__":
    main()
