"""Ray does what the pool does: two nodes of a cluster make the same bytes, and errors arrive as themselves."""

import logging

import pytest

from tasks.settings.config import Runtime
from tasks.stage.node import Context
from tasks.work import partitions, places, pool
from tests.support import partition_jobs
from tests.support.ray_cluster import cluster  # noqa: F401


def test_the_engine_is_runtime_and_the_default_is_the_pool():
    assert places.submit_of(None) is pool.submit
    assert places.submit_of(Runtime()) is pool.submit


def context(folder, **runtime):
    (folder / "node.partial").mkdir(parents=True, exist_ok=True)
    log = logging.getLogger("test")
    return Context("clean:x", folder / "node.partial", {}, {}, Runtime(**runtime), 1, log, None)


@pytest.mark.slow
def test_two_nodes_make_what_the_pool_makes(
    cluster,  # noqa: F811
    tmp_path,
):
    texts = ["a", "bb", "ccc", "dddd"]

    def jobs(function, *more):
        return [partitions.Job(partitions.key(function, t), function, (t, *more)) for t in texts]

    ray = context(tmp_path / "ray", engine="ray", ray_address=cluster)
    local = context(tmp_path / "local")
    try:
        folders = {
            ctx.runtime.engine: partitions.run(ctx, jobs(partition_jobs.upper, str(tmp_path / "log")))
            for ctx in (ray, local)
        }
    finally:
        pool.shutdown()
    for there, here in zip(folders["ray"], folders["local"], strict=True):
        assert there.name == here.name
        for name in ("text.txt", "sub/length.txt", "done.json"):
            assert (there / name).read_bytes() == (here / name).read_bytes()
    # both nodes have worked
    nodes = {(f / "where.txt").read_text() for f in partitions.run(ray, jobs(partition_jobs.where))}
    assert len(nodes) == 2


@pytest.mark.slow
def test_an_error_in_a_ray_worker_is_raised_as_itself(
    cluster,  # noqa: F811
    tmp_path,
):
    job = partitions.Job(partitions.key(partition_jobs.fail, "x"), partition_jobs.fail, ("x",))
    with pytest.raises(ValueError, match=r"^cannot do x$"):
        partitions.run(context(tmp_path, engine="ray", ray_address=cluster), [job])
    assert not list((tmp_path / ".partitions").iterdir())
