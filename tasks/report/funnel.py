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
from tasks.records import account
from tasks.records.account import SourceAccount, TokenizeAccount, kept_of
from tasks.settings.config import Source
from tasks.settings.errors import NodeError
from tasks.stage.names import stage_of, unit_of
from tasks.stage.node import Artifact


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


def chain(name: str, source: Source, accounts: list[tuple[str, SourceAccount]]) -> Funnel:
    """Join the accounts of consecutive hops into one funnel; NodeError when it does not add up."""
    funnel = Funnel(name, source.use, source.language)
    for index, (hop, counted) in enumerate(accounts):
        records_in, kept = counted["records_in"], counted["kept"]
        quarantined, dropped = counted["quarantined"], _named(hop, counted["dropped"])
        lost = {"quarantined": sum(quarantined.values()), "dropped": sum(dropped.values())}
        account.balance(f"{name}, {hop}", "records", records_in, kept, **lost)
        if index == 0:
            funnel.records_in, funnel.chars_in = records_in, counted["chars_in"]
        elif records_in != funnel.kept:
            earlier = accounts[index - 1][0]
            raise NodeError(
                f"{name}: {earlier} kept {funnel.kept} records, but {hop} counted {records_in} in"
            )
        funnel.kept = kept
        # what each hop took away: hops may count the characters of a dialogue a little differently
        before = counted["chars_in"] if index else 0
        funnel.chars_out += counted["chars_out"] - before
        _add(funnel.quarantined, quarantined)
        _add(funnel.dropped, dropped)
        _add(funnel.changed, counted["changed"])
        funnel.idle += [*counted.get("ignored", ()), *counted.get("without_records", ())]
        funnel.idle_total += counted.get("files_ignored", 0) + counted.get("files_without_records", 0)
        funnel.by_hop[hop] = sum(dropped.values())
        funnel.hops.append(hop)
        funnel.skipped |= {step["operator"]: step["reason"] for step in counted.get("skipped", [])}
    if funnel.records_in != funnel.quarantined_total + funnel.dropped_total + funnel.kept:
        raise NodeError(f"{name}: the data funnel does not add up")
    return funnel


def _check_use(funnel: Funnel, nodes: Nodes) -> None:
    """Whoever used the records counted those that were left; NodeError when not."""
    gone = funnel.by_hop.get("dedup", 0) + funnel.by_hop.get("decontaminate", 0)
    expected = {"records": funnel.kept + gone, "dropped": gone}
    for name, counted in _uses(funnel.source, nodes):
        if counted != expected:
            raise NodeError(f"{funnel.source}: {name} counted {counted}, but {expected} came out of cleaning")
    if _has(tokenized := nodes.get(f"tokenize:{funnel.source}")):
        used: TokenizeAccount = account.read(tokenized.path)
        funnel.documents, empty = kept_of(used), used["dropped"]["empty"]
        if funnel.documents + empty != funnel.kept:
            raise NodeError(
                f"{funnel.source}: {funnel.kept} records were kept, but {funnel.documents} were tokenized and "
                f"{empty} had no token"
            )


def _uses(source: str, nodes: Nodes) -> Iterator[tuple[str, dict[str, int]]]:
    """Every node that read the source's records: how many it counted, and how many of them dropped before."""
    for name, artifact in nodes.items():
        stage, unit = stage_of(name), unit_of(name)
        if stage == "tokenize" and unit == source and _has(artifact):
            counted: TokenizeAccount = account.read(artifact.path)
            yield name, {"records": counted["records_in"], "dropped": counted["dropped"]["drops"]}
        elif stage in ("sft", "dpo", "rl"):
            sets = account.read(artifact.path).get("sets") if _has(artifact) else None
            sets = sets or artifact.manifest.get("extra", {}).get("sets", {})
            if one := sets.get(source):
                yield name, {"records": one["records"], "dropped": one["dropped"]}


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


def _accounts(nodes: Nodes, name: str) -> list[tuple[str, SourceAccount]]:
    places = (
        ("convert", nodes.get(f"convert:{name}"), ""),
        ("clean", nodes.get(f"clean:{name}"), ""),
        ("dedup", nodes.get("clean:dedup"), name),
        ("decontaminate", nodes.get("clean:decontaminate"), name),
    )
    return [
        (hop, account.read(artifact.path / below)) for hop, artifact, below in places if _has(artifact, below)
    ]


def _has(artifact: Artifact | None, below: str = "") -> bool:
    """Whether the artifact, or a folder of it, has an account."""
    return artifact is not None and (artifact.path / below / account.FILE).is_file()


def _add(into: dict[str, int], counts: Mapping[str, int]) -> None:
    for name, n in counts.items():
        into[name] = into.get(name, 0) + n
