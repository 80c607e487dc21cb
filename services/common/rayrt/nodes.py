"""The nodes of the cluster, as the ledger is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, cast

from services.common.jobs.model import NodeFacts

_ACCELERATOR = "accelerator_type:"


def node_facts(virtual_gpus: bool | None = None) -> tuple[NodeFacts, ...]:
    """Every node that Ray knows, dead ones of this cluster included; blocks.

    Args:
        virtual_gpus: whether GPUs are pretended; None tells it of each node from its resources.

    Raises:
        whatever Ray raises where the head is gone; see :func:`services.common.rayrt.failures.from_ray`.
    """
    import ray

    # What is free on each node is not in Ray's public API: `ray.available_resources` is a sum.
    from ray._private.state import available_resources_per_node

    nodes, available = cast("Any", ray.nodes), cast("Any", available_resources_per_node)
    return facts_of(nodes(), available(), virtual_gpus)


def facts_of(
    nodes: Sequence[Mapping[str, Any]],
    available: Mapping[str, Mapping[str, float]],
    virtual_gpus: bool | None = None,
) -> tuple[NodeFacts, ...]:
    """The facts in Ray's own records.

    Args:
        nodes: what ``ray.nodes()`` returns.
        available: free resources by node id.
        virtual_gpus: as for :func:`node_facts`.
    """
    hosts = Counter(str(node["NodeManagerHostname"]) for node in nodes)
    found: list[NodeFacts] = []
    for node in nodes:
        host, node_id = str(node["NodeManagerHostname"]), str(node["NodeID"])
        total: Mapping[str, float] = node.get("Resources") or {}
        alive = bool(node["Alive"])
        free = available.get(node_id, {}) if alive else {}
        gpus = float(total.get("GPU", 0.0))
        found.append(
            NodeFacts(
                name=f"nodes/{host if hosts[host] == 1 else f'{host}-{node_id[:8]}'}",
                state="alive" if alive else "dead",
                gpus=gpus,
                gpus_free=min(float(free.get("GPU", 0.0)), gpus),
                cpus=float(total.get("CPU", 0.0)),
                virtual_gpus=_is_virtual(total) if virtual_gpus is None else virtual_gpus,
            )
        )
    return tuple(found)


def _is_virtual(resources: Mapping[str, float]) -> bool:
    """Ray names the make of every GPU that it found itself; of those it was told of it knows none."""
    has_gpus = resources.get("GPU", 0.0) > 0
    return has_gpus and not any(name.startswith(_ACCELERATOR) for name in resources)
