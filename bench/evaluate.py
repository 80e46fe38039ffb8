"""Steel's scorer against lm-evaluation-harness's `hf` model: the same questions, the same answers, in one run.

    0-shot    a tiny model with a vocabulary of 151,936: the output layer is nearly all of the work
    5-shot    a model of 100 million parameters: examples that the questions of a subject share are most of the text

Each side is a process of its own; it loads the model, answers a few questions, and is then timed (CPU seconds, all
threads) on all of them, and its memory beyond the loaded model is taken (peak of the process's resident memory). Both are given
the same token ids. Questions are random tokens, as long as real ones. Needs lm_eval (make peers).
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any

from bench import common

VOCABULARY = 151_936
GOALS = {"0-shot": 40.0, "5-shot": 8.0}
MEMORY_GOAL = 0.1
SIZES: dict[str, dict[str, Any]] = {
    "0-shot": {"hidden": 64, "layers": 2, "heads": 4, "wide": 128, "shots": 0, "batch": 16},
    "5-shot": {"hidden": 512, "layers": 8, "heads": 8, "wide": 1408, "shots": 5, "batch": 8},
}


def main() -> None:
    parser = common.arguments(__doc__.splitlines()[0])
    parser.add_argument("--child", choices=CHILDREN, help="(internal) one timed run")
    parser.add_argument("--work", type=Path, help="(internal) its folder")
    args = parser.parse_args()
    if args.child:
        print(json.dumps(CHILDREN[args.child](args.work)))
        return
    try:
        import lm_eval  # noqa: F401
    except ImportError:
        raise SystemExit(
            "this bench compares with lm-evaluation-harness (lm_eval): make peers installs it"
        ) from None
    with tempfile.TemporaryDirectory(prefix="bench-evaluate-") as folder:
        common.finish(measure(Path(folder), args.quick))


def measure(work: Path, quick: bool) -> dict[str, Any]:
    """Run both sides for both settings, print the table."""
    rows, result = [], {}
    for name, size in SIZES.items():
        here = work / name
        here.mkdir()
        prepare(here, size, quick)
        sides = {
            side: partial(common.child, "bench.evaluate", "--child", side, "--work", here)
            for side in CHILDREN
        }
        runs = common.interleaved(sides, 1 if quick else 3)
        told = compared(runs)
        result[name] = told
        for side in CHILDREN:
            cpu = [run["cpu"] for run in runs[side]]
            rows.append(
                (
                    f"{name} {side}",
                    common.spread(cpu, 2),
                    f"{told['memory'][side] / 2**20:,.0f}",
                    f"{runs[side][0]['parameters'] / 1e6:.0f} M",
                )
            )
        rows.append(
            (
                f"{name} lm-eval / steel",
                f"{told['times']:.1f} (goal {GOALS[name]:.0f})",
                f"{1 / told['memory_share']:.1f} times",
                "",
            )
        )
    print(common.table(("", "CPU seconds", "MB beyond the model", "parameters"), rows))
    for name, told in result.items():
        print(
            f"{name}: {told['questions']} questions, {told['answers_apart']} answers apart, "
            f"log-probabilities at most {told['apart']:.1g} apart"
        )
    return {
        "ratio_vs_lm_eval_0shot": round(result["0-shot"]["times"], 2),
        "ratio_vs_lm_eval_5shot": round(result["5-shot"]["times"], 2),
        "same_answers": not any(told["answers_apart"] for told in result.values()),
        "memory_ratio_vs_lm_eval": round(max(told["memory_share"] for told in result.values()), 4),
        **result,
    }


def compared(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Answers, time and memory of both sides."""
    ours, theirs = (runs[side][0]["scores"] for side in ("steel", "lm-eval"))
    memory = {side: median(run["memory"] for run in some) for side, some in runs.items()}
    cpu = {side: median(run["cpu"] for run in some) for side, some in runs.items()}
    return {
        "questions": len(ours),
        "answers_apart": sum(a.index(max(a)) != b.index(max(b)) for a, b in zip(ours, theirs, strict=True)),
        "apart": max(
            abs(x - y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True)
        ),
        "cpu": cpu,
        "times": cpu["lm-eval"] / cpu["steel"],
        "memory": memory,
        "memory_share": max(memory["steel"], 1) / memory["lm-eval"],
    }


def prepare(work: Path, size: dict[str, Any], quick: bool) -> None:
    """A random Qwen2 model, and prompts of several subjects: token ids of the lengths that MMLU and its like have."""
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=size["hidden"],
        num_hidden_layers=size["layers"],
        num_attention_heads=size["heads"],
        num_key_value_heads=size["heads"],
        intermediate_size=size["wide"],
        max_position_embeddings=2048,
        tie_word_embeddings=False,
        initializer_range=0.05,
    )
    Qwen2ForCausalLM(config).save_pretrained(work / "model")
    draw = random.Random(0)

    def text(low: int, high: int) -> list[int]:
        return [draw.randrange(1000, VOCABULARY) for _ in range(draw.randrange(low, high))]

    subjects, each = (3, 12 if quick else 40) if not size["shots"] else (2, 8 if quick else 24)
    letters = [500 + k for k in range(4)]
    prompts = []
    for _ in range(subjects):
        head = text(15, 25) + [t for _ in range(size["shots"]) for t in text(50, 90)]
        prompts += [head + text(35, 110) for _ in range(each)]
    (work / "asked.json").write_text(
        json.dumps({"prompts": prompts, "letters": letters, "batch": size["batch"]})
    )


def _steel(work: Path) -> dict[str, Any]:
    from model import scoring

    asked = json.loads((work / "asked.json").read_text())
    model = scoring.load(work / "model")

    def run(prompts: list[list[int]]) -> list[list[float]]:
        options = [[[letter] for letter in asked["letters"]]] * len(prompts)
        return [[value for value, _ in row] for row in scoring.choice_logprobs(model, prompts, options, 4096)]

    return _timed(model, run, asked["prompts"])


def _lm_eval(work: Path) -> dict[str, Any]:
    from lm_eval.models.huggingface import HFLM

    asked = json.loads((work / "asked.json").read_text())
    lm = HFLM(
        pretrained=_model(work),
        tokenizer=_no_text(),
        batch_size=asked["batch"],
        max_length=2048,
        device="cpu",
    )

    def run(prompts: list[list[int]]) -> list[list[float]]:
        requests = [((f"{k}", f"{t}"), p, [t]) for k, p in enumerate(prompts) for t in asked["letters"]]
        values = [value for value, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]
        width = len(asked["letters"])
        return [values[k : k + width] for k in range(0, len(values), width)]

    return _timed(lm.model, run, asked["prompts"])


def _model(work: Path) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        work / "model", dtype=torch.float32, trust_remote_code=False
    ).eval()


def _no_text() -> Any:
    """The harness wants a tokenizer; it is given ids, and never uses this one."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"<end>": 0}, unk_token="<end>")),
        eos_token="<end>",
        pad_token="<end>",
    )


def _timed(model: Any, run: Any, prompts: list[list[int]]) -> dict[str, Any]:
    import torch

    torch.set_num_threads(1)
    run(prompts[:2])
    _reset_peak()
    before = _resident("VmRSS")
    began = time.process_time()
    with torch.no_grad():
        scores = run(prompts)
    return {
        "cpu": time.process_time() - began,
        "memory": _resident("VmHWM") - before,
        "scores": scores,
        "parameters": sum(p.numel() for p in model.parameters()),
    }


def _reset_peak() -> None:
    """VmHWM begins anew (Linux)."""
    Path("/proc/self/clear_refs").write_text("5")


def _resident(name: str) -> int:
    """Bytes of resident memory now (VmRSS) or at most (VmHWM)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


CHILDREN = {"steel": _steel, "lm-eval": _lm_eval}

if __name__ == "__main__":
    main()
