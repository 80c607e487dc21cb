"""Replicas as Ray actors: every Ray call of this service, but for joining the cluster.

An actor belongs to this process: when the controller ends, Ray ends its actors, so that none holds a
GPU for nobody. Control calls (health, stop) have threads of their own, beside whatever computes.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import pickle
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Thread
from typing import Any, cast

import ray
import ray.exceptions

from services.common import telemetry
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.model import NodeFacts
from services.common.rayrt.calls import in_thread
from services.common.rayrt.failures import from_ray
from services.common.rayrt.nodes import node_facts, node_names, not_on
from services.inference.calls import EngineFacts, EngineSpec, Event, Request
from services.inference.engine.marking import UNMARKED, Marking
from services.inference.engine.running import Batch, Body, Calls
from services.inference.engine.vitals import own_vitals
from services.inference.health import Vitals
from services.inference.model import Role
from services.inference.slots import natural_slots

log = logging.getLogger(__name__)

_THREADS_BESIDE = 8
_NUMBERS = itertools.count(1)
_AT_ONCE_S = 0.005
"""A call that takes no longer is asked once."""
_NODES_S = 10.0
_BOUNDED_MEMORY = {
    # Every text has another length: by default a thousand shapes of kernels are kept, and an arena for each
    # of dozens of threads. Measured at no cost in speed, at 150 MiB less and without slow growth.
    "ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64",
    "MALLOC_ARENA_MAX": "2",
}


@dataclass(frozen=True, slots=True)
class ActorPlan:
    """How a role's actors are placed and how much they take on.

    Args:
        gpus: the share of a GPU that each holds.
        cpus: the same of CPUs.
        slots: calls at once; 0 for what suits the device.
        voices: kept in memory (RVC).
        threads: CPU threads of torch and OpenMP.
        reference_s: of a reference clip at the most (F5).
        compiler: backend of ``torch.compile`` on a GPU (F5); none where empty.
    """

    gpus: float = 0.5
    cpus: float = 0.0
    slots: int = 0
    voices: int = 8
    threads: int = 1
    reference_s: float = 12.0
    compiler: str = ""


@dataclass(frozen=True, slots=True)
class ActorSettings:
    """What every actor needs of the service's settings."""

    make_store: Callable[[], ArtifactStore]
    cache_dir: str
    log_level: str = "INFO"
    log_json: bool = False
    otlp_endpoint: str = ""
    marking: Marking = UNMARKED


BuildBody = Callable[[EngineSpec, ActorPlan, ActorSettings], Body]


class EngineActor:
    """The process of a replica."""

    def __init__(self, spec: EngineSpec, plan: ActorPlan, settings: ActorSettings, build: BuildBody) -> None:
        telemetry.configure_logging(f"{spec.role}-actor", settings.log_level, as_json=settings.log_json)
        telemetry.configure_tracing(f"{spec.role}-actor", settings.otlp_endpoint)
        self._spec = spec
        self._plan = plan
        self._settings = settings
        self._build = build
        self._calls: Calls | None = None

    def ready(self) -> EngineFacts:
        """Loads the weights: here and not on construction, so that Ray passes our own errors on."""
        body = self._build(self._spec, self._plan, self._settings)
        failed = Reason.SYNTHESIS_FAILED if self._spec.role is Role.F5 else Reason.CONVERSION_FAILED
        self._calls = Calls(body, failed)
        # Ray's id of it; what the ledger calls it is known to the driver.
        return replace(body.facts, node=ray.get_runtime_context().get_node_id())

    @ray.method(concurrency_group="control")
    def check(self) -> Vitals:
        """Answers, if it can."""
        return own_vitals()

    @ray.method(concurrency_group="control")
    def stop(self, call: str) -> None:
        """Asks a call to end."""
        assert self._calls is not None
        self._calls.stop(call)

    @ray.method(concurrency_group="control")
    def feed(self, call: str, data: bytes) -> None:
        """Gives a call what it is to work on."""
        assert self._calls is not None
        self._calls.feed(call, data)

    def run(self, packed: bytes) -> Batch:
        """Does a call's work; see :class:`services.inference.engine.running.Calls`."""
        assert self._calls is not None
        call, request, traceparent = pickle.loads(packed)  # noqa: S301 - of this service's own
        return self._calls.run(call, request, traceparent)

    def more(self, call: str) -> Batch:
        """What a call has sent since it was last asked."""
        assert self._calls is not None
        return self._calls.more(call)


def build_body(spec: EngineSpec, plan: ActorPlan, settings: ActorSettings) -> Body:
    """Imports the engine, which takes seconds and hundreds of megabytes: in an actor only."""
    from services.engines.device import limit_threads

    limit_threads(plan.threads)
    store, cache_dir = settings.make_store(), Path(settings.cache_dir)
    if spec.role is Role.F5:
        from services.inference.engine.speech import SpeechBody, SpeechLimits

        return SpeechBody(
            spec,
            store,
            cache_dir,
            SpeechLimits(plan.slots, plan.reference_s, plan.compiler),
            settings.marking,
        )
    from services.inference.engine.conversion import ConversionBody, ConversionLimits

    limits = ConversionLimits(plan.slots, plan.voices, threads=plan.threads)
    return ConversionBody(spec, store, cache_dir, limits, settings.marking)


class RayExecutor:
    """Starts replicas on the cluster that this process has joined.

    Args:
        plans: by role.
        settings: for the actors.
        build: makes the engine, in its actor.
    """

    def __init__(
        self, plans: dict[Role, ActorPlan], settings: ActorSettings, build: BuildBody = build_body
    ) -> None:
        self._plans = plans
        self._settings = settings
        self._build = build
        self._actor = cast("Any", ray.remote)(concurrency_groups={"control": 2})(EngineActor)
        self._names: dict[str, str] = {}

    def start(self, spec: EngineSpec, avoid: frozenset[str] = frozenset()) -> RayEngine:
        """See :class:`services.inference.ports.Executor`."""
        plan = self._plans[spec.role]
        threads = str(plan.threads)
        handle = self._actor.options(
            num_cpus=plan.cpus,
            num_gpus=plan.gpus,
            max_concurrency=_threads(spec.role, plan),
            # A node that Ray has not shown us yet is not known to be drained either: it is left once ready.
            label_selector=not_on([node_id for node_id, name in self._names.items() if name in avoid]),
            max_restarts=0,
            max_task_retries=0,
            runtime_env={
                "env_vars": {
                    "OMP_NUM_THREADS": threads,
                    "MKL_NUM_THREADS": threads,
                    **_BOUNDED_MEMORY,
                    # Without it an actor that asks for no GPU sees every GPU of the node.
                    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "1",
                }
            },
        ).remote(spec, plan, self._settings, self._build)
        return RayEngine(handle, self._name_of)

    async def nodes(self) -> tuple[NodeFacts, ...]:
        """See :class:`services.inference.ports.Executor`."""
        try:
            facts = await in_thread(node_facts, _NODES_S)
            self._names = await in_thread(_names, _NODES_S)
        except Exception as error:
            raise from_ray(error) from error
        return facts

    async def _name_of(self, node_id: str) -> str:
        """What the ledger calls a node of Ray's. Errors: WORKER_LOST."""
        if node_id not in self._names:
            await self.nodes()
        return self._names.get(node_id, node_id)


def _threads(role: Role, plan: ActorPlan) -> int:
    """Of one actor: for each call one that does the work and one that waits for what it sends.

    No more than that: Ray wakes a thread at a time, and cold ones are slow.
    """
    slots = plan.slots or natural_slots(role, on_gpu=plan.gpus > 0)
    return 2 * slots + _THREADS_BESIDE


def _names() -> dict[str, str]:
    return node_names(cast("Any", ray.nodes)())


class RayEngine:
    """A replica in an actor.

    Args:
        handle: of the actor.
        name_of: what the ledger calls a node of Ray's.
    """

    def __init__(self, handle: Any, name_of: Callable[[str], Awaitable[str]]) -> None:
        self._handle = handle
        self._name_of = name_of

    async def ready(self) -> EngineFacts:
        """See :class:`services.inference.ports.Engine`."""
        facts = cast("EngineFacts", await _answer(self._handle.ready.remote()))
        return replace(facts, node=await self._name_of(facts.node))

    async def check(self) -> Vitals:
        """See :class:`services.inference.ports.Engine`."""
        return cast("Vitals", await _answer(self._handle.check.remote()))

    def call(self, request: Request) -> RayCall:
        """See :class:`services.inference.ports.Engine`."""
        return RayCall(self._handle, request)

    def end(self) -> None:
        """See :class:`services.inference.ports.Engine`."""
        # In a thread of its own: without a head the call waits for one for a minute.
        Thread(target=self._kill, name="ray-kill", daemon=True).start()

    def _kill(self) -> None:
        with suppress(ray.exceptions.RayError, ValueError):
            ray.kill(self._handle, no_restart=True)


class RayCall:
    """A call that runs in an actor.

    Args:
        handle: of the actor.
        request: what is asked for.
    """

    def __init__(self, handle: Any, request: Request) -> None:
        self._handle = handle
        # An actor is asked by this process alone.
        self._id = str(next(_NUMBERS))
        # Packed here: Ray passes bytes as they are, and would pickle each argument at several times the cost.
        packed = pickle.dumps((self._id, request, telemetry.current_traceparent()), pickle.HIGHEST_PROTOCOL)
        self._run = handle.run.remote(packed)

    async def events(self) -> AsyncIterator[Event]:
        """See :class:`services.inference.ports.Call`."""
        # Asked for batch by batch, not as one of Ray's generators: an answer that is one piece costs one
        # call, and the engine waits for who does not read on.
        run = asyncio.wrap_future(self._run.future())
        try:
            await asyncio.wait({run}, timeout=_AT_ONCE_S)
            while not run.done():
                # Answered at once where the call has ended meanwhile: what it tells comes before the rest.
                for event in (await _answer(self._handle.more.remote(self._id))).events:
                    yield event
            last: Batch = await _answer(run)
            for event in last.events:
                yield event
            if last.error is not None:
                raise last.error
        finally:
            if not run.cancel() and not run.cancelled():
                # Where it has failed as well, that has been told.
                run.exception()

    async def feed(self, data: bytes) -> None:
        """See :class:`services.inference.ports.Call`."""
        await _answer(self._handle.feed.remote(self._id, data))

    async def stop(self) -> None:
        """See :class:`services.inference.ports.Call`."""
        await _answer(self._handle.stop.remote(self._id))

    async def ended(self) -> None:
        """See :class:`services.inference.ports.Call`."""
        # However it ended: what it raised has been told, or nobody listens any more.
        with suppress(VoxfleetError):
            await _answer(self._run)


async def _answer(ref: Any) -> Any:
    try:
        return await ref
    except (ray.exceptions.RayError, VoxfleetError, ConnectionError) as error:
        raise from_ray(error) from None
