"""Push to a Hugging Face hub: one commit through `huggingface_hub`, and none where the bytes are there already."""

from __future__ import annotations

import io
from pathlib import Path
from urllib.parse import urlsplit

from tasks.download.huggingface import VARIABLE, set_client, token
from tasks.push.folder import File, Parcel
from tasks.push.target import PushFailed, Target, without_secret
from tasks.settings import loopback
from tasks.settings.errors import NodeError, one_line

BRANCH = "main"


def endpoint() -> str:
    """HF_ENDPOINT, or the hub itself."""
    from huggingface_hub import constants

    return constants.ENDPOINT.rstrip("/")


def push(parcel: Parcel, target: Target, *, public: bool, message: str) -> str:
    """Create the repository if it is not there, and commit what differs. Gives one line that says what was done.

    NodeError: something to correct first; PushFailed: the hub or the network failed. No message holds the token.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    secret = token()
    if not secret:
        raise NodeError(f"{VARIABLE} is not set, and no login is stored: a token that may write is needed")
    guard(endpoint(), VARIABLE)
    try:
        return _push(parcel, target, secret, public, message)
    except NodeError:
        raise
    except OfflineModeIsEnabled:
        raise NodeError("HF_HUB_OFFLINE is set: nothing can be pushed") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        text = f"{endpoint()} refused: {without_secret(one_line(error), secret)}"
        if status in (401, 403):
            raise NodeError(f"{text}; does {VARIABLE} belong to {target.name}, and may it write?") from None
        if status is not None and 400 <= status < 500 and status not in (408, 412, 429):
            raise NodeError(text) from None
        raise PushFailed(f"{text}; nothing was committed: push again") from None
    except (httpx2.TransportError, OSError, ValueError, RuntimeError) as error:
        # RuntimeError: of the program that moves large files (Xet); ValueError: an answer that is none
        text = without_secret(one_line(error), secret)
        raise PushFailed(f"the push to {endpoint()} broke off: {text}; push again, it goes on") from None


def guard(address: str, variable: str) -> None:
    """NodeError where a token would go over the network in the clear."""
    parts = urlsplit(address)
    if parts.scheme != "https" and parts.hostname not in loopback.HOSTS:
        raise NodeError(f"{address} is not https: {variable} would go there in the clear")


def _push(parcel: Parcel, target: Target, secret: str, public: bool, message: str) -> str:
    from huggingface_hub import CommitOperationAdd, HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    set_client()
    api = HfApi(endpoint=endpoint(), token=secret)
    api.whoami()  # a wrong token is told from a missing repository only here
    new = False
    try:
        info = api.model_info(target.name, files_metadata=True)
    except RepositoryNotFoundError:
        api.create_repo(target.name, private=not public)
        info, new = api.model_info(target.name, files_metadata=True), True
    if not info.private and not public:
        how = "was made public, though private was asked for" if new else "is public already"
        raise NodeError(f"{target} {how}: nothing was sent; PUBLIC=1 says that everybody may see it")
    remark = f"{'private' if info.private else 'public'}{', new' if new else ' as before'}"
    there = {one.rfilename: one.lfs.sha256 if one.lfs else one.blob_id for one in info.siblings or ()}
    changed = [file for file in parcel.files if there.get(file.path) not in (file.sha256, file.blob)]
    address = f"{endpoint()}/{target.name}"
    if not changed:
        return (
            f"nothing to do: {address} has these {len(parcel.files)} files already, at {info.sha} ({remark})"
        )
    operations = [CommitOperationAdd(file.path, _content(file)) for file in changed]
    done = api.create_commit(
        target.name,
        operations,
        commit_message=message,
        revision=BRANCH,
        parent_commit=info.sha,
        num_threads=4,
    )
    same = len(parcel.files) - len(changed)
    more = sorted(there.keys() - {file.path for file in parcel.files} - {".gitattributes"})
    kept = f"; stays there, as no file of the folder: {', '.join(more)}" if more else ""
    return f"pushed {len(changed)} files ({same} were there already) to {address} ({remark}), commit {done.oid}{kept}"


def _content(file: File) -> Path | bytes | io.BufferedIOBase:
    return str(file.content) if isinstance(file.content, Path) else file.content  # type: ignore[return-value]
