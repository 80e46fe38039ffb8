"""List a data set on a hub through `huggingface_hub`: which files, how large, with which digests."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from tasks.download.patterns import matching
from tasks.node import NodeError

LOOPBACK = ("127.0.0.1", "localhost")
TIMEOUT = 60.0

_lock = threading.Lock()
_client_is_set = False


@dataclass(frozen=True)
class RemoteFile:
    """A file as the hub lists it."""

    path: str
    size: int
    sha256: str | None
    """Of LFS files."""
    blob: str
    """Git's sha1 of the blob; of an LFS file it is the pointer's."""

    def digest(self) -> Any:
        """A fresh hash, to be fed with the content and compared with `expected`."""
        return hashlib.sha256() if self.sha256 else hashlib.sha1(b"blob %d\0" % self.size)

    @property
    def expected(self) -> str:
        return self.sha256 or self.blob


def listing(
    endpoint: str, dataset: str, patterns: Sequence[str], revision: str = "main", token: str | None = None
) -> tuple[str, list[RemoteFile]]:
    """(commit, the matching files sorted by path). NodeError with one clear line if it cannot be."""
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    _set_client()
    api = HfApi(endpoint=endpoint, token=token or False)
    try:
        commit = api.dataset_info(dataset, revision=revision).sha
        tree = list(api.list_repo_tree(dataset, recursive=True, revision=commit, repo_type="dataset"))
    except GatedRepoError:
        raise NodeError(gated(dataset, endpoint, token)) from None
    except RevisionNotFoundError:
        raise NodeError(f"data set {dataset} on {endpoint} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        hint = "" if token else ", or it is private and HF_TOKEN is not set"
        raise NodeError(f"there is no data set {dataset} on {endpoint}{hint}") from None
    except (HfHubHTTPError, HFValidationError, OfflineModeIsEnabled, httpx2.TransportError) as error:
        raise NodeError(f"cannot list data set {dataset} on {endpoint}: {one_line(error)}") from error
    files = [
        RemoteFile(entry.path, entry.size, entry.lfs.sha256 if entry.lfs else None, entry.blob_id)
        for entry in tree
        if hasattr(entry, "blob_id") and matching(entry.path, patterns)
    ]
    if not files:
        raise NodeError(
            f"data set {dataset} has {len(tree)} entries, but none matches files: {', '.join(patterns)}"
        )
    return commit, sorted(files, key=lambda file: file.path)


def gated(dataset: str, endpoint: str, token: str | None) -> str:
    """What to do about a data set that must be asked for."""
    terms = f"accept its terms at {endpoint}/datasets/{dataset}"
    if token:
        return f"data set {dataset} is gated and HF_TOKEN has no access to it: {terms} with that account"
    return f"data set {dataset} is gated: {terms}, then set HF_TOKEN to an access token of that account"


def one_line(error: BaseException) -> str:
    """An error's message without its line breaks."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _set_client() -> None:
    """Give huggingface_hub a client for which a hub on loopback is no network.

    Its own refuses loopback when HF_HUB_OFFLINE is set, sends it to the environment's proxy, and
    waits for ever.
    """
    import httpx2
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refuse_offline(request: httpx2.Request) -> None:
        if constants.is_offline_mode() and request.url.host not in LOOPBACK:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")

    def client() -> httpx2.Client:
        return httpx2.Client(
            event_hooks={"request": [refuse_offline]},
            follow_redirects=True,
            timeout=TIMEOUT,
            mounts={f"all://{host}": None for host in LOOPBACK},
        )

    global _client_is_set
    with _lock:
        if not _client_is_set:
            set_client_factory(client)
            _client_is_set = True
