"""The data funnel: raw records → converted → cleaned → deduplicated → decontaminated → used.

Each hop of a source wrote an accounting.json; here they are chained. Nothing may appear or vanish
between two hops, and over the whole way records_in = quarantined + Σ dropped + kept, or the report
fails: a funnel that does not add up is worse than none. So it does when tokenization, a mixture or
the pairs of DPO counted other records than cleaning left them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tasks.figures.history import Nodes
from tasks.settings.config import Source
from tasks.settings.errors import NodeError
from tasks.stage.node import Artifact

HOPS = ("convert", "clean", "dedup", "decontaminate")


@dataclass
class Funnel:
    """The way of one source's records; `dropped` by step or operator, in the order they act."""

    source: str
    use: str
    language: str
    records_in: int = 0
    chars_in: int = 0
    kept: int = 0
    chars_out: int = 0
    quarantined: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, int] = field(default_factory=dict)
    changed: dict[str, int] = field(default_factory=dict)
    by_hop: dict[str, int] = field(default_factory=dict)
    """Hop -> records that ended there (dropped; for `quarantine`, set aside)."""
    hops: list[str] = field(default_factory=list)
    documents: int | None = None
    """Of the kept records, those that were tokenized (the rest had no token); None: not tokenized yet."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Operator of the recipe that could not run -> why."""
    idle: list[str] = field(default_factory=list)
    """Files of the source that brought no record, as far as convert names them."""
    idle_total: int = 0

    @property
    def quarantined_total(self) -> int:
        return sum(self.quarantined.values())

    @property
    def dropped_total(self) -> int:
        return sum(self.dropped.values())

    def row(self) -> dict[str, Any]:
        """The line of summary.json."""
        return {
            "source": self.source,
            "records_in": self.records_in,
            "quarantined": self.quarantined_total,
            "dropped": {name: n for name, n in self.dropped.items() if n},
            "kept": self.kept,
        }


def collect(nodes: Nodes, sources: Mapping[str, Source], *uses: str) -> list[Funnel]:
    """The funnels of all sources with one of these uses, in the order of the profile."""
    funnels = [
        chain(name, source, accounts)
        for name, source in sources.items()
        if source.use in uses and (accounts := _accounts(nodes, name))
    ]
    for funnel in funnels:
        _check_use(funnel, nodes)
    return funnels


def chain(name: str, source: Source, accounts: list[tuple[str, dict[str, Any]]]) -> Funnel:
    """Join the accounting of consecutive hops into one funnel; NodeError when it does not add up."""
    funnel = Funnel(name, source.use, source.language)
    for index, (hop, account) in enumerate(accounts):
        records_in, kept = int(account["records_in"]), int(account["kept"])
        quarantined, dropped = account.get("quarantined", {}), _named(hop, account.get("dropped", {}))
        if records_in != kept + sum(quarantined.values()) + sum(dropped.values()):
            raise NodeError(
                f"{name}: the accounting of {hop} does not add up: {records_in} records in, "
                f"but {kept} kept + {sum(quarantined.values())} quarantined + {sum(dropped.values())} dropped"
            )
        if index == 0:
            funnel.records_in, funnel.chars_in = records_in, int(account.get("chars_in", 0))
        elif records_in != funnel.kept:
            before = accounts[index - 1][0]
            raise NodeError(f"{name}: {before} kept {funnel.kept} records, but {hop} counted {records_in} in")
        funnel.kept = kept
        # what each hop took away: hops may count the characters of a dialogue a little differently
        before = account.get("chars_in", 0) if index else 0
        funnel.chars_out += int(account.get("chars_out", 0) - before)
        _add(funnel.quarantined, quarantined)
        _add(funnel.dropped, dropped)
        _add(funnel.changed, account.get("changed", {}))
        funnel.idle += [*account.get("ignored", ()), *account.get("without_records", ())]
        funnel.idle_total += account.get("files_ignored", 0) + account.get("files_without_records", 0)
        funnel.by_hop[hop] = sum(dropped.values())
        funnel.hops.append(hop)
        funnel.skipped |= {step["operator"]: step["reason"] for step in account.get("skipped", [])}
    if funnel.records_in != funnel.quarantined_total + funnel.dropped_total + funnel.kept:
        raise NodeError(f"{name}: the data funnel does not add up")
    return funnel


def _check_use(funnel: Funnel, nodes: Nodes) -> None:
    """Whoever used the records counted those that were left; NodeError when not."""
    gone = funnel.by_hop.get("dedup", 0) + funnel.by_hop.get("decontaminate", 0)
    expected = {"records": funnel.kept + gone, "dropped": gone}
    for name, found in _uses(funnel.source, nodes):
        if found != expected:
            raise NodeError(f"{funnel.source}: {name} counted {found}, but {expected} came out of cleaning")
    tokenized = nodes.get(f"tokenize:{funnel.source}")
    if _has(tokenized, "accounting.json"):
        account = _read(tokenized, "accounting.json")
        funnel.documents = sum(int(account[split]["documents"]) for split in ("train", "val"))
        empty = int(account["dropped"].get("empty", 0))
        if funnel.documents + empty != funnel.kept:
            raise NodeError(
                f"{funnel.source}: {funnel.kept} records were kept, but {funnel.documents} were tokenized and "
                f"{empty} had no token"
            )


def _uses(source: str, nodes: Nodes) -> Iterator[tuple[str, dict[str, int]]]:
    """Every node that read the source's records: how many it found, and how many of them dropped before."""
    for name, artifact in nodes.items():
        stage, _, unit = name.partition(":")
        account = _read(artifact, "accounting.json") if _has(artifact, "accounting.json") else {}
        if stage == "tokenize" and unit == source and account:
            yield name, {"records": int(account["records_in"]), "dropped": int(account["dropped"]["drops"])}
        elif stage in ("sft", "dpo"):
            sets = account.get("sets") or artifact.manifest.get("extra", {}).get("sets", {})
            if found := sets.get(source):
                yield name, {"records": int(found["records"]), "dropped": int(found["dropped"])}


def totals(funnels: list[Funnel]) -> Funnel:
    """All sources together."""
    total = Funnel("all", "", "")
    for funnel in funnels:
        for name in ("records_in", "chars_in", "kept", "chars_out"):
            setattr(total, name, getattr(total, name) + getattr(funnel, name))
        for name in ("quarantined", "dropped", "changed", "by_hop"):
            _add(getattr(total, name), getattr(funnel, name))
        total.skipped |= funnel.skipped
    if all(funnel.documents is not None for funnel in funnels):
        total.documents = sum(funnel.documents for funnel in funnels)
    return total


def _named(hop: str, dropped: Mapping[str, int]) -> dict[str, int]:
    """Deduplication names its methods (exact, near) only; on the whole way they need its name."""
    return {f"dedup-{name}" if hop == "dedup" else name: n for name, n in dropped.items()}


def _accounts(nodes: Nodes, name: str) -> list[tuple[str, dict[str, Any]]]:
    places = (
        ("convert", nodes.get(f"convert:{name}"), "accounting.json"),
        ("clean", nodes.get(f"clean:{name}"), "accounting.json"),
        ("dedup", nodes.get("clean:dedup"), f"{name}/accounting.json"),
        ("decontaminate", nodes.get("clean:decontaminate"), f"{name}/accounting.json"),
    )
    return [(hop, _read(artifact, file)) for hop, artifact, file in places if _has(artifact, file)]


def _has(artifact: Artifact | None, file: str) -> bool:
    return artifact is not None and (artifact.path / file).is_file()


def _read(artifact: Artifact, file: str) -> dict[str, Any]:
    return artifact.read_json(file)


def _add(into: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, n in counts.items():
        into[name] = into.get(name, 0) + int(n)
