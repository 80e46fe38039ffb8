"""The artifact store: immutable folders, built aside, digested, then renamed into place.

    <root>/<stage>/<name>-<fingerprint[:16]>/            finished; manifest.json written last
    <root>/<stage>/<name>-<fingerprint[:16]>.partial/    being made (kept for resuming)
    <root>/<stage>/<name>-<fingerprint[:16]>.lock        flock: one writer per fingerprint, and who it is
    <root>/<stage>/<name>-<fingerprint[:16]>.run.json    the MLflow run of the one that is being made

A half-made artifact is never seen under its final name, and a finished one is never written to.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from tasks.settings.errors import NodeError
from tasks.settings.files import write_json
from tasks.stage.fingerprint import digest
from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact

MANIFEST = "manifest.json"
_FOLDER = re.compile(r"(.+)-[0-9a-f]{16}")
_LOCK_POLL_SECONDS = 0.5
LOGS = {"metrics.jsonl", "train.log", "CONFIG.json", "now.txt"}


class Store:
    """Artifacts below one root folder."""

    def __init__(self, root: Path):
        self.root = Path(root).resolve()

    def final(self, node: str, fingerprint: str) -> Path:
        ref = NodeRef.parse(node)
        return self.root / ref.stage / f"{ref.unit or ref.stage}-{fingerprint[:16]}"

    def artifacts(self, node: str) -> Iterator[Artifact]:
        """The finished artifacts of a node, newest first; a manifest is read when its turn comes."""
        ref = NodeRef.parse(node)
        name = re.compile(rf"{re.escape(ref.unit or ref.stage)}-[0-9a-f]{{16}}")
        folders = [path for path in (self.root / ref.stage).glob("*") if name.fullmatch(path.name)]
        manifests = [path / MANIFEST for path in folders if (path / MANIFEST).is_file()]
        for path in sorted(manifests, key=lambda p: (p.stat().st_mtime_ns, p.parent.name), reverse=True):
            manifest = json.loads(path.read_text("utf-8"))
            digests = manifest["digest"], manifest["fingerprint"]
            yield Artifact(node, path.parent, *digests, manifest, manifest.get("run_id", ""), True)

    def newest(self, nodes: Iterable[str]) -> list[dict[str, Any]]:
        """The manifest of the newest finished artifact of each node that has one; one look at each stage's folder."""
        manifests = []
        wanted: dict[str, dict[str, str]] = {}
        for node in nodes:
            ref = NodeRef.parse(node)
            wanted.setdefault(ref.stage, {})[ref.unit or ref.stage] = node
        for stage, units in wanted.items():
            if not (self.root / stage).is_dir():
                continue
            newest: dict[str, tuple[int, str]] = {}
            with os.scandir(self.root / stage) as entries:
                for entry in entries:
                    match = _FOLDER.fullmatch(entry.name)
                    if match and match[1] in units:
                        age = entry.stat().st_mtime_ns, entry.name
                        newest[match[1]] = max(newest.get(match[1], age), age)
            for unit, (_, name) in newest.items():
                if manifest := _read(self.root / stage / name / MANIFEST):
                    manifests.append({**manifest, "node": units[unit]})
        return manifests

    def manifest(self, node: str, fingerprint: str) -> dict[str, Any]:
        """Of a finished artifact; empty if there is none that can be read."""
        return _read(self.final(node, fingerprint) / MANIFEST)

    def work(self, node: str, fingerprint: str) -> Path:
        path = self.final(node, fingerprint)
        return path.with_name(path.name + ".partial")

    def begin(self, node: str, fingerprint: str, run_id: str, flow_run_id: str) -> None:
        """Remember the MLflow run of what is being made, so that a later try goes on in it."""
        write_json(self._begun(node, fingerprint), {"run_id": run_id, "flow_run_id": flow_run_id})

    def begun(self, node: str, fingerprint: str) -> dict[str, Any]:
        """What `begin` wrote; empty when nothing is being made."""
        return _read(self._begun(node, fingerprint))

    def _begun(self, node: str, fingerprint: str) -> Path:
        path = self.final(node, fingerprint)
        return path.with_name(path.name + ".run.json")

    @contextlib.contextmanager
    def lock(
        self,
        node: str,
        fingerprint: str,
        owner: str = "",
        say: Callable[[str], None] = lambda text: None,
        stop: Callable[[], bool] = lambda: False,
    ) -> Iterator[bool]:
        """Hold the writer's lock; yields True if another writer had to be waited for.

        `say` is told whom it waits for, once; NodeError when `stop` says so meanwhile. The kernel releases a flock
        when its process dies, however it dies.
        """
        path = self.final(node, fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(path.name + ".lock"), "a+") as handle:
            waited = False
            while not _taken(handle):
                if not waited:
                    handle.seek(0)
                    say(
                        f"{node} waits for another writer of {path.name}: {handle.read().strip() or 'unknown'}"
                    )
                waited = True
                if stop():
                    raise NodeError(f"stopped while {node} waited for another writer of {path.name}")
                time.sleep(_LOCK_POLL_SECONDS)
            handle.truncate(0)
            handle.write(f"{owner}, process {os.getpid()} on {socket.gethostname()}".removeprefix(", "))
            handle.flush()
            try:
                yield waited
            finally:
                handle.truncate(0)

    def publish(self, node: str, fingerprint: str, fields: Mapping[str, Any]) -> dict[str, Any]:
        """Seal the work folder with a manifest and rename it into place; returns the manifest."""
        work, final = self.work(node, fingerprint), self.final(node, fingerprint)
        manifest = {**fields, "fingerprint": fingerprint, "files": list_files(work)}
        manifest["digest"] = content_digest(manifest["files"])
        write_json(work / MANIFEST, manifest)
        if final.exists():  # an altered or forced-over one: out of the way first, so that a crash leaves none
            old = final.with_name(final.name + ".old")
            shutil.rmtree(old, ignore_errors=True)
            final.rename(old)
            work.rename(final)
            shutil.rmtree(old)
        else:
            work.rename(final)
        _sync_folder(final.parent)
        self._begun(node, fingerprint).unlink(missing_ok=True)
        return manifest

    def check(
        self, node: str, fingerprint: str, expected_digest: str | None, policy: str
    ) -> tuple[dict[str, Any], str]:
        """(manifest, "") when the artifact is whole, else ({}, what is wrong with it).

        `policy` "size" compares the size of every file, "full" its sha256 too. `expected_digest` None: the
        manifest's own, which must be that of its list of files, as its node and fingerprint must be these.
        """
        path = self.final(node, fingerprint)
        try:
            manifest = json.loads((path / MANIFEST).read_text("utf-8"))
        except FileNotFoundError:
            return {}, "artifact is gone" if not path.exists() else "manifest.json is gone"
        except (OSError, ValueError) as error:
            return {}, f"manifest.json is unreadable ({error})"
        if expected_digest is None:
            if (manifest.get("node"), manifest.get("fingerprint")) != (node, fingerprint):
                return {}, "manifest.json is of another node or fingerprint"
            expected_digest = manifest.get("digest")
        if content_digest(manifest.get("files", [])) != expected_digest:
            return {}, "manifest.json does not carry the digest recorded in MLflow"
        for entry in manifest["files"]:
            file = path / entry["path"]
            if not file.is_file():
                return {}, f"{entry['path']} is missing"
            if file.stat().st_size != entry["size"]:
                return {}, f"{entry['path']} has changed size"
            if policy == "full" and file_digest(file) != entry["sha256"]:
                return {}, f"{entry['path']} has changed content"
        return manifest, ""


def _read(path: Path) -> dict[str, Any]:
    """A JSON object; empty if it is not there or not whole, which `Store.check` says in words."""
    try:
        value = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _taken(handle: IO[str]) -> bool:
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def list_files(folder: Path) -> list[dict[str, Any]]:
    """Path, size and sha256 of every file below a folder, sorted by path."""
    files = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name != MANIFEST:
            files.append(
                {
                    "path": path.relative_to(folder).as_posix(),
                    "size": path.stat().st_size,
                    "sha256": file_digest(path),
                }
            )
    return files


def content_digest(files: list[Mapping[str, Any]], below: str = "") -> str:
    """Digest of the content of an artifact, or of its part below a folder.

    Logs (clock times, absolute paths), checkpoints (one file per rank, with absolute paths) and the exports of other steps are kept
    and checked but are not content: a training that is repeated with the same weights must not rerun
    what depends on it.
    """
    prefix = f"{below}/" if below else ""
    return digest(
        [[f["path"], f["sha256"]] for f in files if f["path"].startswith(prefix) and not is_log(f["path"])]
    )


def is_log(path: str) -> bool:
    return path.startswith(("logs/", "checkpoints/", "exports/")) or path.rpartition("/")[2] in LOGS


def file_digest(path: Path) -> str:
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def _sync_folder(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
