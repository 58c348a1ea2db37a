"""How a node goes."""

from __future__ import annotations

import time

from ray._raylet import GcsClient
from ray.cluster_utils import Cluster

PREEMPTION = 2  # Ray's DrainNodeReason


def lose(cluster: Cluster) -> None:
    """A spot node goes at once."""
    cluster.remove_node(cluster.worker_nodes.copy().pop(), allow_graceful=False)


def drain(cluster: Cluster) -> None:
    """A spot node gets its notice and goes some seconds later."""
    node = cluster.worker_nodes.copy().pop()
    deadline = int((time.time() + 30) * 1000)
    GcsClient(address=cluster.address).drain_node(node.node_id, PREEMPTION, "spot", deadline)
