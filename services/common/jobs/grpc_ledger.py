"""The ledger over gRPC: ``voxfleet.internal.v1.WorkService``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence
from dataclasses import asdict

import grpc

from services.common.errors import Reason, VoxfleetError, unavailable
from services.common.jobs.model import (
    Capacity,
    Checkpoint,
    Fence,
    FleetOrders,
    HeartbeatAck,
    Lease,
    Message,
    Outcome,
    Progress,
    Released,
    StopKind,
    UnreadableLease,
)
from services.common.jobs.ports import WorkStream
from services.common.jobs.tasks import load_task
from services.common.jobs.wire import (
    blob_from_proto,
    blob_to_proto,
    fence_from_proto,
    fence_to_proto,
    output_to_proto,
    progress_to_proto,
)
from services.common.rpc import status
from services.common.together import Together
from voxfleet.internal.v1 import work_pb2, work_pb2_grpc
from voxfleet.v1 import fleet_pb2

log = logging.getLogger(__name__)

_ENDS_AT_ONCE = 200

_STOP_KINDS = {
    work_pb2.NOTICE_KIND_CANCEL: StopKind.CANCEL,
    work_pb2.NOTICE_KIND_LOST: StopKind.LOST,
    work_pb2.NOTICE_KIND_YIELD: StopKind.YIELD,
}


class GrpcLedger:
    """The ledger behind a channel."""

    def __init__(
        self, channel: grpc.aio.Channel, *, worker: str, queue: str, node: str, version: str
    ) -> None:
        """Makes the adapter.

        Args:
            channel: to metadata.
            worker: unique per process start.
            queue: whose jobs it takes.
            node: where it runs.
            version: its release.
        """
        self._stub = work_pb2_grpc.WorkServiceStub(channel)
        self._hello = work_pb2.WorkerHello(worker=worker, queue=queue, node=node, version=version)
        self._ends = Together(self._end_all, most=_ENDS_AT_ONCE)

    async def connect(self) -> WorkStream:
        """Opens the work channel."""
        stream = _GrpcWorkStream(self._stub.Work())
        await stream.send(work_pb2.WorkRequest(hello=self._hello))
        return stream

    async def succeed(self, fence: Fence, outcome: Outcome) -> None:
        """Ends an attempt well, or gives it back. Errors: LEASE_LOST."""
        end = work_pb2.AttemptEnd(fence=fence_to_proto(fence))
        if isinstance(outcome, Released):
            end.released.message = outcome.message
        else:
            end.succeeded.metrics.update(outcome.metrics)
            end.succeeded.weights = outcome.weights
            end.succeeded.weights_trained = outcome.weights_trained
            end.succeeded.audios.extend(output_to_proto(audio) for audio in outcome.audios)
            for step, metrics in outcome.curve:
                end.succeeded.curve.add(step=step, metrics=metrics)
            if outcome.voice is not None:
                end.succeeded.voice.CopyFrom(
                    work_pb2.OutputVoice(
                        package=blob_to_proto(outcome.voice.package),
                        content_encoder=outcome.voice.content_encoder,
                        rate_hz=outcome.voice.rate_hz,
                        metrics=outcome.voice.metrics,
                    )
                )
        await self._end(end)

    async def fail(self, fence: Fence, error: VoxfleetError) -> None:
        """Ends an attempt badly. Errors: LEASE_LOST."""
        await self._end(
            work_pb2.AttemptEnd(
                fence=fence_to_proto(fence),
                failed=work_pb2.AttemptFailed(
                    error=status.to_proto(error),
                    failure_class=error.failure.value,
                    node=error.metadata.get("node", ""),
                ),
            )
        )

    async def cancelled(self, fence: Fence) -> None:
        """Ends an attempt that was stopped as asked. Errors: LEASE_LOST."""
        await self._end(
            work_pb2.AttemptEnd(fence=fence_to_proto(fence), cancelled=work_pb2.AttemptCancelled())
        )

    async def record_checkpoint(self, fence: Fence, checkpoint: Checkpoint) -> list[str]:
        """Makes a checkpoint's row; returns keys whose bytes may go. Errors: LEASE_LOST."""
        record = work_pb2.CheckpointRecord(
            blob=blob_to_proto(checkpoint.blob),
            epoch=checkpoint.epoch,
            step=checkpoint.step,
            attempt=fence.attempt,
        )
        request = work_pb2.RecordCheckpointRequest(fence=fence_to_proto(fence), checkpoint=record)
        try:
            return list((await self._stub.RecordCheckpoint(request, timeout=30)).dropped_keys)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None

    async def _end(self, end: work_pb2.AttemptEnd) -> None:
        ended = await self._ends(end, [fence_from_proto(end.fence)])
        if ended.status:
            raise status.from_status(ended.status)

    async def _end_all(self, ends: Sequence[work_pb2.AttemptEnd]) -> Sequence[work_pb2.EndedAttempt]:
        try:
            answer = await self._stub.EndAttempts(work_pb2.EndAttemptsRequest(ends=ends), timeout=30)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        return answer.ended


class _GrpcWorkStream:
    def __init__(self, call: grpc.aio.StreamStreamCall[work_pb2.WorkRequest, work_pb2.WorkResponse]) -> None:
        self._call = call
        self._lock = asyncio.Lock()

    async def send(self, request: work_pb2.WorkRequest) -> None:
        try:
            async with self._lock:
                await self._call.write(request)
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None
        except asyncio.InvalidStateError:  # the call has ended
            raise unavailable(Reason.SERVICE_UNAVAILABLE, "the work channel has ended") from None

    async def offer(self, capacity: Capacity, *, leases_seen: int) -> None:
        nodes = [
            fleet_pb2.Node(
                name=node.name,
                state=node.state,
                gpus=node.gpus,
                gpus_free=node.gpus_free,
                cpus=node.cpus,
                virtual_gpus=node.virtual_gpus,
                gpu_type=node.gpu_type,
            )
            for node in capacity.nodes
        ]
        await self.send(
            work_pb2.WorkRequest(
                capacity=work_pb2.WorkerCapacity(
                    free=capacity.free,
                    nodes=nodes,
                    default_bundle=capacity.default_bundle,
                    leases_seen=leases_seen,
                    trainings=[work_pb2.TrainingGpus(**asdict(one)) for one in capacity.gpus.trainings],
                    pools=[work_pb2.PoolState(**asdict(pool)) for pool in capacity.gpus.pools],
                )
            )
        )

    async def heartbeat(self, beats: Sequence[tuple[Fence, Progress | None]]) -> None:
        request = work_pb2.WorkRequest()
        for fence, progress in beats:
            beat = request.heartbeats.heartbeats.add(fence=fence_to_proto(fence))
            if progress is not None:
                beat.progress.CopyFrom(progress_to_proto(progress))
        await self.send(request)

    async def messages(self) -> AsyncIterator[Message]:
        try:
            async for response in self._call:
                for lease in response.leases.leases:
                    try:
                        yield _lease_from_proto(lease)
                    except ValueError:
                        log.exception("%s: its task cannot be read", lease.job)
                        yield UnreadableLease(fence_from_proto(lease.fence), lease.job)
                if response.HasField("notices"):
                    yield HeartbeatAck()
                if response.HasField("orders"):
                    orders = response.orders
                    yield FleetOrders(frozenset(orders.drained_nodes), dict(orders.grants))
                for notice in response.notices.notices:
                    if kind := _STOP_KINDS.get(notice.kind):
                        yield fence_from_proto(notice.fence), kind
        except grpc.aio.AioRpcError as error:
            raise status.from_rpc_error(error) from None

    async def close(self) -> None:
        self._call.cancel()


def _lease_from_proto(lease: work_pb2.Lease) -> Lease:
    return Lease(
        fence=fence_from_proto(lease.fence),
        job=lease.job,
        task=load_task(lease.task_json),
        lease_s=lease.lease_s,
        traceparent=lease.traceparent,
        checkpoints=tuple(
            Checkpoint(blob_from_proto(c.blob), c.epoch, c.step, c.attempt) for c in lease.checkpoints
        ),
        batch_scale=lease.batch_scale or 1.0,
        avoid_nodes=tuple(lease.avoid_nodes),
    )
