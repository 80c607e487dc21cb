"""Metadata's side of the work channel in memory: hands out trainings, keeps what was said of them."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from services.common.jobs.tasks import TrainTask
from voxfleet.internal.v1 import catalog_pb2, catalog_pb2_grpc, work_pb2, work_pb2_grpc
from voxfleet.v1 import job_pb2

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"


@dataclass
class LedgerStandIn(catalog_pb2_grpc.CatalogServiceServicer, work_pb2_grpc.WorkServiceServicer):
    """Keeps two checkpoints a job, as the real one does."""

    hello: list[work_pb2.WorkerHello] = field(default_factory=list)
    free: int = -1
    gpus_free: float = -1.0
    virtual_gpus: bool | None = None
    seen: list[tuple[str, str, float]] = field(default_factory=list)
    """(job, phase, GPUs free) at every heartbeat with progress."""
    progress: dict[str, list[job_pb2.JobProgress]] = field(default_factory=dict)
    checkpoints: dict[str, list[work_pb2.CheckpointRecord]] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    ended: dict[tuple[str, int], work_pb2.AttemptEnd] = field(default_factory=dict)
    port: int = 0

    def __post_init__(self) -> None:
        self._out: queue.Queue[work_pb2.WorkResponse] = queue.Queue()
        self._server = grpc.server(ThreadPoolExecutor(16))
        catalog_pb2_grpc.add_CatalogServiceServicer_to_server(self, self._server)
        work_pb2_grpc.add_WorkServiceServicer_to_server(self, self._server)
        self.port = self._server.add_insecure_port("127.0.0.1:0")
        self._server.start()

    def stop(self) -> None:
        self._server.stop(None)

    # ---- for tests

    def lease(self, job: str, task: TrainTask, *, attempt: int = 1) -> None:
        lease = work_pb2.Lease(
            fence=self._fence(job, attempt),
            job=f"teams/blue/jobs/{job}",
            kind=task.kind,
            task_json=task.model_dump_json(),
            lease_s=30.0,
            traceparent=f"00-{TRACE_ID}-b7ad6b7169203331-01",
            checkpoints=self.checkpoints.get(job, []),
        )
        self._out.put(work_pb2.WorkResponse(leases=work_pb2.Leases(leases=[lease])))

    def notify(self, job: str, kind: work_pb2.NoticeKind.ValueType, *, attempt: int = 1) -> None:
        notice = work_pb2.Notice(fence=self._fence(job, attempt), kind=kind)
        self._out.put(work_pb2.WorkResponse(notices=work_pb2.Notices(notices=[notice])))

    def step(self, job: str) -> int:
        """The newest step of training that was told."""
        told = [p.step for p in self.progress.get(job, []) if p.phase == "train"]
        return told[-1] if told else 0

    def _fence(self, job: str, attempt: int) -> work_pb2.Fence:
        return work_pb2.Fence(job_id=job, attempt=attempt, lease_token=f"token-{job}")

    # ---- CatalogService

    def ListStoredBundles(self, request, context):
        return catalog_pb2.ListStoredBundlesResponse()

    # ---- WorkService

    def Work(self, request_iterator, context) -> Iterator[work_pb2.WorkResponse]:
        threading.Thread(target=self._listen, args=(request_iterator,), daemon=True).start()
        while context.is_active():
            try:
                yield self._out.get(timeout=0.05)
            except queue.Empty:
                continue

    def _listen(self, requests) -> None:
        try:
            for request in requests:
                if request.HasField("hello"):
                    self.hello.append(request.hello)
                if request.HasField("capacity"):
                    self.free = request.capacity.free.get("rvc.train", 0)
                    self.gpus_free = sum(node.gpus_free for node in request.capacity.nodes)
                    self.virtual_gpus = all(node.virtual_gpus for node in request.capacity.nodes)
                for beat in request.heartbeats.heartbeats:
                    if beat.HasField("progress"):
                        job = beat.fence.job_id
                        self.progress.setdefault(job, []).append(beat.progress)
                        self.seen.append((job, beat.progress.phase, self.gpus_free))
                if request.HasField("heartbeats"):
                    # The lease holds on from here.
                    self._out.put(work_pb2.WorkResponse(notices=work_pb2.Notices()))
        except grpc.RpcError:
            return

    def RecordCheckpoint(self, request, context):
        rows = self.checkpoints.setdefault(request.fence.job_id, [])
        rows.insert(0, request.checkpoint)
        gone = [row.blob.key for row in rows[2:]]
        del rows[2:]
        self.dropped.extend(gone)
        return work_pb2.RecordCheckpointResponse(dropped_keys=gone)

    def EndAttempts(self, request, context):
        for end in request.ends:
            self.ended[(end.fence.job_id, end.fence.attempt)] = end
        return work_pb2.EndAttemptsResponse(ended=[work_pb2.EndedAttempt() for _ in request.ends])
