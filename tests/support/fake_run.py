"""A made-up but complete artifact tree, as the rooms of Steel leave it: small, seeded, consistent."""

from __future__ import annotations

import hashlib
import json
import math
import random
from pathlib import Path
from typing import Any

from tasks.evaluate.statistics import wilson
from tasks.settings.config import Evaluate, Report, Sft, Source, SteelRun, Tokenize, Variant, World
from tasks.stage.node import Artifact
from tasks.stage.store import MANIFEST, content_digest, list_files

PRETRAIN = {
    "skypile": "zh",
    "wikipedia_cn": "zh",
    "baidu_qa": "zh",
    "zhihu": "zh",
    "moss": "mixed",
    "starcoder": "code",
}
SETS = {"demo_qa_zh": "sft", "demo_qa_en": "sft", "demo_mc": "sft", "demo_dpo_zh": "preference"}
BENCHMARKS = ("demo-known-words", "demo-new-words")
TRUE_SCORE = {"untrained": 0.25, "base": 0.9, "sft-exp1": 0.93, "sft-exp4": 0.96, "dpo": 0.96}
VOCAB = 512


def config(**changes: Any) -> SteelRun:
    """A profile with six sources and two variants."""
    kinds = {"sft": "alpaca", "preference": "dpo_sharegpt"}
    sources = {
        n: Source(hub="demo", dataset=f"demo/{n}", reader=n, language=lang) for n, lang in PRETRAIN.items()
    }
    sources |= {
        n: Source(hub="demo", dataset=f"demo/{n}", reader=kinds[use], use=use, licence="CC0-1.0")
        for n, use in SETS.items()
    }
    sources["demo_exam"] = Source(hub="demo", dataset="demo/demo_exam", reader="ceval", use="benchmark")
    fields = {
        "profile": "demo",
        "sources": sources,
        "world": World(),
        "tokenize": Tokenize(weights={"wikipedia_cn": 2}),
        "sft": Sft(
            variants={
                "exp1": Variant(mixture={"demo_qa_zh": 1.0, "demo_qa_en": 1.0}, note="everything"),
                "exp4": Variant(
                    mixture={"demo_qa_zh": 1.0, "demo_qa_en": 0.2, "demo_mc": 0.5}, note="80 : 20 与选择题"
                ),
            }
        ),
        "evaluate": Evaluate(benchmarks=["demo_exam"]),
        "report": Report(generations=["法国的首都是哪里？", "你是谁？", "What is the symbol of gold?"]),
    }
    return SteelRun(**{**fields, **changes})


class FakeRun:
    """Builds artifacts below a folder; `nodes` is what the report's context would be given."""

    def __init__(self, root: Path, run: SteelRun | None = None):
        self.root, self.config = root, run or config()
        self.random = random.Random(7)
        self.nodes: dict[str, Artifact] = {}

    def build(self, until: str = "evaluate") -> FakeRun:
        """All stages up to and including one."""
        for stage in ("download", "convert", "clean", "tokenize", "pretrain", "sft", "dpo", "rl", "evaluate"):
            getattr(self, stage)()
            if stage == until:
                break
        return self

    def add(
        self, name: str, files: dict[str, Any], inputs: tuple[str, ...] = (), **manifest: Any
    ) -> Artifact:
        stage, _, unit = name.partition(":")
        fingerprint = hashlib.sha256(name.encode()).hexdigest()
        path = self.root / stage / f"{unit or stage}-{fingerprint[:16]}"
        for file, content in files.items():
            target = path / file
            target.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(content, bytes):
                target.write_bytes(content)
            elif file.endswith(".jsonl"):
                target.write_text("".join(json.dumps(line) + "\n" for line in content), "utf-8")
            else:
                target.write_text(json.dumps(content), "utf-8")
        path.mkdir(parents=True, exist_ok=True)
        listed = list_files(path)
        whole = {
            "node": name,
            "files": listed,
            "digest": content_digest(listed),
            "seconds": round(self.random.uniform(0.2, 9), 3),
            "headline": f"{name} done",
            "counts": {},
            "metrics": {},
            "extra": {},
            "inputs": {i: {"node": i, "digest": "", "fingerprint": ""} for i in inputs},
            "host": "testbox",
            "code_commit": "0123456789abcdef",
            **manifest,
        }
        (path / MANIFEST).write_text(json.dumps(whole), "utf-8")
        self.nodes[name] = Artifact(
            name, path, whole["digest"], fingerprint, whole, "run", name.startswith("download")
        )
        return self.nodes[name]

    # ------------------------------------------------------------------------------ stages
    def download(self) -> None:
        for name in self.config.sources:
            self.add(f"download:{name}", {"data.json": []})

    def convert(self) -> None:
        for name in self.config.sources:
            n, bad = self.random.randint(500, 1500), {"broken JSON": 3, "null field": 2}
            account = {
                "source": name,
                "records_in": n,
                "chars_in": n * 120,
                "kept": n - 5 - 4,
                "chars_out": (n - 9) * 118,
                "quarantined": bad,
                "dropped": {"too few votes": 4},
                "changed": {},
            }
            self.add(
                f"convert:{name}", {"accounting.json": account, "records.jsonl": []}, (f"download:{name}",)
            )

    def _hop(
        self, name: str, before: dict[str, Any], dropped: dict[str, int], changed: dict[str, int]
    ) -> dict:
        gone = sum(dropped.values())
        return {
            "source": name,
            "records_in": before["kept"],
            "chars_in": before["chars_out"],
            "kept": before["kept"] - gone,
            "chars_out": before["chars_out"] - 100 * gone,
            "quarantined": {},
            "dropped": dropped,
            "changed": changed,
        }

    def clean(self) -> None:
        self.add("clean:assets", {"zh.arpa": ""})
        dedup, decontaminate = {}, {}
        for name, source in self.config.sources.items():
            last = self.nodes[f"convert:{name}"].read_json("accounting.json")
            if source.use == "benchmark":
                continue
            if source.use == "pretrain":
                draw = self.random.randint
                dropped = {
                    "language_id_score_filter": draw(5, 60),
                    "perplexity_filter": draw(5, 40),
                    "text_length_filter": draw(0, 20),
                }
                changed = {"clean_html_mapper": draw(20, 200), "chinese_convert_mapper": draw(0, 80)}
                last = self._hop(name, last, dropped, changed)
                self.add(f"clean:{name}", {"accounting.json": last}, (f"convert:{name}",))
                last = self._hop(name, last, {"exact": draw(2, 20), "near": draw(10, 70)}, {})
                dedup[f"{name}/accounting.json"] = last
            last = self._hop(name, last, {"decontaminate": self.random.randint(0, 6)}, {})
            decontaminate[f"{name}/accounting.json"] = last
            decontaminate[f"{name}/drops.jsonl"] = []
        part = {"questions": 1100, "questions_hit": 4, "dropped": {"zhihu": 12}, "examples": []}
        decontaminate["report.json"] = {"ngram": 13, "ignored_ngrams": {}, "benchmarks": {"demo_exam": part}}
        everything = tuple(f"convert:{n}" for n in self.config.sources)
        self.add("clean:dedup", dedup, tuple(f"clean:{n}" for n in self.config.using("pretrain")))
        self.add("clean:decontaminate", decontaminate, everything)

    def tokenize(self) -> None:
        self.add("tokenize:tokenizer", {"tokenizer.json": {}})
        sources = {}
        for name in self.config.using("pretrain"):
            self.add(
                f"tokenize:{name}", {"train-00000.arrow": b"", "val-00000.arrow": b""}, (f"clean:{name}",)
            )
            tokens = self.random.randint(20_000, 200_000)
            entry = {"rows": 40, "tokens": tokens, "documents": tokens // 90, "digest": "xxh3:0"}
            sources[name] = {
                "weight": (weight := self.config.tokenize.weights.get(name, 1)),
                "epoch_tokens": weight * tokens,
                "train": [{"file": "train-00000.arrow", **entry}],
                "val": [{"file": "val-00000.arrow", **entry, "tokens": 900}],
            }
        shards = {"format": 1, "block_size": 32, "vocab_size": VOCAB, "sources": sources}
        inputs = tuple(f"tokenize:{n}" for n in sources)
        self.add("tokenize:manifest", {"shards.json": shards}, inputs)

    def _loss(
        self, steps: int, start: float, end: float, **extra: tuple[float, float]
    ) -> list[dict[str, float]]:
        lines = []
        for step in range(1, steps + 1, 5):
            progress = 1 - math.exp(-4 * step / steps)
            noise = self.random.gauss(0, 0.02 * start)
            line = {"step": step, "loss": start + (end - start) * progress + noise, "lr": 1e-3}
            for key, (a, b) in extra.items():
                line[key] = a + (b - a) * progress + self.random.gauss(0, 0.02)
            lines.append(line)
            if step % 100 == 1:
                lines.append({"step": step, "val_loss": start + (end + 0.05 - start) * progress})
        return lines

    def _export(self) -> dict[str, Any]:
        header = {
            "__metadata__": {"format": "pt"},
            "model.embed_tokens.weight": {"dtype": "F32", "shape": [VOCAB, 64], "data_offsets": [0, 0]},
            "model.norm.weight": {"dtype": "F32", "shape": [64], "data_offsets": [0, 0]},
        }
        text = json.dumps(header).encode()
        geometry = {
            "ffn": "token",
            "expert": "double_swiglu",
            "num_experts": 6,
            "hidden_size": 64,
            "vocab_size": VOCAB,
        }
        return {
            "export/model.safetensors": len(text).to_bytes(8, "little") + text,
            "export/config.json": geometry,
        }

    def pretrain(self) -> None:
        files = {"metrics.jsonl": [*self._loss(800, 6.2, 1.9), *self._detail(800)], **self._export()}
        facts = {"ranks": 2, "threads_per_rank": 1, "device": "cpu"}
        numbers = {"final_loss": 1.9, "val_loss": 2.0, "tokens_per_s": 12345.6, "unigram_loss": 5.43}
        inputs = ("tokenize:manifest", "tokenize:tokenizer")
        self.add("pretrain", files, inputs, seconds=142.3, extra=facts, metrics=numbers)

    @staticmethod
    def _detail(steps: int) -> list[dict[str, Any]]:
        """The lines of a training that cost more."""
        groups = ("embeddings", "attention", "ffn", "router", "norms", "head")
        return [
            {
                "step": step,
                "loss_by_source": {name: 2 + i + 100 / step for i, name in enumerate(PRETRAIN)},
                "grad_norm_by_group": {name: 1 / (i + 1) for i, name in enumerate(groups)},
                "update_ratio_by_group": {name: 1e-3 / (i + 1) for i, name in enumerate(groups)},
                "expert_load_by_layer": [[0.3, 0.45, 0.25]] * 4,
            }
            for step in range(50, steps + 1, 50)
        ]

    def sft(self) -> None:
        for variant, settings in self.config.sft.variants.items():
            taken = [
                {"set": name, "id": f"{name}{i:04}", "split": "train"}
                for name, share in settings.mixture.items()
                for i in range(round(300 * share))
            ]
            files = {"metrics.jsonl": self._loss(300, 3.0, 0.8), "mixture.jsonl": taken, **self._export()}
            inputs = ("pretrain", "tokenize:tokenizer", *(f"convert:{n}" for n in settings.mixture))
            counts = {name: round(300 * share) for name, share in settings.mixture.items()}
            self.add(
                f"sft:{variant}",
                files,
                inputs,
                seconds=self.random.uniform(20, 40),
                extra={
                    "mixture": counts,
                    "targets": {name: {"zh" if "zh" in name else "en": 20 * n} for name, n in counts.items()},
                    "mixture_digest": hashlib.sha256(variant.encode()).hexdigest(),
                },
            )
        chosen = list(self.config.sft.variants)[-1]
        score = {"correct": 190, "n": 200, "accuracy": 0.95, "ci95": list(wilson(190, 200))}
        choice = {
            "variant": chosen,
            "protocol": "cloze",
            "scores": dict.fromkeys(self.config.sft.variants, score),
        }
        self.add(
            "sft:select",
            {"choice.json": choice},
            tuple(f"sft:{v}" for v in self.config.sft.variants),
        )

    def dpo(self) -> None:
        self.add("dpo:reference", {"logprobs.jsonl": []}, ("sft:select", "convert:demo_dpo_zh"))
        rewards = {"rewards/margins": (0.0, 2.1), "rewards/accuracies": (0.5, 0.93)}
        curves = self._loss(120, 0.693, 0.31, **rewards)
        effect = {"accuracy_before": 184 / 300, "accuracy_after": 248 / 300, "n": 300, "p_value": 1.3e-9}
        effect |= {"ci95_before": list(wilson(184, 300)), "ci95_after": list(wilson(248, 300))}
        effect |= {"gained": 80, "lost": 16, "reward_accuracy": 0.9}
        one = {**effect, "reward_accuracy": 0.91, "ci95_reward": list(wilson(273, 300)), "reward_ties": 3}
        one |= {"reward_p_value": 1e-9}
        effect["by_set"] = {
            "demo_dpo_zh": one,
            "on-policy": {**one, "behaviour": {"what": "right answers", **effect}},
        }
        self.add(
            "dpo:train", {"metrics.jsonl": curves, "dpo.json": effect, **self._export()}, ("dpo:reference",)
        )

    def rl(self) -> None:
        self.add("rl:prompts", {"prompts.jsonl": []}, ("sft:select",))
        curves = self._loss(40, 0.01, -0.02, reward=(0.55, 0.81))
        rows = [
            {
                "questions": "all open questions", "measure": "exact", "n": 1332,
                "before": 1000 / 1332, "ci95_before": list(wilson(1000, 1332)),
                "after": 1170 / 1332, "ci95_after": list(wilson(1170, 1332)),
                "gained": 190, "lost": 20, "p_value": 1e-30,
            }
        ]  # fmt: skip
        effect = {"start": f"sft:{list(self.config.sft.variants)[-1]}", "rows": rows}
        self.add("rl:train", {"metrics.jsonl": curves, "rl.json": effect, **self._export()}, ("rl:prompts",))

    def evaluate(self) -> None:
        models = ["untrained", "base", *(f"sft-{v}" for v in self.config.sft.variants), "dpo", "rl"]
        for unit in models:
            truth = TRUE_SCORE.get(unit, 0.95)
            rows, answers = [], []
            for benchmark, protocol, scoring, chance, n in self._questions(truth):
                right = [self.random.random() < chance for _ in range(n)]
                extra = {"scoring": scoring} if scoring else {}
                rows.append(
                    {
                        "model": unit.replace("sft-", "sft:"),
                        "benchmark": benchmark,
                        "protocol": protocol,
                        "accuracy": sum(right) / n,
                        "n": n,
                        "ci95": list(wilson(sum(right), n)),
                        "subjects": {"元素": {"accuracy": sum(right) / n, "n": n}},
                        **extra,
                    }
                )
                answers += [
                    {
                        "id": f"{i:032x}",
                        "benchmark": benchmark,
                        "protocol": protocol,
                        "subject": "元素",
                        "correct": ok,
                        **extra,
                    }
                    for i, ok in enumerate(right)
                ]
            inputs = (
                "pretrain" if unit in ("untrained", "base") else "sft:select",
                "tokenize:tokenizer",
                "convert:demo_exam",
            )
            self.add(f"evaluate:{unit}", {"results.json": rows, "answers.jsonl": answers}, inputs)

    def _questions(self, truth: float):
        for benchmark in (*BENCHMARKS, "demo-held-out-facts"):
            n = 71 if "held-out" in benchmark else 550
            score = (
                0.25
                if "held-out" in benchmark
                else truth - 0.08 * (benchmark == BENCHMARKS[1]) * (truth > 0.3)
            )
            yield benchmark, "cloze", None, score, n
            yield benchmark, "paper-first-token", None, 0.25, n
            if "held-out" not in benchmark:
                yield benchmark, "options-only", "cloze", 0.25, n
                yield benchmark, "options-only", "paper-first-token", 0.25, n
