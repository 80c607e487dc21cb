"""Starts the inference service: joins Ray, keeps the pools, serves calls, takes leased jobs."""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
import sys
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from math import ceil
from pathlib import Path
from typing import Any

import uvloop

from services.common import telemetry
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import VoxfleetError
from services.common.jail.running import run_jailed
from services.common.jail.work import JailLimits
from services.common.jobs.grpc_ledger import GrpcLedger
from services.common.jobs.worker import Worker
from services.common.names import new_id
from services.common.rayrt import joining
from services.common.rpc.channel import service_channel
from services.common.rpc.handlers import servicer_handlers
from services.common.rpc.interceptors import service_authenticator
from services.common.rpc.server import RpcServer, run_until_stopped
from services.engines.bundles.pull import Hub
from services.inference.adapters.audio_examiner import AudioExaminer
from services.inference.adapters.grpc_catalog import GrpcCatalog
from services.inference.adapters.ray_pool import ActorPlan, ActorSettings, RayExecutor
from services.inference.app.bundles import Bundles
from services.inference.app.exchange import Exchange
from services.inference.app.jobs import Jobs
from services.inference.app.licences import TeamLicences
from services.inference.app.listening import Listening
from services.inference.app.pool import Pool
from services.inference.app.provenance import Provenance
from services.inference.app.speakers import Speakers
from services.inference.app.synthesis import Synthesis
from services.inference.engine.marking import Marking
from services.inference.health import HealthPlan
from services.inference.model import PoolPlan, Role
from services.inference.servicer import InferenceServicer, TrustServicer, VoiceServicer
from services.inference.settings import InferenceSettings
from voxfleet.internal.v1 import catalog_pb2_grpc

log = logging.getLogger("services.inference")

SERVICE = "voxfleet.v1.SynthesisService"
VOICE_SERVICE = "voxfleet.v1.VoiceService"
TRUST_SERVICE = "voxfleet.v1.TrustService"
VERSION = "0.1.0"
_NODES_EVERY_S = 5.0


def pool_plans(settings: InferenceSettings) -> tuple[PoolPlan, PoolPlan]:
    """How the F5 and the RVC pool are run."""

    def plan(role: Role, least: int, most: int, gpus: float, cpus: float) -> PoolPlan:
        return PoolPlan(
            role,
            least,
            max(most, least),
            idle_s=settings.idle_s,
            start_limit_s=settings.start_limit_s,
            grow_depth=settings.grow_depth,
            grow_wait_s=settings.grow_wait_s,
            # What reserves CPUs might wait for those of the replica that it is to succeed.
            surge=0 if cpus else 1,
            retry_s=settings.weights_retry_s,
            health=health_plan(settings),
            gpus_each=gpus,
        )

    f5 = plan(Role.F5, settings.f5_least, settings.f5_most, settings.f5_gpus, settings.f5_cpus)
    rvc = plan(Role.RVC, settings.rvc_least, settings.rvc_most, settings.rvc_gpus, settings.rvc_cpus)
    f5 = replace(f5, reserved=1, queue_limit=settings.queue_limit, queue_wait_s=settings.queue_wait_s)
    return f5, replace(rvc, keeps=settings.rvc_voices)


def health_plan(settings: InferenceSettings) -> HealthPlan:
    """How replicas are watched."""
    return HealthPlan(
        probe_s=settings.probe_s,
        probe_limit_s=settings.probe_limit_s,
        hang_floor_s=settings.hang_floor_s,
        first_call_s=settings.hang_first_s,
        out_of_memory=settings.out_of_memory_limit,
        rss_bytes=settings.replica_rss_mib << 20,
        rss_growth_bytes=settings.replica_rss_growth_mib << 20,
        gpu_bytes=settings.replica_gpu_mib << 20,
        gpu_growth_bytes=settings.replica_gpu_growth_mib << 20,
    )


def actor_plans(settings: InferenceSettings) -> dict[Role, ActorPlan]:
    """How their actors are placed."""
    threads = settings.engine_threads
    return {
        Role.F5: ActorPlan(
            settings.f5_gpus,
            settings.f5_cpus,
            settings.f5_slots,
            threads=threads,
            reference_s=settings.f5_reference_s,
            compiler=settings.f5_compiler,
        ),
        Role.RVC: ActorPlan(
            settings.rvc_gpus,
            settings.rvc_cpus,
            settings.rvc_slots,
            voices=settings.rvc_voices,
            threads=threads,
        ),
    }


def jail_limits(settings: InferenceSettings) -> JailLimits:
    """What a process that opens a voice's file may use."""
    limit_s = settings.voice_file_limit_s
    return JailLimits(
        memory_bytes=settings.voice_file_memory_mib << 20, cpu_s=ceil(limit_s), wall_s=2 * limit_s
    )


async def serve(settings: InferenceSettings, s3: S3Settings) -> int:
    """Runs the service until it is told to stop, or Ray is lost; returns the exit status."""
    channel = service_channel(settings.metadata_address, settings.service_token)
    catalog = GrpcCatalog(channel)
    make_store = functools.partial(MinioArtifactStore, s3)
    work_dir = Path(settings.cache_dir) / "inference"
    bundles = Bundles(
        catalog,
        make_store(),
        work_dir,
        wanted=settings.f5_bundle,
        more=settings.f5_more_bundles,
        hub=Hub(url=settings.hub_url),
    )
    actors = ActorSettings(
        make_store,
        settings.cache_dir,
        settings.log_level,
        settings.log_json,
        settings.otlp_endpoint,
        Marking(settings.watermark, settings.watermark_key),
    )
    executor = RayExecutor(actor_plans(settings), actors)
    f5, rvc = (Pool(plan, executor, stop_grace_s=settings.stop_grace_s) for plan in pool_plans(settings))
    speakers = Speakers(f5)
    exchange = Exchange(make_store(), work_dir, run_jailed, jail_limits(settings))
    jobs = Jobs(f5, rvc, bundles, speakers=speakers, licences=TeamLicences(catalog), exchange=exchange)
    ledger = GrpcLedger(
        channel,
        worker=f"inference-{new_id()}",
        queue="inference",
        node=socket.gethostname(),
        version=VERSION,
    )
    worker = Worker(ledger, jobs, jobs.capacity, orders=jobs.obey)
    for pool in (f5, rvc):
        pool.on_change(worker.wake)
    synthesis = Synthesis(f5, rvc, speakers, catalog)
    servicer = InferenceServicer(synthesis, bundles)
    listening = Listening(
        f5,
        catalog,
        max_word_error_rate=settings.transcript_max_word_error_rate,
        check_wait_s=settings.transcript_wait_s,
    )
    voices = VoiceServicer(f5, listening, catalog_pb2_grpc.CatalogServiceStub(channel))
    examiner = AudioExaminer(make_store(), settings.watermark_key)
    server = RpcServer(
        settings,
        [
            servicer_handlers(SERVICE, servicer),
            servicer_handlers(VOICE_SERVICE, voices),
            servicer_handlers(TRUST_SERVICE, TrustServicer(Provenance(catalog, examiner))),
        ],
        service_authenticator(settings.service_token),
        services=[SERVICE, VOICE_SERVICE, TRUST_SERVICE],
    )
    await server.start()

    async def stop() -> None:
        await asyncio.gather(worker.drain(grace_s=settings.drain_s), server.drain())
        await synthesis.close()

    lost = asyncio.create_task(joining.wait_lost())
    async with _in_background(
        f5.run(),
        rvc.run(),
        follow_bundles(bundles, f5, rvc, settings.bundle_refresh_s),
        follow_nodes(jobs, executor),
        worker.run(),
        ready_when(server, f5, rvc),
    ):
        stopped = asyncio.create_task(run_until_stopped(stop))
        await asyncio.wait({stopped, lost}, return_when=asyncio.FIRST_COMPLETED)
        if not stopped.done():
            # A driver cannot move to another cluster: whoever started this process starts it again.
            log.error("Ray is lost; ending")
            stopped.cancel()
            await stop()
    await channel.close()
    return 1 if lost.done() else 0


async def follow_bundles(bundles: Bundles, f5: Pool, rvc: Pool, every_s: float) -> None:
    """Keeps the pools on the weights that the record says, for ever."""

    def apply() -> None:
        rvc.use(bundles.rvc_spec())
        try:
            f5.use(bundles.f5_spec())
        except VoxfleetError as error:
            log.warning("F5 cannot be started: %s", error.message)
            f5.refuse(error)

    bundles.on_change(apply)
    begun = False
    while True:
        try:
            await bundles.refresh()
        except VoxfleetError as error:
            log.warning("the record does not say which bundles are stored: %s", error.message)
            await asyncio.sleep(1.0)
            continue
        if not begun:
            apply()
            begun = True
        await asyncio.sleep(every_s)


async def follow_nodes(jobs: Jobs, executor: RayExecutor) -> None:
    """Keeps what the ledger is told of the machines, for ever."""
    while True:
        try:
            jobs.nodes = await executor.nodes()
        except VoxfleetError as error:
            log.warning("Ray does not say which nodes it has: %s", error.message)
        await asyncio.sleep(_NODES_EVERY_S)


async def ready_when(server: RpcServer, f5: Pool, rvc: Pool) -> None:
    """Says that the service may be used once each pool that is kept has a replica.

    One whose bundle is not stored yet counts too: that bundle may be brought in through this service. So does
    one whose GPUs are lent to trainings.
    """
    done = asyncio.Event()

    def has_come(pool: Pool) -> bool:
        missing = not pool.has_weights and pool.broken is not None
        return pool.facts is not None or pool.allowed.least == 0 or missing

    def look() -> None:
        if has_come(f5) and has_come(rvc):
            done.set()

    for pool in (f5, rvc):
        pool.on_change(look)
    look()
    await done.wait()
    await server.ready()


@asynccontextmanager
async def _in_background(*work: Coroutine[Any, Any, None]) -> AsyncIterator[None]:
    """Runs coroutines for as long as the context lasts; one that fails is logged and ends nothing else."""
    tasks = [asyncio.create_task(_logged(one)) for one in work]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _logged(work: Coroutine[Any, Any, None]) -> None:
    try:
        await work
    except Exception:
        log.exception("a background task of the service failed")
        raise


def main(_arguments: Sequence[str] = ()) -> int:
    """Reads the settings and runs the service."""
    settings = InferenceSettings()  # type: ignore[call-arg]
    telemetry.configure_logging("inference", settings.log_level, as_json=settings.log_json)
    telemetry.configure_tracing("inference", settings.otlp_endpoint)
    joining.join(settings.ray_address)
    try:
        return uvloop.run(serve(settings, S3Settings()))  # type: ignore[call-arg]
    finally:
        joining.leave()
        telemetry.flush_traces()


if __name__ == "__main__":
    sys.exit(main())
