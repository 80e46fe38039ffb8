"""Push to ModelScope through `modelscope_hub`. Its client makes a missing repository public: it is made here first."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from tasks.download.modelscope import BRANCH, VARIABLE, token
from tasks.push.folder import Parcel
from tasks.push.huggingface import guard
from tasks.push.target import PushFailed, Target, without_secret
from tasks.settings.errors import NodeError, one_line


def endpoint() -> str:
    """MODELSCOPE_ENDPOINT (or the older MODELSCOPE_DOMAIN), or the Chinese site."""
    from modelscope_hub.config import HubConfig

    return str(HubConfig().endpoint)


def push(parcel: Parcel, target: Target, *, public: bool, message: str) -> str:
    """As huggingface.push."""
    from modelscope_hub.errors import (
        AuthenticationError,
        HubError,
        InvalidParameter,
        PermissionDeniedError,
    )

    secret = token()
    if not secret:
        raise NodeError(f"{VARIABLE} is not set: a token that may write is needed")
    guard(endpoint(), VARIABLE)
    try:
        return _push(parcel, target, secret, public, message)
    except NodeError:
        raise
    except (AuthenticationError, PermissionDeniedError, InvalidParameter) as error:
        text = without_secret(one_line(error), secret)
        raise NodeError(f"{endpoint()} refused: {text}; does {VARIABLE} belong to {target.name}?") from None
    except (HubError, OSError, ValueError, RuntimeError) as error:
        text = without_secret(one_line(error), secret)
        raise PushFailed(f"the push to {endpoint()} broke off: {text}; push again, it goes on") from None


def _push(parcel: Parcel, target: Target, secret: str, public: bool, message: str) -> str:
    from modelscope_hub import HubApi
    from modelscope_hub.config import HubConfig
    from modelscope_hub.constants import Visibility
    from modelscope_hub.errors import NotExistError

    api = HubApi(HubConfig(endpoint=endpoint(), token=secret))
    api.whoami()
    new = False
    try:
        info = api.get_repo(target.name, "model")
    except NotExistError:
        visibility = "public" if public else "private"
        api.create_repo(target.name, "model", visibility=visibility, license=parcel.licence)
        info, new = api.get_repo(target.name, "model"), True
    private = info.visibility == Visibility.PRIVATE
    if not private and not public:
        how = "was made public, though private was asked for" if new else "is public already"
        raise NodeError(f"{target} {how}: nothing was sent; PUBLIC=1 says that everybody may see it")
    remark = f"{'private' if private else 'public'}{', new' if new else ' as before'}"
    there = {} if new else _listed(api, target)
    changed = [file for file in parcel.files if there.get(file.path) != file.sha256]
    address = f"{endpoint()}/models/{target.name}"
    if not changed:
        return f"nothing to do: {address} has these {len(parcel.files)} files already ({remark})"
    with tempfile.TemporaryDirectory(prefix="steel-push-") as made:
        for file in changed:
            place = Path(made) / file.path
            place.parent.mkdir(parents=True, exist_ok=True)
            if isinstance(file.content, Path):
                place.symlink_to(file.content.resolve())
            else:
                place.write_bytes(file.content)
        api.upload_folder(
            target.name, "model", made, commit_message=message, revision=BRANCH, use_cache=False, disable_tqdm=True
        )  # fmt: skip
    there = _listed(api, target)  # the client goes on past a file that failed
    if lost := [file.path for file in changed if there.get(file.path) not in (file.sha256, "")]:
        raise PushFailed(f"{address} has not taken {', '.join(lost)}: push again")
    same = len(parcel.files) - len(changed)
    return f"pushed {len(changed)} files ({same} were there already) to {address} ({remark})"


def _listed(api: Any, target: Target) -> dict[str, str]:
    """Path -> sha256; "" where the hub tells none."""
    files = api.list_repo_files(target.name, "model", revision=BRANCH)
    return {entry.path: (entry.sha256 or "").lower() for entry in files if not entry.is_dir}
