"""The nodes of the cluster, as the ledger is told of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any, cast

from services.common.jobs.model import NodeFacts

_ACCELERATOR = "accelerator_type:"
_TYPE_LABEL = "ray.io/accelerator-type"
_ID_LABEL = "ray.io/node-id"


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
    names = node_names(nodes)
    found: list[NodeFacts] = []
    for node in nodes:
        node_id = str(node["NodeID"])
        total: Mapping[str, float] = node.get("Resources") or {}
        alive = bool(node["Alive"])
        free = available.get(node_id, {}) if alive else {}
        gpus = float(total.get("GPU", 0.0))
        found.append(
            NodeFacts(
                name=names[node_id],
                state="alive" if alive else "dead",
                gpus=gpus,
                gpus_free=min(float(free.get("GPU", 0.0)), gpus),
                cpus=float(total.get("CPU", 0.0)),
                virtual_gpus=_is_virtual(total) if virtual_gpus is None else virtual_gpus,
                gpu_type=_gpu_type(total, node.get("Labels") or {}) if gpus else "",
            )
        )
    return tuple(found)


def node_names(nodes: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Each node's name by Ray's id of it: that of its host, where this tells it from the others.

    A node that comes back has another id and the same name, so that what operators said of it still holds;
    the dead one of before makes room.

    Args:
        nodes: what ``ray.nodes()`` returns.
    """
    living = Counter(_host(node) for node in nodes if node["Alive"])
    all_ever = Counter(_host(node) for node in nodes)
    found = {}
    for node in nodes:
        host, node_id = _host(node), str(node["NodeID"])
        alone = living[host] == 1 if node["Alive"] else all_ever[host] == 1
        found[node_id] = f"nodes/{host if alone else f'{host}-{node_id[:8]}'}"
    return found


def only_on(node_ids: Collection[str]) -> dict[str, str]:
    """The label selector (an option of Ray's) of work that goes to these nodes alone."""
    return {_ID_LABEL: f"in({','.join(sorted(node_ids))})"} if node_ids else {}


def not_on(node_ids: Collection[str]) -> dict[str, str]:
    """The label selector (an option of Ray's) of work that goes to any other node."""
    return {_ID_LABEL: f"!in({','.join(sorted(node_ids))})"} if node_ids else {}


def _host(node: Mapping[str, Any]) -> str:
    return str(node["NodeManagerHostname"])


def _gpu_type(resources: Mapping[str, float], labels: Mapping[str, str]) -> str:
    """What Ray found the GPUs to be, such as ``H200``: told by a resource, of late by a label as well."""
    types = sorted(name.removeprefix(_ACCELERATOR) for name in resources if name.startswith(_ACCELERATOR))
    return types[0] if types else str(labels.get(_TYPE_LABEL, ""))


def _is_virtual(resources: Mapping[str, float]) -> bool:
    """Ray names the make of every GPU that it found itself; of those it was told of it knows none."""
    has_gpus = resources.get("GPU", 0.0) > 0
    return has_gpus and not any(name.startswith(_ACCELERATOR) for name in resources)
