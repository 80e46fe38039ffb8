"""An SFT mixture, resolved: which records exactly, and the packed rows of tokens and targets they give.

Only replies are targets, their end included. The mask comes from the renderer's spans; an example
without a single target is an error (a model trained on nothing still lowers its loss), one whose
reply lies wholly behind the cut, or that the chat template has no form for, is left out and counted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import orjson

from model.training.shards import Row
from tasks.records.account import FILE, SPLITS
from tasks.records.record import Dialogue, Message
from tasks.settings.errors import NodeError
from tasks.tokenize.chat import Refused, TextEncoder, render_chat
from tasks.tokenize.packing import Document, pack_whole
from tasks.training import mixtures
from tasks.training.mixtures import Taken

HELD_OUT_SHARE = 0.02
HELD_OUT_LEAST = 16
UNNAMED = 255
"""Number of the sets behind the 255th: a document's takes a byte."""
SAMPLE = 3
"""Examples shown, with their targets marked, for the eye."""


@dataclass(frozen=True)
class Work(mixtures.Work):
    """What to prepare; picklable."""

    packed_tokens: int
    out: Path
    holds_out: bool = field(default=True, kw_only=True)
    """Keep a part of the examples for a validation loss."""
    last_turn: bool = field(default=False, kw_only=True)
    """Only the last reply is a target."""
    too_long: str = field(default="head", kw_only=True)
    """Fate of an example above max_tokens: `head` is kept, or `drop`."""


def prepare(work: Work) -> dict[str, Any]:
    """Fill work.out with mixture.jsonl, accounting.json, sample.txt and data/{train,val}-00000.arrow."""
    from tasks.tokenize.encode import shared_encoder

    encoder = shared_encoder(str(work.tokenizer))
    sets: list[Taken[Dialogue]] = work.taken()
    if work.holds_out:
        hold_out(sets)
    mixture = write_mixture(work.out / "mixture.jsonl", sets)
    data = work.out / "data"
    data.mkdir(exist_ok=True)
    counts = {s.name: Counts() for s in sets}
    if work.packed_tokens < work.max_tokens:
        raise NodeError(
            f"packed_tokens {work.packed_tokens} is below max_tokens {work.max_tokens}: examples would be cut a "
            "second time when they are packed"
        )
    shards: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        documents = rendered(sets, encoder, work, split == "val", counts)
        shards[split] = _write(data, split, documents, work, encoder)
    _check_written(shards, counts)
    accounting: dict[str, Any] = {
        "mixture_digest": mixture,
        "sets": {s.name: {**s.counts, **vars(counts[s.name]), "refusal": s.refusal} for s in sets},
        "train": shards["train"],
        "val": shards["val"],
    }
    for each in accounting["sets"].values():
        assert each["records"] == each["dropped"] + each["duplicates"] + each["available"]
        fates = ("examples", "template", "reply_cut_off", "too_long")
        assert each["taken"] == sum(each[fate] for fate in fates)
    (work.out / FILE).write_bytes(orjson.dumps(accounting, option=orjson.OPT_INDENT_2) + b"\n")
    (work.out / "sample.txt").write_text(sample(sets, encoder, work), "utf-8")
    if not shards["train"]["rows"]:
        raise NodeError(f"the mixture leaves no example to train on: {_fates(accounting['sets'], work)}")
    return accounting


def _check_written(shards: Mapping[str, Mapping[str, int]], counts: Mapping[str, Counts]) -> None:
    """What stands in the shards is what was counted: examples, tokens and targets."""
    for name, counted in (
        ("documents", sum(c.examples for c in counts.values())),
        ("tokens", sum(c.tokens for c in counts.values())),
        ("targets", sum(c.targets for c in counts.values())),
    ):
        written = sum(split[name] for split in shards.values())
        if written != counted:
            raise NodeError(f"{counted} {name} of the mixture were counted, and {written} written")


def _fates(sets: Mapping[str, Mapping[str, Any]], work: Work) -> str:
    """Why each set gave nothing, in words."""
    lines = []
    for name, s in sets.items():
        fates = {
            "dropped by deduplication or decontamination": s["dropped"],
            "duplicates": s["duplicates"],
            "not in the share that is taken": s["available"] - s["taken"],
            f"with roles that have no form ({s['refusal']})": s["template"],
            f"without a token of the reply within max_tokens {work.max_tokens}": s["reply_cut_off"],
            f"longer than max_tokens {work.max_tokens}": s["too_long"],
            "held out for the validation loss": s["examples"],
        }
        reasons = ", ".join(f"{n:,} {fate}" for fate, n in fates.items() if n)
        lines.append(f"{name}: {s['records']:,} records" + (f" ({reasons})" if reasons else ""))
    return "; ".join(lines) or "it names no data set"


def source_names(sets: Iterable[str]) -> list[str]:
    """The sets by the numbers that the shards have, in the order of the accounting; "" for those without one."""
    names = list(sets)
    return names if len(names) <= UNNAMED else [*names[:UNNAMED], ""]


def hold_out(sets: Sequence[Taken[Dialogue]]) -> None:
    """Keep 2 % of the mixture (at least 16 examples, if it has four times that) for the validation loss."""
    total = sum(s.counts["taken"] for s in sets)
    count = max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * total)) if total >= 4 * HELD_OUT_LEAST else 0
    # rounded against the running total, so that the parts add up exactly
    before = given = 0
    for taken in sets:
        before += taken.counts["taken"]
        due = count * before // total if total else 0
        taken.hold_out(due - given)
        given = due


def write_mixture(path: Path, sets: Sequence[Taken[Dialogue]]) -> str:
    """The manifest of the mixture, one record id a line; returns its digest."""
    digest = hashlib.sha256()
    with path.open("wb") as file:
        for taken in sets:
            for record, held_out in taken:
                split = "val" if held_out else "train"
                line = orjson.dumps({"set": taken.name, "id": record["id"], "split": split}) + b"\n"
                digest.update(line)
                file.write(line)
    return digest.hexdigest()


@dataclass
class Counts:
    """What became of the records taken from one set."""

    available: int = 0
    examples: int = 0
    template: int = 0
    """Left out: the tokenizer's chat template refuses its roles."""
    ends_with_user: int = 0
    """Of the examples, those whose last turn is no reply: it is read and not learned."""
    replies_in_a_row: int = 0
    """Of the examples, those with a reply right behind a reply: both are learned."""
    truncated: int = 0
    reply_cut_off: int = 0
    """Not one token of the reply lies before the cut: left out."""
    too_long: int = 0
    """Left out because it is longer than max_tokens."""
    tokens: int = 0
    targets: int = 0
    languages: dict[str, int] = field(default_factory=dict)
    """Language of a record -> its targets."""


def rendered(
    sets: Sequence[Taken[Dialogue]],
    encoder: TextEncoder,
    work: Work,
    held_out: bool,
    counts: dict[str, Counts],
) -> Iterator[Document]:
    """The examples of one split of the mixture as tokens and targets."""
    for number, taken in enumerate(sets):
        mine = counts[taken.name]
        mine.available = len(taken.keys)
        for record, is_held_out in taken:
            if is_held_out != held_out:
                continue
            try:
                ids, mask = render(record, encoder, work.last_turn)
            except Refused as why:
                mine.template += 1
                taken.refuse(why)
                continue
            if len(ids) > work.max_tokens and work.too_long == "drop":
                mine.too_long += 1
                continue
            mine.truncated += len(ids) > work.max_tokens
            ids, mask = ids[: work.max_tokens], mask[: work.max_tokens]
            if not any(mask):
                mine.reply_cut_off += 1
                continue
            mine.examples += 1
            roles = [message["role"] for message in record["messages"]]
            mine.ends_with_user += roles[-1] == "user"
            mine.replies_in_a_row += ("assistant", "assistant") in zip(roles, roles[1:], strict=False)
            mine.tokens += len(ids)
            mine.targets += sum(mask)
            language = record["language"]
            mine.languages[language] = mine.languages.get(language, 0) + sum(mask)
            tokens, targets = np.array(ids, np.uint32), np.array(mask, np.uint8)
            yield Document(bytes.fromhex(record["id"]), tokens, targets, min(number, UNNAMED))


def supervised(taken: Taken[Dialogue], record: Dialogue, encoder: TextEncoder, work: Work) -> int:
    """Targets of an example as it will be packed; 0 if it will be left out."""
    try:
        ids, mask = render(record, encoder, work.last_turn)
    except Refused as why:
        taken.refuse(why)
        return 0
    if len(ids) > work.max_tokens and work.too_long == "drop":
        return 0
    return sum(mask[: work.max_tokens])


def render(record: Dialogue, encoder: TextEncoder, last_turn: bool = False) -> tuple[list[int], list[int]]:
    """A dialogue in the chat format with its mask; refuses one that would train nothing, or everything.

    Raises Refused where the format has no form for it.
    """
    if record.get("kind") != "dialogue":
        raise NodeError(
            f"{record['source']}: record {record['id']} is a {record.get('kind')}, SFT needs dialogues"
        )
    messages = only_last(record["messages"]) if last_turn else record["messages"]
    ids, mask = render_chat(encoder, messages)
    if not 0 < sum(mask) < len(mask):
        raise NodeError(
            f"{record['source']}: record {record['id']} has {sum(mask)} targets in {len(mask)} tokens"
        )
    return ids, mask


def only_last(messages: Sequence[Message]) -> list[Message]:
    """The same turns, of whose replies only the last one that fine-tuning may learn is a target."""
    replies = [k for k, m in enumerate(messages) if m["role"] == "assistant" and m.get("loss", True)]
    return [m if k not in replies[:-1] else {**m, "loss": False} for k, m in enumerate(messages)]


def _write(data: Path, split: str, documents: Iterator[Document], work: Work, encoder: Any) -> dict[str, int]:
    from model.training.shards import write_shard

    targets = 0

    def counted(rows: Iterator[Row]) -> Iterator[Row]:
        nonlocal targets
        for row in rows:
            targets += int(np.sum(row.loss_mask))
            yield row

    rows = counted(pack_whole(documents, work.packed_tokens, encoder.end_of_text))
    metadata = {"source": "sft", "tokenizer_digest": encoder.digest}
    info = write_shard(
        data / f"{split}-00000.arrow", rows, work.packed_tokens, metadata, loss_mask=True, doc_sources=True
    )
    return {"rows": info.rows, "documents": info.documents, "tokens": info.tokens, "targets": targets}


def sample(sets: Sequence[Taken[Dialogue]], encoder: TextEncoder, work: Work) -> str:
    """The first examples of each set as the trainer sees them, targets between ⟦ and ⟧."""
    from tokenizers import Tokenizer

    raw = Tokenizer.from_file(str(work.tokenizer / "tokenizer.json"))
    lines = []
    for taken in sets:
        for record, found in islice(_with_a_form(taken, encoder, work), SAMPLE):
            ids, mask = (x[: work.max_tokens] for x in found)
            lines.append(f"── {taken.name} {record['id']}: {sum(mask)} targets of {len(ids)} tokens\n")
            lines.append(marked(ids, mask, lambda part: raw.decode(part, skip_special_tokens=False)) + "\n\n")
    return "".join(lines)


def _with_a_form(
    taken: Taken[Dialogue], encoder: TextEncoder, work: Work
) -> Iterator[tuple[Dialogue, tuple[list[int], list[int]]]]:
    """The rendered records, without those that have no form, which are counted elsewhere."""
    for record, _ in taken:
        try:
            yield record, render(record, encoder, work.last_turn)
        except Refused:
            continue


def marked(ids: Sequence[int], mask: Sequence[int], decode: Callable[[Sequence[int]], str]) -> str:
    """Decoded text with each run of targets in brackets."""
    out, start = [], 0
    for end in range(1, len(ids) + 1):
        if end == len(ids) or mask[end] != mask[start]:
            text = decode(ids[start:end])
            out.append(f"⟦{text}⟧" if mask[start] else text)
            start = end
    return "".join(out)
