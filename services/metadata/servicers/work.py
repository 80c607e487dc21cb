"""The workers' channel: ``voxfleet.internal.v1.WorkService``."""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import AsyncIterator, Sequence

from google.protobuf import json_format

from services.common.errors import FailureClass, Reason, VoxfleetError, invalid
from services.common.jobs.model import (
    Checkpoint,
    Fence,
    FleetOrders,
    Progress,
    Released,
    StopKind,
    Succeeded,
    VoiceOutput,
)
from services.common.jobs.wire import (
    blob_from_proto,
    blob_to_proto,
    fence_from_proto,
    fence_to_proto,
    gpu_facts_from_proto,
    output_from_proto,
)
from services.common.rpc import status
from services.metadata.app.channel import Orders, WorkSession
from services.metadata.app.dispatch import Dispatcher
from services.metadata.app.work import Claimed, Ended, Work
from services.metadata.model.fleet import WorkerRow
from services.metadata.servicers import convert
from voxfleet.internal.v1 import work_pb2

_NOTICES = {
    StopKind.CANCEL: work_pb2.NOTICE_KIND_CANCEL,
    StopKind.LOST: work_pb2.NOTICE_KIND_LOST,
    StopKind.YIELD: work_pb2.NOTICE_KIND_YIELD,
}


class WorkServicer:
    """``WorkService``."""

    def __init__(self, work: Work, dispatcher: Dispatcher, orders: Orders) -> None:
        self._work = work
        self._dispatcher = dispatcher
        self._orders = orders
        self._sessions: set[WorkSession] = set()

    def drain(self) -> None:
        """Hands out no more leases; the channels stay, so that workers can end what they have."""
        for session in self._sessions:
            session.drain()

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
        session = WorkSession(self._work, self._dispatcher, row)
        self._sessions.add(session)
        replies: asyncio.Queue[work_pb2.WorkResponse | None] = asyncio.Queue()
        tasks = [
            asyncio.create_task(self._listen(requests, session, row, replies)),
            asyncio.create_task(self._hand_out(session, replies)),
            asyncio.create_task(self._order(replies)),
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
            self._sessions.discard(session)
            await self._work.drop_worker(row.worker)

    async def EndAttempts(
        self, request: work_pb2.EndAttemptsRequest, _: object
    ) -> work_pb2.EndAttemptsResponse:
        """Ends attempts; those that made no rows share a statement."""
        plain = [place for place, end in enumerate(request.ends) if _is_plain(end)]
        others = [place for place, end in enumerate(request.ends) if not _is_plain(end)]
        found, apart = await asyncio.gather(
            self._succeed_all([request.ends[place] for place in plain]),
            asyncio.gather(*(self._end(request.ends[place]) for place in others)),
        )
        ended = dict(zip([*plain, *others], [*found, *apart], strict=True))
        return work_pb2.EndAttemptsResponse(ended=[_ended(ended[place]) for place in sorted(ended)])

    async def _succeed_all(self, ends: Sequence[work_pb2.AttemptEnd]) -> list[Ended | VoxfleetError]:
        outcomes = [(fence_from_proto(end.fence), _succeeded(end.succeeded)) for end in ends]
        try:
            return await self._work.succeed_all(outcomes)
        except VoxfleetError as error:
            return [error for _ in ends]

    async def _end(self, end: work_pb2.AttemptEnd) -> Ended | VoxfleetError:
        fence = fence_from_proto(end.fence)
        try:
            match end.WhichOneof("outcome"):
                case "succeeded":
                    return await self._work.succeed(fence, _succeeded(end.succeeded))
                case "failed":
                    return await self._fail(fence, end.failed)
                case "cancelled":
                    return await self._work.cancelled(fence)
                case "released":
                    return await self._work.release(fence, Released(end.released.message))
                case _:
                    raise invalid(Reason.INVALID_ARGUMENT, "an attempt ends somehow", field="outcome")
        except VoxfleetError as error:
            return error

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
        failure = FailureClass(failed.failure_class or "permanent")
        return await self._work.fail(fence, error, failure, node=failed.node)

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
                    said = request.capacity
                    await session.offer(_offer(hello, said), said.leases_seen, gpu_facts_from_proto(said))
                elif request.HasField("heartbeats"):
                    beats = [
                        (fence_from_proto(beat.fence), _progress(beat))
                        for beat in request.heartbeats.heartbeats
                    ]
                    # Answered also where there is nothing to say: the answer is what confirms the leases.
                    await replies.put(_notices(await session.heartbeat(beats)))
        finally:
            replies.put_nowait(None)

    async def _order(self, replies: asyncio.Queue[work_pb2.WorkResponse | None]) -> None:
        async for orders in self._orders.changes():
            replies.put_nowait(_orders(orders))

    async def _hand_out(
        self, session: WorkSession, replies: asyncio.Queue[work_pb2.WorkResponse | None]
    ) -> None:
        try:
            async for claimed in session.leases():
                leases = [_lease(each, self._work.lease_s) for each in claimed]
                await replies.put(work_pb2.WorkResponse(leases=work_pb2.Leases(leases=leases)))
        finally:
            replies.put_nowait(None)


def _is_plain(end: work_pb2.AttemptEnd) -> bool:
    return end.HasField("succeeded") and not end.succeeded.audios and not end.succeeded.HasField("voice")


def _ended(ended: Ended | VoxfleetError) -> work_pb2.EndedAttempt:
    if isinstance(ended, VoxfleetError):
        return work_pb2.EndedAttempt(status=status.to_status(ended).SerializeToString())
    return work_pb2.EndedAttempt(
        state=convert.job_state(ended.job.state), audios=ended.audios, voice=ended.voice
    )


def _orders(orders: FleetOrders) -> work_pb2.WorkResponse:
    return work_pb2.WorkResponse(
        orders=work_pb2.FleetOrders(drained_nodes=sorted(orders.drained_nodes), grants=orders.grants)
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
        task_json=job.task,
        lease_s=lease_s,
        traceparent=job.traceparent,
        checkpoints=[
            work_pb2.CheckpointRecord(
                blob=blob_to_proto(row.blob), epoch=row.epoch, step=row.step, attempt=row.attempt
            )
            for row in claimed.checkpoints
        ],
        batch_scale=job.batch_scale,
        avoid_nodes=job.avoid_nodes,
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
        audios=tuple(output_from_proto(audio) for audio in found.audios),
        voice=voice,
        metrics=dict(found.metrics),
        curve=tuple((point.step, dict(point.metrics)) for point in found.curve),
        weights=found.weights,
        weights_trained=found.weights_trained,
    )
