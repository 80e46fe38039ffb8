"""Whether a server answers, asked without any proxy."""

from __future__ import annotations

import urllib.error
import urllib.request

from flows.settings import Addresses
from tasks.settings.errors import one_line

_DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def address(name: str, at: Addresses) -> str:
    """Where `prefect` or `mlflow` says that it is well."""
    return f"{at.api if name == 'prefect' else at.mlflow}/health"


def problem(url: str) -> str:
    """Why a server does not answer; "" if it does."""
    try:
        with _DIRECT.open(url, timeout=5) as reply:
            return "" if reply.status == 200 else f"HTTP {reply.status}"
    except (urllib.error.URLError, OSError) as error:
        return one_line(error)
