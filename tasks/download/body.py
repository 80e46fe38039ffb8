"""The bodies of download nodes: from wherever the source lies to a folder of verified files.

There is one for each kind of hub, so that only what it runs is part of a node's code version: an edit of the demo's
world downloads nothing of another hub again. How files are fetched does not count (tasks.stage.uncounted): they
are verified against digests, so they are what the source's fields say.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from tasks.settings.config import Endpoints, WebFile, World
from tasks.settings.errors import NodeError
from tasks.stage.node import Context, Outcome

RELISTINGS = 3
"""How often a data set that changes under the download is listed anew."""


@dataclass(frozen=True, eq=False)
class Settings(Mapping[str, Any]):
    """The recipe of a node download:<source>; as a mapping it has only the fields that its hub uses."""

    hub: str
    dataset: str
    files: list[str]
    """Glob patterns."""
    unpack: list[str] | None = None
    """Glob patterns in the archives among the files."""
    world: World | None = None
    """Of the hub `demo`."""
    below: str | None = None
    """Of `folder`: which of runtime.folders."""
    urls: list[WebFile] | None = None
    """Of `url`."""
    revision: str | None = None
    """Of the others."""

    def __getitem__(self, name: str) -> Any:
        if name not in set(self):
            raise KeyError(name)
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        return (field.name for field in fields(self) if getattr(self, field.name) is not None)

    def __len__(self) -> int:
        return len(list(self))


def demo(ctx: Context) -> Outcome:
    """Steel's own world, served on loopback meanwhile."""
    return _fill(ctx, _from_world)


def folder(ctx: Context) -> Outcome:
    """Files of a local folder."""
    return _fill(ctx, _from_folder)


def web(ctx: Context) -> Outcome:
    """Files by their addresses."""
    return _fill(ctx, _from_web)


def hub(ctx: Context) -> Outcome:
    """A data set of Hugging Face or ModelScope."""
    return _fill(ctx, _from_hub)


def _fill(ctx: Context, get: Callable[[Context, Settings, str], tuple[list[str], dict]]) -> Outcome:
    """Fill ctx.out with the files of the source."""
    from tasks.download import archives
    from tasks.download.fetch import human, remove_strangers

    settings, name = ctx.config, ctx.unit
    files, extra = get(ctx, settings, name)
    if settings.unpack:
        files = archives.unpack(ctx.out, files, settings.unpack, _warning(ctx))
    remove_strangers(ctx.out, files)
    size = sum((ctx.out / file).stat().st_size for file in files)
    ctx.log.info("%s: %d files, %s", name, len(files), human(size))
    return Outcome(
        headline=f"{len(files):,} {'file' if len(files) == 1 else 'files'}, {human(size)}",
        counts={"files": len(files), "bytes": size},
        extra=extra,
        summary=f"**{name}**: {len(files):,} files, {size:,} bytes, from {_origin(ctx, extra)}",
    )


def _warning(ctx: Context) -> Callable[[str], None]:
    """Log a line about the source."""
    return lambda line: ctx.log.warning("%s: %s", ctx.unit, line)


def _from_folder(ctx: Context, settings: Settings, name: str) -> tuple[list[str], dict]:
    from tasks.download import local
    from tasks.download.disk import Reservation
    from tasks.download.fetch import check_names

    folder = local.folder_of(name, settings.dataset, settings.below, ctx.runtime.folders)
    files = local.list_files(name, folder, settings.files, _warning(ctx))
    check_names(name, files)
    with Reservation(ctx.out, sum((folder / file).stat().st_size for file in files.values())):
        expected = local.digests(folder, files, local.memo(ctx.runtime.artifacts, name))
        local.take(folder, files, expected, ctx.out, ctx.progress)
    return list(files), {}


def _from_world(ctx: Context, settings: Settings, name: str) -> tuple[list[str], dict]:
    from tasks import world
    from tasks.download import huggingface
    from tasks.world.hub import Hub

    dataset = settings.dataset
    unit = dataset.rpartition("/")[2]
    if unit not in world.names():
        raise NodeError(f"source {name}: the demo world has no data set {dataset!r}")
    with Hub(dataset, world.files(settings.world, unit)) as hub:
        listing = huggingface.listing(hub.endpoint, dataset, settings.files)
        return _fetch(ctx, name, listing)


def _from_hub(ctx: Context, settings: Settings, name: str) -> tuple[list[str], dict]:
    """From the first endpoint of the hub that can serve the data set."""
    from tasks.download import huggingface, modelscope
    from tasks.download.listing import Elsewhere, endpoints

    hub = {"huggingface": huggingface, "modelscope": modelscope}[settings.hub]
    token, problems = hub.token(), []
    configured, default = (getattr(each, settings.hub) for each in (ctx.runtime.endpoints, Endpoints()))
    for endpoint in endpoints(configured, default, hub.ENDPOINT, _warning(ctx)):

        def listed(endpoint=endpoint):
            return hub.listing(endpoint, settings.dataset, settings.files, settings.revision, token)

        try:
            files, extra = _until_stable(ctx, name, listed)
            return files, {**extra, "endpoint": endpoint}
        except Elsewhere as problem:
            ctx.log.warning("%s", problem)
            problems.append(str(problem))
    raise NodeError("; ".join(problems))


def _from_web(ctx: Context, settings: Settings, name: str) -> tuple[list[str], dict]:
    from tasks.download import web

    urls = [file.model_dump() for file in settings.urls]
    return _until_stable(ctx, name, lambda: web.listing(name, urls, settings.files))


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
    fetcher.fetch(ctx.config.dataset or name, listing, ctx.out, _earlier(ctx.out))
    new = [f for f in listing.files if not f.expected]
    trusted = {f.url: {"sha256": file_digest(ctx.out / f.path), "size": f.size} for f in new}
    first_use.note(notes, trusted)
    for url, file in trusted.items():
        ctx.log.warning("%s came without a digest and is trusted: sha256 %s", url, file["sha256"])
    if fetcher.reused:
        ctx.log.info("%s: %d files taken from earlier artifacts", name, fetcher.reused)
    extra = {"revision": listing.revision, "reused_files": fetcher.reused}
    if trusted:
        extra["trusted_at_first_use"] = trusted
    return [file.path for file in listing.files], extra


def _earlier(out: Path) -> Sequence[Path]:
    """Other artifacts and unfinished work in the store, those of the same source first, newest first."""
    source = out.name.removesuffix(".partial").rpartition("-")[0]
    others = []
    for path in out.parent.iterdir():
        try:
            if path.is_dir() and path != out and not path.name.startswith("."):
                others.append((path.name.startswith(f"{source}-"), path.stat().st_mtime, path))
        except FileNotFoundError:  # a node beside this one has just finished: it is renamed
            continue
    return [path for *_, path in sorted(others, reverse=True)]


def _origin(ctx: Context, extra: dict) -> str:
    revision = extra.get("revision")
    where = [ctx.config.hub, extra.get("endpoint", ""), f"revision {revision}" if revision else ""]
    return ", ".join(part for part in where if part)
