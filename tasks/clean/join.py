"""The folders of a source's cleaned parts put together: one output, one account."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import orjson

from tasks.clean.chain import MAX_FAILED_SHARE, MAX_FAILURES
from tasks.clean.job import EXAMPLES
from tasks.records import account as accounts
from tasks.records import parts
from tasks.records.account import SourceAccount
from tasks.settings.errors import NodeError
from tasks.settings.files import link_or_copy


def join(source: str, folders: Sequence[Path], out: Path, examples: int) -> SourceAccount:
    """Link the files, add the counts, keep the first examples of each operator; returns the account."""
    shown: dict[str, list[Any]] = {}
    for number, folder in enumerate(folders):
        for stem in ("records", "dropped"):
            name = parts.name(number, stem) if len(folders) > 1 else f"{stem}.jsonl"
            link_or_copy(folder / f"{stem}.jsonl", out / name)
        for operator, some in orjson.loads((folder / EXAMPLES).read_bytes()).items():
            shown.setdefault(operator, []).extend(some)
    account = accounts.total(source, [accounts.read(folder) for folder in folders])
    accounts.write(out, account)
    _check_share(account)
    order = dict.fromkeys(f"{step['recipe']}/{step['operator']}" for step in account["steps"])
    first = {operator: shown[operator][:examples] for operator in order if operator in shown}
    (out / EXAMPLES).write_bytes(orjson.dumps(first, option=orjson.OPT_INDENT_2))
    return account


def _check_share(account: SourceAccount) -> None:
    """NodeError when operators failed on more of the whole source than happens to odd records."""
    failed, whole = sum(account["quarantined"].values()), account["records_in"]
    if failed > min(max(MAX_FAILURES, MAX_FAILED_SHARE * whole), whole / 2):
        reasons = "; ".join(f"{reason} {n:,}" for reason, n in account["quarantined"].items())
        raise NodeError(f"{account['source']}: {failed:,} of {whole:,} records are quarantined: {reasons}")
