"""List a data set on ModelScope through `modelscope_hub`.

The hub tells a sha256 for what it stores in LFS; a small file without one is trusted at its first
download, like a file from the web. It tells no commit for a branch: `revision` stays as asked for.
"""

from __future__ import annotations

import os
from collections.abc import Sequence

from tasks.download.listing import Elsewhere, Listing, RemoteFile, chosen, gated
from tasks.settings.errors import NodeError, one_line

VARIABLE = "MODELSCOPE_API_TOKEN"
ENDPOINT = "MODELSCOPE_DOMAIN"
"""Where modelscope looks for the hub's host."""
BRANCH = "master"


def token() -> str | None:
    """MODELSCOPE_API_TOKEN; a stored login is not read, because the client keeps it as a pickle."""
    return os.environ.get(VARIABLE) or None


def listing(
    endpoint: str, dataset: str, patterns: Sequence[str], revision: str = "", token: str | None = None
) -> Listing:
    """The matching files. NodeError, or Elsewhere, with one clear line if it cannot be."""
    from modelscope_hub import HubApi
    from modelscope_hub.config import HubConfig
    from modelscope_hub.errors import AuthenticationError, HubError, NotExistError, PermissionDeniedError

    endpoint, revision = endpoint.rstrip("/"), revision or BRANCH
    api = HubApi(HubConfig(endpoint=endpoint, token=token or ""))
    terms = gated(dataset, f"{endpoint}/datasets/{dataset}", VARIABLE, token)
    try:
        tree = api.list_repo_files(dataset, "dataset", revision=revision)
    except (AuthenticationError, PermissionDeniedError):
        raise NodeError(terms) from None
    except NotExistError:
        raise Elsewhere(f"there is no data set {dataset} (revision {revision}) on {endpoint}") from None
    except HubError as error:
        raise Elsewhere(f"cannot list data set {dataset} on {endpoint}: {one_line(error)}") from error
    files = [
        RemoteFile(
            path=entry.path,
            size=entry.size,
            url=api.legacy.get_download_url(dataset, "dataset", entry.path, revision),
            sha256=(entry.sha256 or "").lower(),
            mark="" if entry.sha256 else entry.blob_id or "",
        )
        for entry in tree
        if not entry.is_dir
    ]
    # older routes know the cookie, newer ones the header
    headers = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
    return Listing(chosen(dataset, files, patterns, len(tree)), revision, headers, terms)
