"""The trainer's process: ``python -m services.trainer``.

Where the Ray head is lost, trainings fail as of their node, and this process ends with status 75 (try
again): a driver cannot move to another cluster, and its supervisor starts it anew.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import signal
import socket
import sys
from importlib import metadata as packages

import uvloop

from services.common import telemetry
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import VoxfleetError
from services.common.jobs.grpc_ledger import GrpcLedger
from services.common.jobs.worker import Worker
from services.common.names import new_id
from services.common.rayrt import joining
from services.common.rpc.channel import service_channel
from services.common.rpc.interceptors import service_authenticator
from services.common.rpc.server import RpcServer
from services.trainer.adapters.metadata import GrpcBundles
from services.trainer.adapters.ray_backend import Places, RayBackend
from services.trainer.adapters.work_files import StoredWorkFiles
from services.trainer.app.following import Limits
from services.trainer.app.trainer import Trainer
from services.trainer.settings import TrainerSettings
from services.trainer.stages.runner import StageKit

log = logging.getLogger("services.trainer")

QUEUE = "trainer"
EXIT_TRY_AGAIN = os.EX_TEMPFAIL
_REFRESH_S = 1.0


async def main(settings: TrainerSettings, s3: S3Settings) -> int:
    """Works until SIGTERM, or until the Ray cluster is lost; returns the exit status."""
    open_store = functools.partial(MinioArtifactStore, s3)
    kit = StageKit(
        open_store,
        settings.cache_dir,
        threads=settings.training_threads,
        log_level=settings.log_level,
        log_json=settings.log_json,
        otlp_endpoint=settings.otlp_endpoint,
    )
    channel = service_channel(settings.metadata_address, settings.service_token)
    trainer = Trainer(
        RayBackend(
            kit,
            Places(settings.stage_cpus, settings.training_cpus),
            virtual_gpus=settings.virtual_gpus,
        ),
        StoredWorkFiles(open_store()),
        GrpcBundles(channel),
        limits=Limits(
            place_s=settings.gpu_wait_s,
            yield_s=settings.yield_s,
            shutdown_s=settings.shutdown_s,
            stall_s=settings.stall_s,
        ),
        virtual_gpus=settings.virtual_gpus,
        checkpoint_s=settings.checkpoint_s,
    )
    await trainer.refresh()
    node = settings.node or socket.gethostname()
    ledger = GrpcLedger(
        channel, worker=f"{QUEUE}-{node}-{new_id()}", queue=QUEUE, node=node, version=_version()
    )
    worker = Worker(ledger, trainer.handle, trainer.capacity, orders=trainer.obey)
    server = RpcServer(settings, [], service_authenticator(settings.service_token), services=[])
    await server.start()

    stopped = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    background = [
        asyncio.create_task(worker.run(), name="worker"),
        asyncio.create_task(_refresh(trainer, worker), name="nodes"),
    ]
    lost = asyncio.create_task(joining.wait_lost(), name="ray")
    stopping = asyncio.create_task(stopped.wait(), name="stop")
    await server.ready()
    try:
        done, _ = await asyncio.wait({lost, stopping, *background}, return_when=asyncio.FIRST_COMPLETED)
        if lost in done:
            # Their polls fail by now, as of a lost node; let those ends be told.
            await worker.drain(grace_s=settings.shutdown_s)
            return EXIT_TRY_AGAIN
        if stopping not in done:
            for task in done:
                task.result()
            return 1
        log.info("stopping")
        await worker.drain(grace_s=settings.shutdown_s + 3.0)
        return 0
    finally:
        for task in (lost, stopping, *background):
            task.cancel()
        await asyncio.gather(lost, stopping, *background, return_exceptions=True)
        await server.drain()
        await channel.close()


async def _refresh(trainer: Trainer, worker: Worker) -> None:
    """Keeps the view of the nodes fresh, and offers what has become free."""
    while True:
        before = trainer.capacity()
        try:
            await trainer.refresh()
        except VoxfleetError as error:
            log.warning("the nodes cannot be seen: %s", error.message)
        if trainer.capacity() != before:
            worker.wake()
        await asyncio.sleep(_REFRESH_S)


def _version() -> str:
    try:
        return packages.version("voxfleet")
    except packages.PackageNotFoundError:
        return "unknown"


def run() -> int:
    """Reads the settings, joins Ray, works; returns the exit status."""
    settings = TrainerSettings()  # type: ignore[call-arg]  # from the environment
    s3 = S3Settings()  # type: ignore[call-arg]
    telemetry.configure_logging(QUEUE, settings.log_level, as_json=settings.log_json)
    telemetry.configure_tracing(QUEUE, settings.otlp_endpoint)
    try:
        joining.join(settings.ray_address)
        return uvloop.run(main(settings, s3))
    except VoxfleetError as error:
        log.critical("%s: %s", error.reason.value, error.message)
        return EXIT_TRY_AGAIN
    finally:
        telemetry.flush_traces()


if __name__ == "__main__":
    status = run()
    logging.shutdown()
    # Not by way of Ray's exit hooks: without a head they wait for it for a minute.
    if status == EXIT_TRY_AGAIN:
        os._exit(status)
    joining.leave()
    sys.exit(status)
