"""Download: every data set of the run, as its hub has it, one node a source.

`hub: demo` is Steel's own world, served on loopback by tasks/world/hub.py while it is being fetched; `folder`
is taken from a local folder; `huggingface` and `modelscope` come from runtime.endpoints, `url` from
the web. All end the same way: a folder of verified files and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.download import body, local
from tasks.download.body import Settings
from tasks.settings.config import Source, SteelRun
from tasks.stage.node import Node


def nodes(config: SteelRun) -> list[Node]:
    """`download:<name>` for every source."""
    return [_node(config, name, source) for name, source in config.sources.items()]


def _node(config: SteelRun, name: str, source: Source) -> Node:
    own: dict[str, Any] = {}
    fill, external = body.hub, None
    if source.hub == "demo":
        own["world"] = config.world
        fill = body.demo
    elif source.hub == "folder":
        own["below"] = source.below or local.BELOW[source.use]
        fill = body.folder
        external = _external(config, name, source)
    elif source.hub == "url":
        own["urls"] = source.urls
        fill = body.web
    else:
        own["revision"] = source.revision
    settings = Settings(source.hub, source.dataset, source.files, source.unpack or None, **own)
    return Node(name=f"download:{name}", body=fill, config=settings, external=external, resumable=True)


def _external(config: SteelRun, name: str, source: Source) -> Callable[[], Mapping[str, str]]:
    def digests() -> Mapping[str, str]:
        below = source.below or local.BELOW[source.use]
        folder = local.folder_of(name, source.dataset, below, config.runtime.folders, source.manual)
        files = local.list_files(name, folder, source.files)
        return local.digests(folder, files, local.memo(config.runtime.artifacts, name))

    return digests
