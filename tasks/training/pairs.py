"""Preference pairs: chosen by hash, thinned to a ratio of languages, split, and turned into tokens.

The held-out pairs are split off by the hash of their prompt, those of the data sets and those that a model made alike,
so that no prompt is on both sides.
A reply that is too long loses its tail (its head is what the prompt asked for); a pair whose prompt
leaves no room, or whose replies are the same, teaches nothing and is dropped. Everything is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import orjson

from tasks.records.record import Preference
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import Refused, TextEncoder, render_chat, reply_ids
from tasks.training import mixtures
from tasks.training.mixtures import Taken, key


@dataclass(frozen=True)
class Work(mixtures.Work):
    """What to build pairs from; picklable."""

    zh_per_en: float | None
    held_out: int
    out: Path
    extra: Path | None = None
    """Folder of pairs that a model made (pairs.jsonl). They are not thinned; as many of them are held out again, but
    not more than EXTRA_HELD_OUT."""


EXTRA_HELD_OUT = 0.25
"""Largest share of a model's own pairs that is held out for their sake: the others are to be trained on."""
GRADED = ("answer", "reward")
"""Fields by which replies to the prompt of a pair are graded."""


class PairLine(TypedDict):
    """A pair as tokens."""

    id: str
    set: str
    language: str
    prompt: list[int]
    """Open for the reply."""
    chosen: list[int]
    """With its end, as rejected."""
    rejected: list[int]
    answer: NotRequired[str]
    """Of a pair that a model made: the right answer in the normal form of its reward."""
    reward: NotRequired[str]


def prepare(work: Work) -> dict[str, Any]:
    """Write train.arrow, held_out.arrow and the manifest pairs.jsonl into work.out; hand back the counts."""
    from model.training.pairs import Pair, write_pairs
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(str(work.tokenizer))
    sets: list[Taken[Preference]] = work.taken()
    lines, counts = tokenized(sets, encoder, work.max_tokens)
    lines, counts["thinned"] = thinned(lines, work.zh_per_en, work.seed)
    made: list[PairLine] = []
    if work.extra is not None:
        made = [orjson.loads(line) for line in (work.extra / "pairs.jsonl").read_bytes().splitlines()]
    # one set of prompts for both kinds: a prompt that is held out for one is for the other, too
    held = prompts_held(lines, work.held_out, work.seed)
    held |= prompts_held(made, min(work.held_out, int(EXTRA_HELD_OUT * len(made))), work.seed)
    train, held_out = split(lines, held)
    if not train or (work.held_out and not held_out):
        raise NodeError(_too_few(train, held_out, counts, sets, work))
    more, more_held_out = split(made, held)
    counts["extra"], counts["extra_held_out"] = len(made), len(more_held_out)
    train, held_out = [*train, *more], [*held_out, *more_held_out]
    with (work.out / "pairs.jsonl").open("wb") as manifest:
        for name, some in (("train", train), ("held_out", held_out)):
            counts[name] = write_pairs(
                work.out / f"{name}.arrow",
                (Pair(line["id"], line["prompt"], line["chosen"], line["rejected"]) for line in some),
                {"tokenizer_digest": encoder.digest},
            )
            for line in some:
                shown: dict[str, Any] = {
                    "set": line["set"],
                    "id": line["id"],
                    "language": line["language"],
                    "split": name,
                }
                shown |= {field: value for field, value in line.items() if field in GRADED}
                manifest.write(orjson.dumps(shown) + b"\n")
            for language in ("zh", "en"):
                counts[f"{name}_{language}"] = sum(line["language"] == language for line in some)
    counts["sets"] = {s.name: dict(s.counts) for s in sets}
    return counts


def _too_few(
    train: list, held_out: list, counts: Mapping[str, Any], sets: Sequence[Taken], work: Work
) -> str:
    """What became of the pairs, when none is left to train on or to measure with."""
    fates = {
        f"prompt leaves no room in max_tokens {work.max_tokens}": counts["prompt_too_long"],
        "with roles that the chat template refuses": counts["template"],
        "both replies the same, or the same before the cut": counts["same_reply"],
        f"English pairs thinned out by zh_per_en {work.zh_per_en}": counts["thinned"],
        f"held out (dpo.held_out {work.held_out})": len(held_out),
    }
    records = ", ".join(f"{s.name} {s.counts['records']:,}" for s in sets)
    what = ", ".join(f"{n:,} {fate}" for fate, n in fates.items() if n)
    missing = "to train on" if not train else "to measure the effect on"
    return f"no preference pair is left {missing}: {counts['pairs']:,} pairs taken of {records or 'no set'}; {what}"


def tokenized(
    sets: Sequence[Taken[Preference]], encoder: TextEncoder, max_tokens: int
) -> tuple[list[PairLine], dict[str, Any]]:
    """One line a pair, and the counts of those that were left out or cut."""
    counts: dict[str, Any] = {"pairs": 0, "cut": 0, "template": 0, "prompt_too_long": 0, "same_reply": 0}
    lines: list[PairLine] = []
    for taken in sets:
        for record, _ in taken:
            counts["pairs"] += 1
            try:
                prompt, _ = render_chat(encoder, record["messages"], generation_prompt=True)
                replies = [
                    reply_ids(encoder, record["messages"], reply)
                    for reply in (record["chosen"], record["rejected"])
                ]
            except Refused as why:
                counts["template"] += 1
                taken.refuse(why)
                continue
            room = max_tokens - len(prompt)
            if room < 1:
                counts["prompt_too_long"] += 1
                continue
            cut = [reply[:room] for reply in replies]
            if cut[0] == cut[1]:
                counts["same_reply"] += 1
                continue
            counts["cut"] += cut != replies
            lines.append(
                PairLine(
                    id=record["id"],
                    set=taken.name,
                    language=record["language"],
                    prompt=prompt,
                    chosen=cut[0],
                    rejected=cut[1],
                )
            )
    return lines, counts


def thinned(lines: list[PairLine], zh_per_en: float | None, seed: int) -> tuple[list[PairLine], int]:
    """At most one English pair for so many Chinese ones; which stay is decided by their hash."""
    if zh_per_en is None:
        return lines, 0
    chinese = sum(line["language"] == "zh" for line in lines)
    english = [line["id"] for line in lines if line["language"] == "en"]
    room = int(chinese / zh_per_en)
    if len(english) <= room:
        return lines, 0
    kept = set(sorted(english, key=lambda i: key(seed, "thin", i))[:room])
    return [x for x in lines if x["language"] != "en" or x["id"] in kept], len(english) - room


def prompts_held(lines: Sequence[PairLine], number: int, seed: int) -> set[tuple[int, ...]]:
    """The prompts to hold out: in the order of their hash, until they have so many pairs."""
    pairs = Counter(tuple(line["prompt"]) for line in lines)
    held: set[tuple[int, ...]] = set()
    have = 0
    for prompt in sorted(pairs, key=lambda prompt: key(seed, "held-out", *map(str, prompt))):
        if have >= number:
            break
        held.add(prompt)
        have += pairs[prompt]
    return held


def split(lines: Sequence[PairLine], held: Set[tuple[int, ...]]) -> tuple[list[PairLine], list[PairLine]]:
    """(train, held out), in their order."""
    parts: tuple[list[PairLine], list[PairLine]] = ([], [])
    for line in lines:
        parts[tuple(line["prompt"]) in held].append(line)
    return parts
