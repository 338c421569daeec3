"""Which servers of a joined cluster this process needs, where they listen, and how long each may be silent."""

from __future__ import annotations

from collections.abc import Callable

from kvray.sweep.liveness import Server

_HEAD_PATIENCE_S = 40.0
"""For a cluster's head, which may be started anew: Ray's C++ ends this process 60 s after the last word (2.60)."""
_NODE_PATIENCE_S = 10.0
"""For the raylet that this process is attached to: no other takes its place."""


def cluster_servers() -> list[Server]:
    """What this process needs of the cluster that it is connected to: its head, and the node that it is attached to."""
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    head = Server(
        what="its head",
        host=host.strip("[]"),
        port=int(port),
        patience_s=_HEAD_PATIENCE_S,
        is_same=_same_cluster(context.gcs_address),
    )
    nodes = (node for node in ray.nodes() if node["NodeID"] == context.get_node_id())
    return [
        head,
        *(
            Server(
                what="this machine's node",
                host=node["NodeManagerAddress"],
                port=node["NodeManagerPort"],
                patience_s=_NODE_PATIENCE_S,
            )
            for node in nodes
        ),
    ]


def _same_cluster(address: str) -> Callable[[], bool]:
    """Whether the head at `address` leads the cluster that this process is connected to now. A head that is started
    anew leads another one, unless it keeps its state in a store of its own."""
    import ray
    from ray.exceptions import RayError

    known = ray._private.worker.global_worker.node.cluster_id

    def is_same() -> bool:
        try:
            return bool(ray._raylet.GcsClient(address=address).cluster_id == known)
        except (RayError, RuntimeError) as error:
            raise OSError(str(error)) from error

    return is_same
