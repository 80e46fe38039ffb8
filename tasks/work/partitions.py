"""Partitions: finished pieces of a node's work, so that a killed node goes on with what is left.

    <artifacts>/<stage>/.partitions/<key>/            finished; done.json written last
    <artifacts>/<stage>/.partitions/<key>.*.partial/  being made; its lock is free when its maker is dead; told: its share

A key says what a piece was made from (code, settings, digests of the input), so it is found again by
whatever node needs the same piece: adding a file or a source makes only what is new. Nodes hard-link
the files of their pieces into their own folder; a piece and the artifacts it is in share their disk space.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import shutil
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tasks.settings.errors import NodeError
from tasks.settings.files import write_json
from tasks.stage import fingerprint
from tasks.stage.node import Context
from tasks.stage.store import file_digest, list_files
from tasks.work import places
from tasks.work.told import Teller

DONE = "done.json"
LOCK = ".lock"
TOLD = ".told"
"""Where a function that tells how far it is does so: told.Teller(out / TOLD)."""
POLL_SECONDS = 1.0
ABANDONED_SECONDS = 3600.0
"""A half-made piece of another key, with a free lock and unchanged for so long, is nobody's."""


@dataclass(frozen=True)
class Job:
    """One piece: `function(out, *args)` fills the empty folder `out`. Both must be importable and picklable."""

    key: str
    function: Callable[..., Any]
    args: tuple[Any, ...] = ()
    tells: bool = False
    """It says in `out / TOLD` how far it is."""


def key(function: Callable[..., Any], *made_from: Any, code: Sequence[str] = ()) -> str:
    """Address of what `function` makes from JSON-like values (settings, digests of the input).

    The code that it reaches counts, and modules named in `code` do too; paths must not be in `made_from`.
    """
    name = f"{function.__module__}.{function.__qualname__}"
    trees = fingerprint.code_digest(function, code)
    return fingerprint.digest([name, trees, list(made_from)])[:40]


def run(place: Context | Path, jobs: Sequence[Job], engine: places.Submit | None = None) -> list[Path]:
    """The finished folders of the jobs, in their order; makes those that are missing or altered.

    `place` is a running node (it gives root, engine, progress and cancellation) or the root folder.
    After a failure nothing new starts, what runs may finish, and the first error is raised.
    """
    ctx = place if isinstance(place, Context) else None
    root = place.out.parent / ".partitions" if isinstance(place, Context) else Path(place)
    log = ctx.log if ctx else logging.getLogger(__name__)
    root.mkdir(parents=True, exist_ok=True)
    wanted = {job.key: job for job in jobs}
    if engine is None:
        engine = places.submit_of(ctx.runtime if ctx else None)
    there = [key for key in wanted if (root / key).exists()]
    if ctx and ctx.forced:
        unusable = dict.fromkeys(there, "forced")
    else:
        unusable = _check(ctx, root, there, len(wanted), engine)
    for key, wrong in unusable.items():
        log.warning("partition %s is made again: %s", key, wrong)
        _remove(root / key)
    sound = set(there) - set(unusable)
    missing = [job for key, job in wanted.items() if key not in sound]
    _clear_dead(root, {job.key for job in missing})
    if len(missing) < len(wanted):
        log.info("%d of %d partitions were done before", len(wanted) - len(missing), len(wanted))
    _make(ctx, root, missing, len(wanted), engine)
    return [root / job.key for job in jobs]


def make(root: Path, key: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """Fill the folder of one piece aside and rename it into place (runs in a worker)."""
    aside = _aside(root, key)
    with open(aside / LOCK, "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            function(aside, *args)
            for said in aside.glob(f"{TOLD}*"):
                said.unlink()
            files = [entry for entry in list_files(aside) if entry["path"] != LOCK]
            write_json(aside / DONE, {"function": function.__qualname__, "files": files})
        except BaseException:
            shutil.rmtree(aside)
            raise
        try:
            aside.rename(root / key)
        except OSError:
            shutil.rmtree(aside)
            if not (root / key / DONE).exists():  # else another flow run was faster with the same piece
                raise
        else:
            (root / key / LOCK).unlink()


def _make(ctx: Context | None, root: Path, jobs: Sequence[Job], total: int, submit: places.Submit) -> None:
    before = total - len(jobs)
    telling = {job.key for job in jobs if job.tells}
    _all(
        ctx,
        [submit(make, root, job.key, job.function, job.args) for job in jobs],
        lambda made: (
            (before + made + _told(root, telling)) / total,
            f"{before + made:,} of {total:,} partitions",
        ),
        lambda made: f"{before + made:,} of {total:,} partitions are done and kept: run again to go on",
    )


def _told(root: Path, keys: set[str]) -> float:
    """Of the pieces that are being made, how many are done: the sum of the shares that were told."""
    if not keys:
        return 0.0
    told = [path for path in root.glob(f"*.partial/{TOLD}") if path.parent.name.partition(".")[0] in keys]
    return sum(Teller(path).share() for path in told)


def _check(
    ctx: Context | None, root: Path, keys: Sequence[str], total: int, submit: places.Submit
) -> dict[str, str]:
    """Key -> what is wrong, of finished pieces that cannot be used. Each is read whole: the engine's work."""
    found = _all(
        ctx,
        [submit(_wrong, root / key) for key in keys],
        lambda checked: (checked / total, f"{checked:,} of {len(keys):,} finished partitions checked"),
        lambda checked: f"{checked:,} of {len(keys):,} finished partitions were checked: run again to go on",
    )
    return {key: wrong for key, wrong in zip(keys, found, strict=True) if wrong}


def _all(
    ctx: Context | None,
    futures: Sequence[Future],
    progress: Callable[[int], tuple[float, str]],
    told: Callable[[int], str],
) -> list[Any]:
    """The results, in order; `progress` and what is `told` at a premature end are of the number finished.

    After a failure nothing new starts, what runs may finish, and the first error is raised.
    """
    order = {future: number for number, future in enumerate(futures)}
    failed: dict[int, BaseException] = {}
    finished, stopped = 0, False
    waiting = set(futures)
    said = None
    while waiting:
        if ctx and (now := progress(finished)) != said:
            ctx.progress(*now)
            said = now
        done, waiting = wait(waiting, timeout=POLL_SECONDS, return_when=FIRST_COMPLETED)
        for future in done:
            if error := future.exception():
                failed[order[future]] = error
            else:
                finished += 1
        stopped = stopped or (ctx is not None and ctx.should_stop())
        if failed or stopped:
            waiting = {future for future in waiting if not future.cancel()}
    if ctx and futures:
        ctx.progress(*progress(finished))
    left = told(finished)
    if failed:
        error = failed[min(failed)]
        if isinstance(error, BrokenProcessPool):
            raise NodeError(f"a worker process was killed; {left}") from error
        raise error
    if stopped:
        raise NodeError(f"stopped; {left}")
    return [future.result() for future in futures]


def _wrong(folder: Path) -> str:
    """What is wrong with a finished piece; "missing" if there is none.

    Digests always count here, whatever `runtime.verify` says: the artifact that a piece is linked into is sealed
    anew, and would give altered bytes a valid manifest.
    """
    try:
        files = json.loads((folder / DONE).read_text("utf-8"))["files"]
    except FileNotFoundError:
        return "missing"
    except (ValueError, KeyError, TypeError) as error:
        return f"{DONE} is unreadable ({error})"
    for entry in files:
        path = folder / entry["path"]
        if not path.is_file():
            return f"{entry['path']} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{entry['path']} has changed size"
        if file_digest(path) != entry["sha256"]:
            return f"{entry['path']} has changed content"
    return ""


def _aside(root: Path, name: str) -> Path:
    """A new folder of the maker's own. The umask decides who may read it: it is renamed into a shared place."""
    aside = root / f"{name}.{os.urandom(6).hex()}.partial"
    aside.mkdir()
    return aside


def _remove(final: Path) -> None:
    """Take an unusable piece away; it is never seen half gone under its name."""
    aside = _aside(final.parent, final.name)
    final.rename(aside / "old")
    shutil.rmtree(aside)


def _clear_dead(root: Path, keys: set[str]) -> None:
    """Remove what makers that no longer live have left of these pieces, and of any other a good while ago.

    A maker's folder is there for a moment before its lock is held, and so is one that is being removed: those
    of other pieces may be the work of another node at this very moment.
    """
    for aside in root.glob("*.partial"):
        try:
            ours = aside.name.partition(".")[0] in keys
            if not ours and time.time() - aside.stat().st_mtime < ABANDONED_SECONDS:
                continue
            with open(aside / LOCK, "wb") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(aside)
        except (BlockingIOError, FileNotFoundError):  # at work, or renamed just now
            continue
