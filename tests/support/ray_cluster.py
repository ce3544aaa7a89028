"""A Ray cluster of several nodes on this machine, each with processes and an object store of its own."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
from ray.cluster_utils import Cluster

ROOT = Path(__file__).parent.parent.parent
STORE_BYTES = 100 * 2**20
# A node that does not answer is dead after 2 seconds, not 15.
SOON_DEAD = {"health_check_period_ms": 500, "health_check_failure_threshold": 4}


@contextmanager
def ray_cluster(n_cpus: int, n_nodes: int = 2) -> Iterator[Cluster]:
    """A cluster of nodes with so many CPUs each, as far as Ray knows; this process is its driver."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_worker_niceness", "0")  # not 15: pytest runs beside it
        patch.setenv("RAY_memory_monitor_refresh_ms", "0")  # memory that others take ends no worker of ours
        patch.setenv("PYTHONPATH", f"{ROOT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}")  # the workers'
        node = {"num_cpus": n_cpus, "object_store_memory": STORE_BYTES}
        cluster = Cluster(
            initialize_head=True,
            head_node_args={**node, "include_dashboard": False, "_system_config": SOON_DEAD},
        )
        try:
            for _ in range(n_nodes - 1):
                cluster.add_node(**node)
            ray.init(address=cluster.address, log_to_driver=False, logging_level="error")
            yield cluster
        finally:
            ray.shutdown()
            cluster.shutdown()
