"""Which MLflow runs belong to the nodes of a graph.

Folders of the store name their runs, and MLflow is asked for these ids alone. So the cost follows the graph,
not the history: a look-up of every node run ever made took 20 s at 10,000 runs.
"""

from __future__ import annotations

from collections.abc import Iterable

from tasks.stage.store import Store
from tasks.stage.tracking import Record, Tracker


class Lookup:
    """Records by fingerprint, each asked for once."""

    def __init__(self, tracker: Tracker, store: Store, nodes: Iterable[str]):
        self._tracker, self._store = tracker, store
        self._records: dict[str, list[Record]] = {}
        # one question for what a rerun will most likely want: the newest artifact of each node
        newest = [m for m in store.newest(nodes) if not store.begun(m["node"], m["fingerprint"])]
        known = {record.run_id: record for record in tracker.runs(m["run_id"] for m in newest)}
        for manifest in newest:
            record = known.get(manifest["run_id"])
            if record and (record.status, record.fingerprint) == ("FINISHED", manifest["fingerprint"]):
                self._records[record.fingerprint] = [record]

    def of(self, node: str, fingerprint: str) -> list[Record]:
        """The runs of a fingerprint that has a folder here, finished or not; none without a folder."""
        if fingerprint not in self._records:
            self._records[fingerprint] = self._ask(node, fingerprint)
        return self._records[fingerprint]

    def again(self, node: str, fingerprint: str) -> None:
        """Another process may have finished it since: ask anew."""
        self._records[fingerprint] = self._tracker.patiently(
            lambda: self._ask(node, fingerprint), "a look-up"
        )

    def last(self, node: str, profile: str) -> Record | None:
        """The newest finished run of a node: of this profile, else of any."""
        return self._tracker.last(node, profile) or self._tracker.last(node)

    def _ask(self, node: str, fingerprint: str) -> list[Record]:
        manifest, begun = self._store.manifest(node, fingerprint), self._store.begun(node, fingerprint)
        ids = [run for run in (manifest.get("run_id"), begun.get("run_id")) if run]
        records = [r for r in self._tracker.runs(ids) if r.fingerprint == fingerprint]
        sealed, half = bool(manifest), self._store.work(node, fingerprint).exists()
        finished = any(record.status == "FINISHED" for record in records)
        if (sealed and not finished) or (half and not begun):
            return self._tracker.find(
                fingerprint
            )  # its own run was deleted, or the folder is of an older version
        return records
