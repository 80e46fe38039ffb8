"""The artifact store: immutable folders, built aside, digested, then renamed into place.

    <root>/<stage>/<name>-<fingerprint[:16]>/            finished; manifest.json written last
    <root>/<stage>/<name>-<fingerprint[:16]>.partial/    being made (kept for resuming)
    <root>/<stage>/<name>-<fingerprint[:16]>.lock        flock: one writer per fingerprint

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
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tasks.settings.files import write_json
from tasks.stage.fingerprint import digest
from tasks.stage.names import NodeRef
from tasks.stage.node import Artifact

MANIFEST = "manifest.json"
LOGS = {"metrics.jsonl", "train.log", "CONFIG.json"}


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

    def work(self, node: str, fingerprint: str) -> Path:
        path = self.final(node, fingerprint)
        return path.with_name(path.name + ".partial")

    @contextlib.contextmanager
    def lock(self, node: str, fingerprint: str) -> Iterator[bool]:
        """Hold the writer's lock; yields True if another writer had to be waited for.

        The kernel releases a flock when its process dies, however it dies.
        """
        path = self.final(node, fingerprint)
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path.with_name(path.name + ".lock"), "w") as handle:
            waited = False
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waited = True
                fcntl.flock(handle, fcntl.LOCK_EX)
            yield waited

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
