"""The metadata service's process: the only builder of its adapters."""

from __future__ import annotations

import asyncio
import logging
import os
from importlib import metadata as distributions

from prometheus_client import Gauge

import voxfleet.internal.v1.identity_pb2
import voxfleet.v1.trust_pb2  # noqa: F401 - its descriptors are looked up by name
from services.common import telemetry
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import Reason, VoxfleetError, unavailable
from services.common.rpc.handlers import servicer_handlers
from services.common.rpc.interceptors import service_authenticator
from services.common.rpc.server import RpcServer, run_service, run_until_stopped
from services.metadata import migrate
from services.metadata.adapters.http_sender import HttpSender
from services.metadata.adapters.postgres import PostgresStore, PostgresWakeups
from services.metadata.adapters.stored_bytes import ThreadedBytes
from services.metadata.app.audios import Audios
from services.metadata.app.bundles import Bundles
from services.metadata.app.fleet import Fleet
from services.metadata.app.identity import Identity
from services.metadata.app.jobs import Jobs
from services.metadata.app.ledger import Ledger, LedgerSettings
from services.metadata.app.lexicons import Lexicons
from services.metadata.app.retention import Retention
from services.metadata.app.submit import Submitter
from services.metadata.app.voices import Voices
from services.metadata.app.webhooks import Outbox, Webhooks, WebhookSettings
from services.metadata.model.retention import RetentionSettings
from services.metadata.servicers.fleet import FleetServicer
from services.metadata.servicers.internal import CatalogServicer, IdentityServicer
from services.metadata.servicers.jobs import JobServicer, SubmitServicer
from services.metadata.servicers.lexicons import LexiconServicer
from services.metadata.servicers.resources import AudioServicer, TrustServicer, VoiceServicer
from services.metadata.servicers.retention import RetentionServicer
from services.metadata.servicers.webhooks import WebhookServicer
from services.metadata.servicers.work import WorkServicer
from services.metadata.settings import MetadataSettings

log = logging.getLogger(__name__)

QUEUED = Gauge("voxfleet_jobs_queued", "Jobs that wait, by kind and class.", ["kind", "priority_class"])
RUNNING = Gauge("voxfleet_jobs_running", "Jobs that run, by kind and class.", ["kind", "priority_class"])
OLDEST = Gauge(
    "voxfleet_queue_oldest_wait_seconds", "Age of the oldest waiting job.", ["kind", "priority_class"]
)


async def serve(settings: MetadataSettings, s3: S3Settings | None) -> None:
    """Builds the service and runs it until SIGTERM."""
    await _schema(settings)
    stored = ThreadedBytes(MinioArtifactStore(s3)) if s3 is not None else None
    store = PostgresStore(
        settings.database_url, pool_size=settings.pool_size, stored=stored.exists if stored else None
    )
    wakeups = PostgresWakeups(settings.database_url)
    ledger = Ledger(
        store,
        wakeups,
        LedgerSettings(
            lease_s=settings.lease_s,
            sweep_s=settings.sweep_s,
            refresh_s=settings.claim_poll_s,
            keep_checkpoints=settings.keep_checkpoints,
            output_ttl_s=settings.output_ttl_s,
            guaranteed_run_s=settings.guaranteed_run_s,
        ),
    )
    webhooks = WebhookSettings(
        allow_private=settings.webhook_allow_private,
        timeout_s=settings.webhook_timeout_s,
        slots=settings.webhook_slots,
    )
    sender = HttpSender(allow_private=settings.webhook_allow_private)
    outbox = Outbox(store, sender, webhooks)
    retention = Retention(
        store,
        stored,
        RetentionSettings(
            policy=settings.retention_policy,
            retain_jobs_s=settings.retain_jobs_s,
            second_look_s=settings.second_look_s,
            orphan_grace_s=settings.orphan_grace_s,
            sweep_s=settings.retention_s,
            orphans_s=settings.orphans_s,
        ),
    )
    audios = Audios(store, upload_ttl_s=settings.upload_ttl_s)
    voices, bundles, identity = Voices(store), Bundles(store), Identity(store)
    if settings.bootstrap_team and settings.bootstrap_token:
        await identity.bootstrap(settings.bootstrap_team, settings.bootstrap_token)

    work = WorkServicer(ledger.work, ledger.dispatcher, ledger.orders)
    submit = SubmitServicer(Submitter(store, max_attempts=settings.max_attempts, foretelling=ledger.planner))
    lexicons = LexiconServicer(Lexicons(store))
    servicers: list[tuple[str, object]] = [
        ("voxfleet.internal.v1.IdentityService", IdentityServicer(identity)),
        ("voxfleet.internal.v1.CatalogService", CatalogServicer(audios, voices, bundles, identity)),
        ("voxfleet.internal.v1.WorkService", work),
        ("voxfleet.v1.AudioService", AudioServicer(audios)),
        ("voxfleet.v1.VoiceService", VoiceServicer(voices)),
        ("voxfleet.v1.VoiceService", submit),
        ("voxfleet.v1.SynthesisService", submit),
        ("voxfleet.v1.LexiconService", lexicons),
        ("voxfleet.internal.v1.CatalogService", lexicons),
        ("voxfleet.v1.JobService", JobServicer(ledger.jobs)),
        ("voxfleet.v1.JobService", WebhookServicer(Webhooks(store, webhooks))),
        ("voxfleet.v1.FleetService", FleetServicer(Fleet(store), distributions.version("voxfleet"))),
        ("voxfleet.v1.FleetService", RetentionServicer(retention)),
        ("voxfleet.v1.TrustService", TrustServicer(identity)),
    ]
    server = RpcServer(
        settings,
        [servicer_handlers(name, servicer) for name, servicer in servicers],
        service_authenticator(settings.service_token),
        services=sorted({name for name, _ in servicers}),
    )
    measuring = _measure(ledger.jobs, settings.sweep_s)
    loops = [
        asyncio.create_task(loop)
        for loop in (wakeups.run(), ledger.run(), outbox.run(), retention.run(), measuring)
    ]

    async def stop() -> None:
        # Watchers go on elsewhere at their cursor; workers keep their leases and come back.
        ledger.feed.close()
        work.drain()
        await server.drain()
        for task in loops:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        await sender.close()
        if stored is not None:
            stored.close()
        await store.close()
        telemetry.flush_traces()

    await server.start()
    await server.ready()
    await run_until_stopped(stop)


async def _schema(settings: MetadataSettings) -> None:
    """Migrates where we may; else refuses to start on an old schema. Errors: SCHEMA_OUTDATED."""
    if settings.migrate:
        revision = await asyncio.to_thread(migrate.migrate, settings.database_url)
        log.info("schema %s", revision)
        return
    revision = await asyncio.to_thread(migrate.current_revision, settings.database_url)
    if revision < migrate.newest_revision():
        raise unavailable(
            Reason.SCHEMA_OUTDATED,
            f"the schema is {revision or 'empty'}, this release needs {migrate.newest_revision()}: "
            "run `python -m services.metadata.migrate`",
        )


async def _measure(jobs: Jobs, every_s: float) -> None:
    """Keeps the queues' gauges."""
    while True:
        try:
            depths = await jobs.queues()
            for gauge in (QUEUED, RUNNING, OLDEST):
                gauge.clear()
            for depth in depths:
                labels = (depth.kind, depth.priority_class.name.lower())
                QUEUED.labels(*labels).set(depth.queued)
                RUNNING.labels(*labels).set(depth.running)
                OLDEST.labels(*labels).set(depth.oldest_wait_s)
        except VoxfleetError as error:
            log.warning("measuring: %s", error.message)
        await asyncio.sleep(5 * every_s)


def main() -> None:
    """Reads the settings and serves."""
    settings = MetadataSettings()  # type: ignore[call-arg]
    telemetry.configure_logging("metadata", settings.log_level, as_json=settings.log_json)
    telemetry.configure_tracing("metadata", settings.otlp_endpoint)
    s3 = S3Settings() if os.environ.get("VOXFLEET_S3_ENDPOINT") else None  # type: ignore[call-arg]
    run_service(serve(settings, s3))


if __name__ == "__main__":
    main()
