"""The internal services of metadata in memory: what inference asks of them, and what it said."""

from __future__ import annotations

import json
import queue
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import grpc

from services.common.jobs.tasks import Task
from voxfleet.internal.v1 import catalog_pb2, catalog_pb2_grpc, work_pb2, work_pb2_grpc
from voxfleet.v1 import lexicon_pb2, voice_pb2


@dataclass
class MetadataStandIn(catalog_pb2_grpc.CatalogServiceServicer, work_pb2_grpc.WorkServiceServicer):
    """Hands out the jobs it is given and keeps what became of them."""

    voices: dict[str, catalog_pb2.ResolveVoiceResponse] = field(default_factory=dict)
    bundles: dict[str, str] = field(default_factory=dict)
    accepted: dict[str, str] = field(default_factory=dict)
    usage: list[catalog_pb2.RecordUsageRequest] = field(default_factory=list)
    licences: list[str] = field(default_factory=list)
    lexicons: dict[str, list[lexicon_pb2.LexiconEntry]] = field(default_factory=dict)
    free: dict[str, int] = field(default_factory=dict)
    capacity: work_pb2.WorkerCapacity = field(default_factory=work_pb2.WorkerCapacity)
    ended: dict[str, work_pb2.AttemptEnd] = field(default_factory=dict)
    progress: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
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

    def lease(self, job: str, task: Task, *, attempt: int = 1) -> None:
        lease = work_pb2.Lease(
            fence=work_pb2.Fence(job_id=job, attempt=attempt, lease_token=f"token-{job}"),
            job=f"teams/blue/jobs/{job}",
            kind=task.kind,
            task_json=task.model_dump_json(),
            lease_s=30.0,
            traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
        )
        self._out.put(work_pb2.WorkResponse(leases=work_pb2.Leases(leases=[lease])))

    def cancel(self, job: str, *, attempt: int = 1) -> None:
        fence = work_pb2.Fence(job_id=job, attempt=attempt, lease_token=f"token-{job}")
        notice = work_pb2.Notice(fence=fence, kind=work_pb2.NOTICE_KIND_CANCEL)
        self._out.put(work_pb2.WorkResponse(notices=work_pb2.Notices(notices=[notice])))

    def add_voice(self, name: str, engine: str, **facts: object) -> None:
        self.voices[name] = catalog_pb2.ResolveVoiceResponse(
            voice=voice_pb2.Voice(name=name, engine=engine, languages=["en"]),
            **facts,  # type: ignore[arg-type]
        )

    # ---- CatalogService

    def ResolveVoice(self, request, context):
        if request.name not in self.voices:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such voice")
        return self.voices[request.name]

    def ResolveTeam(self, request, context):
        return catalog_pb2.ResolveTeamResponse(allowed_licences=self.licences)

    def ResolvePronunciations(self, request, context):
        entries = [entry for name in request.lexicons for entry in self.lexicons[name]]
        return catalog_pb2.ResolvePronunciationsResponse(pronunciations=entries)

    def ListStoredBundles(self, request, context):
        return catalog_pb2.ListStoredBundlesResponse(
            bundles=[catalog_pb2.StoredBundle(name=n, manifest_json=m) for n, m in self.bundles.items()]
        )

    def StoreBundle(self, request, context):
        name = json.loads(request.manifest_json)["name"]
        self.bundles[name], self.accepted[name] = request.manifest_json, request.accepted_by
        return catalog_pb2.StoredBundle(name=name, manifest_json=request.manifest_json)

    def RecordUsage(self, request, context):
        self.usage.append(request)
        return catalog_pb2.RecordUsageResponse()

    # ---- WorkService

    def Work(self, request_iterator, context) -> Iterator[work_pb2.WorkResponse]:
        def listen() -> None:
            try:
                for request in request_iterator:
                    if request.HasField("capacity"):
                        self.capacity, self.free = request.capacity, dict(request.capacity.free)
                    for beat in request.heartbeats.heartbeats:
                        if beat.HasField("progress"):
                            seen = (beat.progress.phase, beat.progress.percent)
                            self.progress.setdefault(beat.fence.job_id, []).append(seen)
                    if request.HasField("heartbeats"):
                        # The lease holds on from here.
                        self._out.put(work_pb2.WorkResponse(notices=work_pb2.Notices()))
            except grpc.RpcError:
                return

        threading.Thread(target=listen, daemon=True).start()
        while context.is_active():
            try:
                yield self._out.get(timeout=0.05)
            except queue.Empty:
                continue

    def EndAttempts(self, request, context):
        for end in request.ends:
            self.ended[end.fence.job_id] = end
        return work_pb2.EndAttemptsResponse(ended=[work_pb2.EndedAttempt() for _ in request.ends])
