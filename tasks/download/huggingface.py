"""List a data set on a Hugging Face hub, or a mirror of one, through `huggingface_hub`."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

from tasks.download.listing import (
    RETRY_STATUS,
    Elsewhere,
    Listing,
    RemoteFile,
    chosen,
    gated,
    pause,
)
from tasks.settings import loopback
from tasks.settings.errors import NodeError, one_line

VARIABLE = "HF_TOKEN"
ENDPOINT = "HF_ENDPOINT"
"""Where huggingface_hub looks for the hub's address; of a mirror, mostly."""
BRANCH = "main"
TIMEOUT = 60.0
ATTEMPTS = 4
"""Of a listing that fails for a reason that may pass."""

_lock = threading.Lock()
_client_is_set = False


def token() -> str | None:
    """HF_TOKEN, or what `hf auth login` stored; None with HF_HUB_DISABLE_IMPLICIT_TOKEN."""
    from huggingface_hub import constants, get_token

    return None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()


def listing(
    endpoint: str,
    dataset: str,
    patterns: Sequence[str],
    revision: str = "",
    token: str | None = None,
    sleep: Callable[[float], None] = pause,
) -> Listing:
    """The matching files at one commit. NodeError, or Elsewhere, with one clear line if it cannot be."""
    from huggingface_hub import HfApi, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    set_client()
    endpoint = endpoint.rstrip("/")
    api = HfApi(endpoint=endpoint, token=token or False)
    terms = gated(dataset, f"{endpoint}/datasets/{dataset}", VARIABLE, token)

    def ask() -> tuple[str, list]:
        commit = api.dataset_info(dataset, revision=revision or BRANCH).sha
        return commit, list(api.list_repo_tree(dataset, recursive=True, revision=commit, repo_type="dataset"))

    try:
        commit, tree = _persistently(ask, dataset, endpoint, sleep)
    except GatedRepoError:
        raise NodeError(terms) from None
    except RevisionNotFoundError:
        raise Elsewhere(f"data set {dataset} on {endpoint} has no revision {revision!r}") from None
    except RepositoryNotFoundError:
        hint = "" if token else f", or it is private and {VARIABLE} is not set"
        raise Elsewhere(f"there is no data set {dataset} on {endpoint}{hint}") from None
    except (HFValidationError, OfflineModeIsEnabled) as error:
        raise NodeError(f"cannot list data set {dataset} on {endpoint}: {one_line(error)}") from error
    files = [
        RemoteFile(
            path=entry.path,
            size=entry.size,
            url=hf_hub_url(dataset, entry.path, repo_type="dataset", revision=commit, endpoint=endpoint),
            sha256=entry.lfs.sha256 if entry.lfs else "",
            blob="" if entry.lfs else entry.blob_id,
        )
        for entry in tree
        if hasattr(entry, "blob_id")
    ]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    return Listing(chosen(dataset, files, patterns, len(tree)), commit, headers, terms)


def _persistently(
    ask: Callable[[], tuple[str, list]], dataset: str, endpoint: str, sleep: Callable[[float], None]
) -> tuple[str, list]:
    import httpx2  # the HTTP client of huggingface_hub
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    for attempt in range(ATTEMPTS):
        try:
            return ask()
        except (GatedRepoError, RepositoryNotFoundError, RevisionNotFoundError, OfflineModeIsEnabled):
            raise
        except (HfHubHTTPError, httpx2.TransportError) as error:
            status = getattr(getattr(error, "response", None), "status_code", None)
            if attempt == ATTEMPTS - 1 or (status is not None and status not in RETRY_STATUS):
                raise Elsewhere(f"cannot list data set {dataset} on {endpoint}: {one_line(error)}") from error
            sleep(2.0**attempt)
    raise AssertionError("unreachable")


def set_client() -> None:
    """Give huggingface_hub a client for which a hub on loopback is no network.

    Its own refuses loopback when HF_HUB_OFFLINE is set, sends it to the environment's proxy, and
    waits for ever.
    """
    import httpx2
    from huggingface_hub import constants, set_client_factory
    from huggingface_hub.errors import OfflineModeIsEnabled

    def refuse_offline(request: httpx2.Request) -> None:
        if constants.is_offline_mode() and request.url.host not in loopback.HOSTS:
            raise OfflineModeIsEnabled("HF_HUB_OFFLINE is set")

    def client() -> httpx2.Client:
        return httpx2.Client(
            event_hooks={"request": [refuse_offline]},
            follow_redirects=True,
            timeout=TIMEOUT,
            mounts={f"all://[{host}]" if ":" in host else f"all://{host}": None for host in loopback.HOSTS},
        )

    global _client_is_set
    with _lock:
        if not _client_is_set:
            set_client_factory(client)
            _client_is_set = True
