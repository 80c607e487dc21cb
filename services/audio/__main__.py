"""The audio service's process: ``python -m services.audio``."""

from __future__ import annotations

import asyncio
import logging
import tempfile
from contextlib import suppress
from pathlib import Path

import uvloop

from services.audio.adapters.grpc_catalog import GrpcCatalog
from services.audio.adapters.object_store import ThreadedObjects
from services.audio.adapters.process_examiner import ProcessExaminer
from services.audio.app.audios import Audios
from services.audio.app.finishing import Finisher
from services.audio.app.uploads import Uploads
from services.audio.servicer import AudioServicer
from services.audio.settings import AudioSettings
from services.common import telemetry
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import VoxfleetError
from services.common.rpc.channel import service_channel
from services.common.rpc.handlers import servicer_handlers
from services.common.rpc.interceptors import service_authenticator
from services.common.rpc.server import RpcServer, run_until_stopped

log = logging.getLogger("services.audio")

PROBE_S = 0.5
SERVICE = "voxfleet.v1.AudioService"


async def main(settings: AudioSettings, s3: S3Settings) -> None:
    """Serves until SIGTERM."""
    scratch_dir = settings.scratch_dir or Path(tempfile.gettempdir())
    channel = service_channel(settings.metadata_address, settings.service_token)
    catalog = GrpcCatalog(channel)
    objects = ThreadedObjects(
        MinioArtifactStore(s3, connections=settings.store_threads), threads=settings.store_threads
    )
    examiner = ProcessExaminer(
        workers=settings.examine_workers,
        time_limit_s=settings.examine_timeout_s,
        memory_bytes=settings.examine_memory_mb * 1024 * 1024,
    )
    uploads = Uploads(
        Finisher(
            catalog=catalog,
            objects=objects,
            examiner=examiner,
            limits=settings.limits,
            scratch_dir=scratch_dir,
            slots=asyncio.Semaphore(settings.upload_finishing),
        ),
        part_bytes=settings.upload_part_bytes,
        max_streams=settings.upload_streams,
        end_grace_s=settings.upload_end_grace_s,
    )
    audios = Audios(catalog, objects, examiner, settings.limits, scratch_dir)
    server = RpcServer(
        settings,
        [servicer_handlers(SERVICE, AudioServicer(uploads, audios))],
        service_authenticator(settings.service_token),
        services=[SERVICE],
    )
    await server.start()

    async def start() -> None:
        await asyncio.gather(_answers(catalog, objects), examiner.warm())
        await server.ready()

    starting = asyncio.create_task(start())

    async def stop() -> None:
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await server.drain()
        # Calls are over; what was received of uploads that were cut by it is still being stored.
        await uploads.drain(settings.drain_s)

    # A start that fails ends the process: a supervisor tells it better than a service that never serves.
    stopper = asyncio.create_task(run_until_stopped(stop))
    try:
        await asyncio.wait({stopper, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not stopper.done() and starting.done() and not starting.cancelled():
            starting.result()
        await stopper
    finally:
        examiner.close()
        objects.close()
        await channel.close()
        telemetry.flush_traces()


async def _answers(catalog: GrpcCatalog, objects: ThreadedObjects) -> None:
    """Returns once metadata and the object store answer."""
    told = False
    while True:
        with suppress(VoxfleetError):
            if await catalog.is_serving():
                await objects.check()
                return
        if not told:
            log.info("waiting for metadata and the object store")
            told = True
        await asyncio.sleep(PROBE_S)


if __name__ == "__main__":
    audio_settings = AudioSettings()  # type: ignore[call-arg]  # from the environment
    s3_settings = S3Settings()  # type: ignore[call-arg]
    telemetry.configure_logging("audio", audio_settings.log_level, as_json=audio_settings.log_json)
    telemetry.configure_tracing("audio", audio_settings.otlp_endpoint)
    uvloop.run(main(audio_settings, s3_settings))
