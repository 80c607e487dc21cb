"""Joining the one Ray head as a driver, and noticing that it is gone.

Ray's token authentication is always on. Ray's C++ side reads the token from ``RAY_AUTH_MODE`` and
``RAY_AUTH_TOKEN`` when it is first imported, so whoever starts a service puts both into its environment.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from services.common.errors import Kind, Reason, VoxfleetError, unavailable
from services.common.rayrt.calls import in_thread

log = logging.getLogger(__name__)

NAMESPACE = "voxfleet"


def join(address: str, *, namespace: str = NAMESPACE) -> None:
    """Make this process a driver of the cluster at ``address``; call it from the main thread, before asyncio.

    Ray sets a SIGTERM handler while it joins: a service sets its own afterwards.

    Args:
        address: ``host:port`` of the head.
        namespace: of named actors.

    Raises:
        VoxfleetError: SERVICE_UNAVAILABLE where no head answers, UNAUTHENTICATED where it refuses
            the token.
    """
    import ray
    import ray.exceptions

    try:
        ray.init(
            address=address,
            namespace=namespace,
            log_to_driver=False,
            configure_logging=False,
            include_dashboard=False,
        )
    except ray.exceptions.AuthenticationError as error:
        raise VoxfleetError(
            Reason.UNAUTHENTICATED,
            f"the Ray head at {address} refuses this service's token; give both the same RAY_AUTH_TOKEN",
            kind=Kind.UNAUTHENTICATED,
            metadata={"address": address},
        ) from error
    except (ConnectionError, RuntimeError, TimeoutError, ValueError, ray.exceptions.RayError) as error:
        raise unavailable(
            Reason.SERVICE_UNAVAILABLE,
            f"no Ray head answers at {address}: {error}",
            retry_after_s=5.0,
            address=address,
        ) from error
    log.info("joined the Ray cluster at %s", address)


def leave() -> None:
    """Stop being a driver; the cluster ends every actor that this process still owns."""
    import ray

    ray.shutdown()


def is_member() -> bool:
    """Whether the node that this driver hangs on is alive in the head's books; blocks.

    A head that was restarted has forgotten every node of before, so this says no then as well.
    """
    import ray

    own = ray.get_runtime_context().get_node_id()
    return any(node["NodeID"] == own and node["Alive"] for node in cast("Any", ray.nodes)())


async def wait_lost(
    *,
    probe: Callable[[], bool] = is_member,
    period_s: float = 1.0,
    timeout_s: float = 5.0,
    misses: int = 3,
) -> None:
    """Return when the cluster is lost to this process: so many probes in a row were bad or late.

    A driver cannot be moved to another cluster: its process should end and be started again.
    """
    bad = 0
    while bad < misses:
        try:
            good = await in_thread(probe, timeout_s)
        except TimeoutError:
            good = False
        except Exception as error:  # noqa: BLE001 - whatever a broken connection raises is a miss
            log.warning("the Ray head does not answer: %s", error)
            good = False
        bad = 0 if good else bad + 1
        await asyncio.sleep(period_s)
    log.error("the Ray cluster is lost after %d probes", misses)
