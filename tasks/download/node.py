"""Download: every data set of the run, as its hub has it, one node a source.

`hub: demo` is Steel's own world, served on loopback by hub.py while it is being fetched; `folder`
is taken from a local folder; `huggingface` and `modelscope` come from runtime.endpoints, `url` from
the web. All end the same way: a folder of verified files and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tasks.download import local
from tasks.download.body import body
from tasks.settings.config import Source, SteelRun
from tasks.stage.node import Node


def nodes(config: SteelRun) -> list[Node]:
    """`download:<name>` for every source."""
    return [_node(config, name, source) for name, source in config.sources.items()]


def _node(config: SteelRun, name: str, source: Source) -> Node:
    slice_: dict[str, Any] = {"hub": source.hub, "dataset": source.dataset, "files": source.files}
    external = None
    code: tuple[str, ...] = ()
    if source.unpack:
        slice_["unpack"] = source.unpack
    if source.hub == "demo":
        slice_["world"] = config.world.model_dump()
        code = ("tasks.world",)
    elif source.hub == "folder":
        slice_["below"] = source.below or local.BELOW[source.use]
        external = _external(config, name, source)
    elif source.hub == "url":
        slice_["urls"] = [file.model_dump() for file in source.urls]
    else:
        slice_["revision"] = source.revision
    return Node(
        name=f"download:{name}", body=body, config=slice_, external=external, code=code, resumable=True
    )


def _external(config: SteelRun, name: str, source: Source) -> Callable[[], Mapping[str, str]]:
    def digests() -> Mapping[str, str]:
        below = source.below or local.BELOW[source.use]
        folder = local.folder_of(name, source.dataset, below, config.runtime.folders, source.manual)
        files = local.list_files(name, folder, source.files)
        return local.digests(folder, files, local.memo(config.runtime.artifacts, name))

    return digests
