"""The internal services: identity, catalogue, work."""

from __future__ import annotations

import asyncio
import datetime as dt
import json
from collections.abc import AsyncIterator

from google.protobuf import json_format

from services.common import names
from services.common.errors import FailureClass, Reason, invalid
from services.common.jobs.grpc_ledger import blob_from_proto, blob_to_proto, fence_from_proto, fence_to_proto
from services.common.jobs.model import (
    AudioOutput,
    Checkpoint,
    Fence,
    Progress,
    Released,
    StopKind,
    Succeeded,
    VoiceOutput,
)
from services.metadata.app.audios import Audios
from services.metadata.app.bundles import Bundles
from services.metadata.app.identity import Identity
from services.metadata.app.voices import Voices
from services.metadata.app.work import Claimed, Ended, Work, WorkSession
from services.metadata.model.catalog import StoredBundle
from services.metadata.model.fleet import WorkerRow
from services.metadata.servicers import convert
from voxfleet.internal.v1 import catalog_pb2, identity_pb2, work_pb2
from voxfleet.v1 import audio_pb2

IDENTITY_CACHE_S = 30

_NOTICES = {
    StopKind.CANCEL: work_pb2.NOTICE_KIND_CANCEL,
    StopKind.LOST: work_pb2.NOTICE_KIND_LOST,
    StopKind.YIELD: work_pb2.NOTICE_KIND_YIELD,
}


class IdentityServicer:
    """``IdentityService``."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def Authenticate(
        self, request: identity_pb2.AuthenticateRequest, _: object
    ) -> identity_pb2.AuthenticateResponse:
        """Who holds a token."""
        principal = await self._identity.authenticate(request.token_sha256)
        return identity_pb2.AuthenticateResponse(
            team=principal.team, key=principal.key, operator=principal.operator, cache_s=IDENTITY_CACHE_S
        )


class CatalogServicer:
    """``CatalogService``."""

    def __init__(self, audios: Audios, voices: Voices, bundles: Bundles) -> None:
        self._audios = audios
        self._voices = voices
        self._bundles = bundles

    async def OpenUpload(self, request: catalog_pb2.OpenUploadRequest, _: object) -> catalog_pb2.UploadRecord:
        """Makes the row of an upload."""
        team = names.parse_team(request.parent)
        spec = convert.as_json(request.audio)
        return convert.upload_to_proto(await self._audios.open_upload(team, request.upload_id, spec))

    async def FetchUpload(
        self, request: catalog_pb2.FetchUploadRequest, _: object
    ) -> catalog_pb2.UploadRecord:
        """An upload's row."""
        name = names.parse(request.name, "uploads")
        return convert.upload_to_proto(await self._audios.get_upload(name.team, name.id))

    async def AdvanceUpload(
        self, request: catalog_pb2.AdvanceUploadRequest, _: object
    ) -> catalog_pb2.UploadRecord:
        """Moves the durable offset on."""
        name = names.parse(request.name, "uploads")
        return convert.upload_to_proto(
            await self._audios.advance_upload(name.team, name.id, request.from_offset, request.to_offset)
        )

    async def DropUpload(
        self, request: catalog_pb2.DropUploadRequest, _: object
    ) -> catalog_pb2.DropUploadResponse:
        """Forgets a refused upload."""
        name = names.parse(request.name, "uploads")
        await self._audios.drop_upload(name.team, name.id)
        return catalog_pb2.DropUploadResponse()

    async def CommitAudio(self, request: catalog_pb2.CommitAudioRequest, _: object) -> audio_pb2.Audio:
        """Turns an upload into an audio."""
        name = names.parse(request.upload, "uploads", field="upload")
        audio = await self._audios.commit(
            name.team,
            name.id,
            blob_from_proto(request.blob),
            convert.as_json(request.measures),
            convert.as_json(request.assessment),
        )
        return convert.audio_to_proto(audio)

    async def ResolveAudio(
        self, request: catalog_pb2.ResolveAudioRequest, _: object
    ) -> catalog_pb2.ResolveAudioResponse:
        """An audio with where its bytes are."""
        name = names.parse(request.name, "audios")
        audio = await self._audios.get(name.team, name.id)
        return catalog_pb2.ResolveAudioResponse(
            audio=convert.audio_to_proto(audio), blob=blob_to_proto(audio.blob)
        )

    async def StoreMeasures(self, request: catalog_pb2.StoreMeasuresRequest, _: object) -> audio_pb2.Audio:
        """Keeps the measures of an audio."""
        name = names.parse(request.name, "audios")
        audio = await self._audios.store_measures(
            name.team, name.id, convert.as_json(request.measures), convert.as_json(request.assessment)
        )
        return convert.audio_to_proto(audio)

    async def ResolveVoice(
        self, request: catalog_pb2.ResolveVoiceRequest, _: object
    ) -> catalog_pb2.ResolveVoiceResponse:
        """A voice with everything an engine needs."""
        name = names.parse(request.name, "voices")
        return convert.voice_resolution(*await self._voices.resolve(name.team, name.id, request.style))

    async def ListStoredBundles(
        self, _request: catalog_pb2.ListStoredBundlesRequest, _: object
    ) -> catalog_pb2.ListStoredBundlesResponse:
        """Bundles that the store has."""
        found = await self._bundles.page()
        return catalog_pb2.ListStoredBundlesResponse(bundles=[_bundle(bundle) for bundle in found])

    async def StoreBundle(
        self, request: catalog_pb2.StoreBundleRequest, _: object
    ) -> catalog_pb2.StoredBundle:
        """Records a bundle."""
        try:
            manifest = json.loads(request.manifest_json)
            name = str(manifest["name"])
        except (ValueError, KeyError, TypeError):
            raise invalid(
                Reason.INVALID_ARGUMENT, "manifest_json is no manifest", field="manifest_json"
            ) from None
        return _bundle(await self._bundles.store(name, manifest, request.accepted_by))

    async def RecordUsage(
        self, request: catalog_pb2.RecordUsageRequest, _: object
    ) -> catalog_pb2.RecordUsageResponse:
        """Records what was used."""
        await self._bundles.record_usage(
            names.parse_team(request.parent),
            request.voice,
            request.audio_s,
            request.work_s,
            request.characters,
        )
        return catalog_pb2.RecordUsageResponse()

    async def TakeGarbage(
        self, request: catalog_pb2.TakeGarbageRequest, _: object
    ) -> catalog_pb2.TakeGarbageResponse:
        """Keys and prefixes that no row names."""
        keys, prefixes = await self._audios.take_garbage(request.limit or 100)
        return catalog_pb2.TakeGarbageResponse(keys=keys, prefixes=prefixes)


class WorkServicer:
    """``WorkService``."""

    def __init__(self, work: Work) -> None:
        self._work = work

    async def Work(
        self, requests: AsyncIterator[work_pb2.WorkRequest], _: object
    ) -> AsyncIterator[work_pb2.WorkResponse]:
        """The work channel of one worker process."""
        first = await anext(aiter(requests), None)
        if first is None or not first.HasField("hello"):
            raise invalid(Reason.INVALID_ARGUMENT, "the first message must be hello", field="hello")
        hello = first.hello
        row = WorkerRow(
            hello.worker, hello.queue, hello.node, hello.version, {}, (), "", 0, dt.datetime.now(dt.UTC)
        )
        session = WorkSession(self._work, row)
        replies: asyncio.Queue[work_pb2.WorkResponse | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._listen(requests, session, row, replies)),
            asyncio.create_task(self._hand_out(session, replies)),
        ]
        try:
            while (reply := await replies.get()) is not None:
                yield reply
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._work.drop_worker(row.worker)

    async def EndAttempt(self, request: work_pb2.EndAttemptRequest, _: object) -> work_pb2.EndAttemptResponse:
        """Ends an attempt."""
        fence = fence_from_proto(request.fence)
        match request.WhichOneof("outcome"):
            case "succeeded":
                ended = await self._work.succeed(fence, _succeeded(request.succeeded))
            case "failed":
                ended = await self._fail(fence, request.failed)
            case "cancelled":
                ended = await self._work.cancelled(fence)
            case "released":
                ended = await self._work.release(fence, Released(request.released.message))
            case _:
                raise invalid(Reason.INVALID_ARGUMENT, "an attempt ends somehow", field="outcome")
        return work_pb2.EndAttemptResponse(
            state=convert.job_state(ended.job.state), audios=ended.audios, voice=ended.voice
        )

    async def RecordCheckpoint(
        self, request: work_pb2.RecordCheckpointRequest, _: object
    ) -> work_pb2.RecordCheckpointResponse:
        """Makes a checkpoint's row."""
        found = request.checkpoint
        checkpoint = Checkpoint(blob_from_proto(found.blob), found.epoch, found.step)
        dropped = await self._work.record_checkpoint(fence_from_proto(request.fence), checkpoint)
        return work_pb2.RecordCheckpointResponse(dropped_keys=dropped)

    async def _fail(self, fence: Fence, failed: work_pb2.AttemptFailed) -> Ended:
        error = json_format.MessageToDict(failed.error, preserving_proto_field_name=True)
        return await self._work.fail(fence, error, FailureClass(failed.failure_class or "permanent"))

    async def _listen(
        self,
        requests: AsyncIterator[work_pb2.WorkRequest],
        session: WorkSession,
        hello: WorkerRow,
        replies: asyncio.Queue[work_pb2.WorkResponse | None],
    ) -> None:
        try:
            async for request in requests:
                if request.HasField("capacity"):
                    await session.offer(_offer(hello, request.capacity), request.capacity.leases_seen)
                elif request.HasField("heartbeats"):
                    beats = [
                        (fence_from_proto(beat.fence), _progress(beat))
                        for beat in request.heartbeats.heartbeats
                    ]
                    # Answered also where there is nothing to say: the answer is what confirms the leases.
                    await replies.put(_notices(await session.heartbeat(beats)))
        finally:
            replies.put_nowait(None)

    async def _hand_out(
        self, session: WorkSession, replies: asyncio.Queue[work_pb2.WorkResponse | None]
    ) -> None:
        try:
            async for claimed in session.leases():
                leases = [_lease(each, self._work.lease_s) for each in claimed]
                await replies.put(work_pb2.WorkResponse(leases=work_pb2.Leases(leases=leases)))
        finally:
            replies.put_nowait(None)


def _bundle(bundle: StoredBundle) -> catalog_pb2.StoredBundle:
    return catalog_pb2.StoredBundle(
        name=bundle.name,
        manifest_json=json.dumps(dict(bundle.manifest)),
        create_time=convert.stamp(bundle.created_at),
    )


def _offer(hello: WorkerRow, capacity: work_pb2.WorkerCapacity) -> WorkerRow:
    return WorkerRow(
        worker=hello.worker,
        queue=hello.queue,
        node=hello.node,
        version=hello.version,
        free=dict(capacity.free),
        nodes=tuple(convert.as_json(node) for node in capacity.nodes),
        default_bundle=capacity.default_bundle,
        running=0,
        last_seen=dt.datetime.now(dt.UTC),
    )


def _progress(beat: work_pb2.LeaseHeartbeat) -> Progress | None:
    if not beat.HasField("progress"):
        return None
    p = beat.progress
    return Progress(p.phase, p.step, p.total_steps, p.percent, dict(p.metrics), p.message, p.remaining_s)


def _notices(notices: list[tuple[Fence, StopKind]]) -> work_pb2.WorkResponse:
    return work_pb2.WorkResponse(
        notices=work_pb2.Notices(
            notices=[
                work_pb2.Notice(fence=fence_to_proto(fence), kind=_NOTICES[kind]) for fence, kind in notices
            ]
        )
    )


def _lease(claimed: Claimed, lease_s: float) -> work_pb2.Lease:
    job = claimed.job
    return work_pb2.Lease(
        fence=fence_to_proto(claimed.fence),
        job=job.name,
        kind=job.kind,
        task_json=json.dumps(dict(job.task)),
        lease_s=lease_s,
        traceparent=job.traceparent,
        checkpoints=[
            work_pb2.CheckpointRecord(
                blob=blob_to_proto(row.blob), epoch=row.epoch, step=row.step, attempt=row.attempt
            )
            for row in claimed.checkpoints
        ],
    )


def _succeeded(found: work_pb2.AttemptSucceeded) -> Succeeded:
    voice = None
    if found.HasField("voice"):
        voice = VoiceOutput(
            blob_from_proto(found.voice.package),
            found.voice.content_encoder,
            found.voice.rate_hz,
            dict(found.voice.metrics),
        )
    return Succeeded(
        audios=tuple(
            AudioOutput(
                blob=blob_from_proto(audio.blob),
                duration_s=audio.duration_s,
                rate_hz=audio.rate_hz,
                channels=audio.channels,
                codec=audio.codec,
                display_name=audio.display_name,
                engine=audio.engine,
                weights=audio.weights,
                weights_trained=audio.weights_trained,
                weights_licence=audio.weights_licence,
                seed=audio.seed,
                voice=audio.voice,
                source_audio=audio.source_audio,
            )
            for audio in found.audios
        ),
        voice=voice,
        metrics=dict(found.metrics),
        curve=tuple((point.step, dict(point.metrics)) for point in found.curve),
        weights=found.weights,
        weights_trained=found.weights_trained,
    )
