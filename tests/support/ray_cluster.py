"""A Ray cluster of two nodes on this machine."""

from __future__ import annotations

import os

import pytest

from tasks.work import places


@pytest.fixture(scope="module")
def cluster():
    """Two Ray nodes of one core each, on this machine."""
    os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 1, "include_dashboard": False, "object_store_memory": 80 << 20}
    made = Cluster(initialize_head=True, head_node_args=node)
    try:
        made.add_node(**node)
        made.wait_for_nodes()
        yield made.address
    finally:
        places.shutdown()
        made.shutdown()
