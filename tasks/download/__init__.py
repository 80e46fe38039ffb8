"""Download: every data set of the run, as its hub has it, one node a source.

`hub: demo` is Steel's own world, served on loopback by hub.py while it is being fetched; `folder`
is taken from a local folder; `huggingface` comes from runtime.hub_endpoint. All end the same way:
a folder of verified files and nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from tasks.config import Source, SteelRun, World
from tasks.download import local
from tasks.node import Context, Node, NodeError, Outcome


def nodes(config: SteelRun) -> list[Node]:
    """`download:<name>` for every source."""
    return [_node(config, name, source) for name, source in config.sources.items()]


def body(ctx: Context) -> Outcome:
    """Fill ctx.out with the files of the source."""
    from tasks.download.fetch import remove_strangers

    name = ctx.name.partition(":")[2]
    how = {"demo": _from_world, "folder": _from_folder, "huggingface": _from_hub}[ctx.config["hub"]]
    files, extra = how(ctx, name)
    remove_strangers(ctx.out, files)
    size = sum((ctx.out / file).stat().st_size for file in files)
    ctx.log.info("%s: %d files, %s", name, len(files), _megabytes(size))
    return Outcome(
        headline=f"{len(files):,} {'file' if len(files) == 1 else 'files'}, {_megabytes(size)}",
        counts={"files": len(files), "bytes": size},
        extra=extra,
        summary=f"**{name}**: {len(files):,} files, {size:,} bytes, from {ctx.config['hub']}",
    )


def _node(config: SteelRun, name: str, source: Source) -> Node:
    slice_ = {"hub": source.hub, "dataset": source.dataset, "files": source.files}
    external, code = None, ()
    if source.hub == "demo":
        slice_["world"] = config.world.model_dump()
        # fetching is verified against digests, so only the world decides what arrives
        code = ("tasks.download.world",)
    elif source.hub == "folder":
        slice_["below"] = source.below or local.BELOW[source.use]
        external = _external(config, name, source)
    else:
        slice_["revision"] = source.revision
    return Node(
        name=f"download:{name}", body=body, config=slice_, external=external, code=code, resumable=True
    )


def _external(config: SteelRun, name: str, source: Source) -> Callable[[], Mapping[str, str]]:
    def digests() -> Mapping[str, str]:
        below = source.below or local.BELOW[source.use]
        folder = local.folder_of(name, source.dataset, below, config.runtime.folders)
        files = local.list_files(name, folder, source.files)
        return local.digests(folder, files, _memo(config.runtime.artifacts, name))

    return digests


def _memo(artifacts: Path, name: str) -> Path:
    return Path(artifacts) / ".cache" / f"digests-{name}.json"


def _from_folder(ctx: Context, name: str) -> tuple[list[str], dict]:
    from tasks.download.fetch import check_names, check_space

    config = ctx.config
    folder = local.folder_of(name, config["dataset"], config["below"], ctx.runtime.folders)
    files = local.list_files(name, folder, config["files"])
    check_names(name, files)
    check_space(ctx.out, sum((folder / file).stat().st_size for file in files))
    expected = local.digests(folder, files, _memo(ctx.runtime.artifacts, name))
    local.take(folder, expected, ctx.out, ctx.progress)
    return files, {}


def _from_world(ctx: Context, name: str) -> tuple[list[str], dict]:
    from tasks.download import world
    from tasks.download.hub import Hub

    dataset = ctx.config["dataset"]
    unit = dataset.rpartition("/")[2]
    if unit not in world.names():
        raise NodeError(f"source {name}: the demo world has no data set {dataset!r}")
    with Hub(dataset, world.files(World(**ctx.config["world"]), unit)) as hub:
        return _fetch(ctx, hub.endpoint, "main", None)


def _from_hub(ctx: Context, name: str) -> tuple[list[str], dict]:
    token = os.environ.get("HF_TOKEN") or None
    return _fetch(ctx, ctx.runtime.hub_endpoint.rstrip("/"), ctx.config["revision"], token)


def _fetch(ctx: Context, endpoint: str, revision: str, token: str | None) -> tuple[list[str], dict]:
    from tasks.download.fetch import Fetcher
    from tasks.download.listing import listing

    dataset = ctx.config["dataset"]
    commit, files = listing(endpoint, dataset, ctx.config["files"], revision, token)
    fetcher = Fetcher(endpoint, token, progress=ctx.progress, should_stop=ctx.should_stop)
    fetcher.fetch(dataset, commit, files, ctx.out)
    return [file.path for file in files], {"revision": commit}


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 50_000 else f"{size / 1e3:.1f} kB"
