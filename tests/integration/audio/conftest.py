from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass

import pytest

import voxfleet.internal.v1.catalog_pb2
import voxfleet.v1.dubbing_pb2
import voxfleet.v1.fleet_pb2
import voxfleet.v1.lexicon_pb2
import voxfleet.v1.trust_pb2  # noqa: F401 - descriptors are looked up by name
from services.audio.adapters.grpc_catalog import GrpcCatalog
from services.audio.adapters.object_store import ThreadedObjects
from services.audio.adapters.process_examiner import ProcessExaminer
from services.audio.app.audios import Audios
from services.audio.app.finishing import Finisher
from services.audio.app.uploads import Uploads
from services.audio.servicer import AudioServicer
from services.audio.settings import AudioSettings
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.rpc.channel import service_channel
from services.common.rpc.handlers import servicer_handlers
from services.common.rpc.interceptors import service_authenticator
from services.common.rpc.server import RpcServer
from services.gateway.forward import Forwarder
from services.gateway.routes import Backend
from tests.integration.audio.catalog_server import CatalogServer
from tests.integration.audio.client import TEAM, TOKEN, Client
from tests.unit.audio_service.memory_catalog import MemoryCatalog

PART_BYTES = 128 * 1024


@dataclass
class Stage:
    """An audio service over real gRPC and real S3, with the catalogue in memory."""

    client: Client
    catalog: MemoryCatalog
    catalog_server: CatalogServer
    store: MinioArtifactStore
    address: str
    gateway_address: str
    """The gateway's forwarding before the same service, without its bearer tokens."""

    def stored(self) -> list[str]:
        """Every key of the team in the store."""
        return [found.key for found in self.store.list_prefix(f"teams/{TEAM}/")]


@pytest.fixture
async def stage(s3_settings, tmp_path) -> AsyncIterator[Stage]:
    settings = AudioSettings(service_token=TOKEN, scratch_dir=tmp_path, drain_s=1.0)
    store = MinioArtifactStore(s3_settings)
    store.delete_prefix(f"teams/{TEAM}/")
    catalog = MemoryCatalog()
    catalog_server = CatalogServer(catalog)
    authenticate = service_authenticator(TOKEN)
    metadata = RpcServer(
        settings,
        [servicer_handlers("voxfleet.internal.v1.CatalogService", catalog_server)],
        authenticate,
        services=["voxfleet.internal.v1.CatalogService"],
    )
    await metadata.start()
    channel = service_channel(f"127.0.0.1:{metadata.port}", TOKEN)
    grpc_catalog = GrpcCatalog(channel)
    assert not await grpc_catalog.is_serving()
    await metadata.ready()
    assert await grpc_catalog.is_serving()

    examiner = ProcessExaminer(workers=1, time_limit_s=60.0, memory_bytes=0)
    objects = ThreadedObjects(store, threads=8)
    await objects.check()
    finisher = Finisher(grpc_catalog, objects, examiner, settings.limits, tmp_path, asyncio.Semaphore(2))
    uploads = Uploads(
        finisher, part_bytes=PART_BYTES, max_streams=64, end_grace_s=settings.upload_end_grace_s
    )
    audios = Audios(grpc_catalog, objects, examiner, settings.limits, tmp_path)
    server = RpcServer(
        settings,
        [servicer_handlers("voxfleet.v1.AudioService", AudioServicer(uploads, audios))],
        authenticate,
        services=["voxfleet.v1.AudioService"],
    )
    await server.start()
    await server.ready()
    address = f"127.0.0.1:{server.port}"
    client = Client(address)
    own_channel = service_channel(address, TOKEN)
    gateway = RpcServer(
        settings,
        Forwarder(dict.fromkeys(Backend, own_channel), unary_timeout_s=60, upload_timeout_s=600).handlers(),
        authenticate,
        services=["voxfleet.v1.AudioService"],
    )
    await gateway.start()
    yield Stage(
        client,
        catalog,
        catalog_server,
        store,
        address,
        f"127.0.0.1:{gateway.port}",
    )
    await client.channel.close()
    await gateway.drain()
    await own_channel.close()
    await server.drain()
    await uploads.drain(5)
    examiner.close()
    objects.close()
    await channel.close()
    await metadata.drain()
