"""The body of a download node: from wherever the source lies to a folder of verified files.

It has a module of its own because its code is part of the node's identity, and what a line of progress
says is not: fetching is verified against digests, so the files are what the source's fields say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tasks.settings.config import Endpoints, World
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome

RELISTINGS = 3
"""How often a data set that changes under the download is listed anew."""


def body(ctx: Context) -> Outcome:
    """Fill ctx.out with the files of the source."""
    from tasks.download import archives
    from tasks.download.fetch import human, remove_strangers

    hub, name = ctx.config["hub"], ctx.name.partition(":")[2]
    how = {"demo": _from_world, "folder": _from_folder, "url": _from_web}.get(hub, _from_hub)
    files, extra = how(ctx, name)
    if ctx.config.get("unpack"):
        files = archives.unpack(
            ctx.out, files, ctx.config["unpack"], lambda line: ctx.log.warning("%s: %s", name, line)
        )
    remove_strangers(ctx.out, files)
    size = sum((ctx.out / file).stat().st_size for file in files)
    ctx.log.info("%s: %d files, %s", name, len(files), human(size))
    return Outcome(
        headline=f"{len(files):,} {'file' if len(files) == 1 else 'files'}, {human(size)}",
        counts={"files": len(files), "bytes": size},
        extra=extra,
        summary=f"**{name}**: {len(files):,} files, {size:,} bytes, from {_origin(ctx, extra)}",
    )


def _from_folder(ctx: Context, name: str) -> tuple[list[str], dict]:
    from tasks.download import local
    from tasks.download.disk import Reservation
    from tasks.download.fetch import check_names

    config = ctx.config
    folder = local.folder_of(name, config["dataset"], config["below"], ctx.runtime.folders)
    files = local.list_files(
        name, folder, config["files"], lambda line: ctx.log.warning("%s: %s", name, line)
    )
    check_names(name, files)
    with Reservation(ctx.out, sum((folder / file).stat().st_size for file in files.values())):
        expected = local.digests(folder, files, local.memo(ctx.runtime.artifacts, name))
        local.take(folder, files, expected, ctx.out, ctx.progress)
    return list(files), {}


def _from_world(ctx: Context, name: str) -> tuple[list[str], dict]:
    from tasks import world
    from tasks.download import huggingface
    from tasks.world.hub import Hub

    dataset = ctx.config["dataset"]
    unit = dataset.rpartition("/")[2]
    if unit not in world.names():
        raise NodeError(f"source {name}: the demo world has no data set {dataset!r}")
    with Hub(dataset, world.files(World(**ctx.config["world"]), unit)) as hub:
        listing = huggingface.listing(hub.endpoint, dataset, ctx.config["files"])
        return _fetch(ctx, name, listing)


def _from_hub(ctx: Context, name: str) -> tuple[list[str], dict]:
    """From the first endpoint of the hub that can serve the data set."""
    from tasks.download import huggingface, modelscope
    from tasks.download.listing import Elsewhere, endpoints

    hub = {"huggingface": huggingface, "modelscope": modelscope}[ctx.config["hub"]]
    token, problems = hub.token(), []
    configured, default = (getattr(each, ctx.config["hub"]) for each in (ctx.runtime.endpoints, Endpoints()))

    def say(line: str) -> None:
        ctx.log.warning("%s: %s", name, line)

    for endpoint in endpoints(configured, default, hub.ENDPOINT, say):

        def listed(endpoint=endpoint):
            config = ctx.config
            return hub.listing(endpoint, config["dataset"], config["files"], config["revision"], token)

        try:
            files, extra = _until_stable(ctx, name, listed)
            return files, {**extra, "endpoint": endpoint}
        except Elsewhere as problem:
            ctx.log.warning("%s", problem)
            problems.append(str(problem))
    raise NodeError("; ".join(problems))


def _from_web(ctx: Context, name: str) -> tuple[list[str], dict]:
    from tasks.download import web

    return _until_stable(ctx, name, lambda: web.listing(name, ctx.config["urls"], ctx.config["files"]))


def _until_stable(ctx: Context, name: str, listed) -> tuple[list[str], dict]:
    """List and fetch, and list again where a file changed in between."""
    from tasks.download.listing import Changed

    for round_ in range(RELISTINGS):
        try:
            return _fetch(ctx, name, listed())
        except Changed as changed:
            if round_ == RELISTINGS - 1:
                raise
            ctx.log.warning("%s: listed anew", changed)
    raise AssertionError("unreachable")


def _fetch(ctx: Context, name: str, listing) -> tuple[list[str], dict]:
    from dataclasses import replace

    from tasks.download import first_use
    from tasks.download.fetch import Fetcher
    from tasks.stage.store import file_digest

    notes = Path(ctx.runtime.artifacts) / ".cache" / f"first-use-{name}.json"
    listing = replace(listing, files=first_use.pinned(listing.files, notes))
    fetcher = Fetcher(ctx.runtime.downloads, ctx.progress, ctx.should_stop)
    fetcher.fetch(ctx.config["dataset"] or name, listing, ctx.out, _earlier(ctx.out))
    new = [f for f in listing.files if not f.expected]
    trusted = {f.url: {"sha256": file_digest(ctx.out / f.path), "size": f.size} for f in new}
    first_use.note(notes, trusted)
    for url, found in trusted.items():
        ctx.log.warning("%s came without a digest and is trusted: sha256 %s", url, found["sha256"])
    if fetcher.reused:
        ctx.log.info("%s: %d files taken from earlier artifacts", name, fetcher.reused)
    extra = {"revision": listing.revision, "reused_files": fetcher.reused}
    if trusted:
        extra["trusted_at_first_use"] = trusted
    return [file.path for file in listing.files], extra


def _earlier(out: Path) -> Sequence[Path]:
    """Other artifacts and unfinished work in the store, those of the same source first, newest first."""
    source = out.name.removesuffix(".partial").rpartition("-")[0]
    others = [p for p in out.parent.iterdir() if p.is_dir() and p != out and not p.name.startswith(".")]
    return sorted(others, key=lambda p: (p.name.startswith(f"{source}-"), p.stat().st_mtime), reverse=True)


def _origin(ctx: Context, extra: dict) -> str:
    revision = extra.get("revision")
    where = [ctx.config["hub"], extra.get("endpoint", ""), f"revision {revision}" if revision else ""]
    return ", ".join(part for part in where if part)
