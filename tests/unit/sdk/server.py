"""A double of the gateway for tests of the client: real gRPC, scripted behaviour."""

from __future__ import annotations

import collections
import hashlib
import threading
from concurrent import futures
from typing import Any

import grpc

from services.common.errors import Reason, VoxfleetError, not_found, precondition, unavailable
from services.common.rpc.status import CODE_OF_KIND, trailers
from voxfleet.v1 import (
    audio_pb2,
    audio_pb2_grpc,
    fleet_pb2,
    fleet_pb2_grpc,
    job_pb2,
    job_pb2_grpc,
    lexicon_pb2_grpc,
    synthesis_pb2,
    synthesis_pb2_grpc,
    trust_pb2,
    trust_pb2_grpc,
    voice_pb2,
    voice_pb2_grpc,
)

TEAM = "teams/acme"


class Double(
    audio_pb2_grpc.AudioServiceServicer,
    job_pb2_grpc.JobServiceServicer,
    voice_pb2_grpc.VoiceServiceServicer,
    synthesis_pb2_grpc.SynthesisServiceServicer,
    fleet_pb2_grpc.FleetServiceServicer,
    trust_pb2_grpc.TrustServiceServicer,
    lexicon_pb2_grpc.LexiconServiceServicer,
):
    """What it was asked is in ``calls``; what it is to refuse is in ``failures``, by method."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Any]] = []
        self.metadata: list[dict[str, str]] = []
        self.failures: dict[str, collections.deque[VoxfleetError | grpc.StatusCode]] = (
            collections.defaultdict(collections.deque)
        )
        # Bytes after which the next upload streams are cut; what was durable by then may be less.
        self.cut_uploads_after: collections.deque[int] = collections.deque()
        self.durable_block = 1
        self.lose_answer = False
        self.uploads: dict[str, bytearray] = {}
        self.openings: dict[str, audio_pb2.OpenUpload] = {}
        self.committed: dict[str, str] = {}
        self.audios: dict[str, bytes] = {}
        self.cut_downloads_after: collections.deque[int] = collections.deque()
        self.corrupt_download = False
        self.provenance: audio_pb2.Provenance | None = None
        self.verified = trust_pb2.VerifyProvenanceResponse()
        self.watches: collections.deque[list[job_pb2.WatchJobResponse | VoxfleetError]] = collections.deque()
        self.jobs: dict[str, job_pb2.Job] = {}
        self.items: list[job_pb2.Job] = []
        self.voices: dict[str, voice_pb2.Voice] = {}
        self.speech: list[synthesis_pb2.SynthesizeResponse] = []
        self.bundles: list[synthesis_pb2.Bundle] = []
        self.imported: dict[str, bytes] = {}
        self.lock = threading.Lock()

    def asked(self, method: str) -> list[Any]:
        return [request for name, request in self.calls if name == method]

    def note(self, method: str, request: Any, context: grpc.ServicerContext) -> None:
        with self.lock:
            self.calls.append((method, request))
            self.metadata.append({str(k): str(v) for k, v in context.invocation_metadata()})
            failure = self.failures[method].popleft() if self.failures[method] else None
        if failure is not None:
            refuse(context, failure)

    # audio

    def UploadAudio(self, request_iterator: Any, context: grpc.ServicerContext) -> audio_pb2.Audio:
        first = next(request_iterator)
        self.note("UploadAudio", first, context)
        if first.HasField("open"):
            name = f"{first.open.parent}/uploads/{first.open.upload_id}"
            self.openings[name] = first.open
            data = self.uploads[name] = bytearray()
        else:
            name = first.resume.upload
            data = self.uploads[name]
            if first.resume.offset != len(data):
                refuse(context, precondition(Reason.UPLOAD_OFFSET_MISMATCH, f"resume at {len(data)}"))
        cut_after = self.cut_uploads_after.popleft() if self.cut_uploads_after else None
        for message in request_iterator:
            data += message.chunk
            if cut_after is not None and len(data) >= cut_after:
                # What is not a whole block is lost with the stream, as with a real store.
                del data[len(data) // self.durable_block * self.durable_block :]
                refuse(context, unavailable(Reason.SERVICE_UNAVAILABLE, "going down", retry_after_s=0.0))
        # A connection that dies can look like one that was closed in good order.
        if len(data) != self.openings[name].audio.size_bytes:
            refuse(context, precondition(Reason.UPLOAD_INCOMPLETE, f"{len(data)} bytes came"))
        audio = self.commit(name)
        if self.lose_answer:
            self.lose_answer = False
            refuse(context, grpc.StatusCode.UNAVAILABLE)
        return audio

    def commit(self, upload: str) -> audio_pb2.Audio:
        data = bytes(self.uploads[upload])
        name = f"{TEAM}/audios/a-{len(self.audios) + 1:04}"
        self.audios[name] = data
        self.committed[upload] = name
        return self.audio(name, self.openings[upload].audio.display_name)

    def audio(self, name: str, display_name: str = "") -> audio_pb2.Audio:
        data = self.audios[name]
        return audio_pb2.Audio(
            name=name,
            display_name=display_name,
            state=audio_pb2.AUDIO_STATE_READY,
            sha256=hashlib.sha256(data).hexdigest(),
            size_bytes=len(data),
            media_type="audio/wav",
            provenance=self.provenance,
        )

    def GetUpload(self, request: Any, context: grpc.ServicerContext) -> audio_pb2.Upload:
        self.note("GetUpload", request, context)
        if request.name not in self.uploads:
            refuse(context, not_found(Reason.UPLOAD_NOT_FOUND, request.name))
        return audio_pb2.Upload(
            name=request.name,
            durable_offset=len(self.uploads[request.name]),
            audio=self.committed.get(request.name, ""),
        )

    def GetAudio(self, request: Any, context: grpc.ServicerContext) -> audio_pb2.Audio:
        self.note("GetAudio", request, context)
        if request.name not in self.audios:
            refuse(context, not_found(Reason.AUDIO_NOT_FOUND, request.name))
        return self.audio(request.name)

    def ListAudios(self, request: Any, context: grpc.ServicerContext) -> audio_pb2.ListAudiosResponse:
        self.note("ListAudios", request, context)
        names = sorted(self.audios)
        begin = int(request.page_token or 0)
        end = begin + (request.page_size or 2)
        return audio_pb2.ListAudiosResponse(
            audios=[self.audio(name) for name in names[begin:end]],
            next_page_token=str(end) if end < len(names) else "",
        )

    def AnalyzeAudio(self, request: Any, context: grpc.ServicerContext) -> audio_pb2.AnalyzeAudioResponse:
        self.note("AnalyzeAudio", request, context)
        return audio_pb2.AnalyzeAudioResponse(
            measures=audio_pb2.AudioMeasures(duration_s=12.5, snr_db=28.5, rate_hz=48000),
            assessment=audio_pb2.AudioAssessment(grade="B+", trainable=True),
        )

    def DownloadAudio(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.note("DownloadAudio", request, context)
        data = self.audios[request.name]
        cut_after = self.cut_downloads_after.popleft() if self.cut_downloads_after else None
        sent = bytes(len(data)) if self.corrupt_download else data
        yield audio_pb2.DownloadAudioResponse(
            header=audio_pb2.DownloadHeader(
                sha256=hashlib.sha256(data).hexdigest(), size_bytes=len(data), offset=request.offset
            )
        )
        for begin in range(request.offset, len(data), 1000):
            if cut_after is not None and begin >= cut_after:
                refuse(context, grpc.StatusCode.UNAVAILABLE)
            yield audio_pb2.DownloadAudioResponse(chunk=sent[begin : begin + 1000])

    def GetDownloadUrl(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.note("GetDownloadUrl", request, context)
        return audio_pb2.GetDownloadUrlResponse(url="https://s3.example/a?signature=x")

    def DeleteAudio(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.note("DeleteAudio", request, context)
        from google.protobuf import empty_pb2

        return empty_pb2.Empty()

    # jobs

    def GetJob(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("GetJob", request, context)
        if request.name not in self.jobs:
            refuse(context, not_found(Reason.JOB_NOT_FOUND, request.name))
        return self.jobs[request.name]

    def ListJobs(self, request: Any, context: grpc.ServicerContext) -> job_pb2.ListJobsResponse:
        self.note("ListJobs", request, context)
        return job_pb2.ListJobsResponse(jobs=self.items if request.batch_job else self.jobs.values())

    def WatchJob(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.note("WatchJob", request, context)
        for message in self.watches.popleft():
            if isinstance(message, VoxfleetError):
                refuse(context, message)
            yield message

    def CancelJob(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("CancelJob", request, context)
        return self.jobs[request.name]

    def RetryJob(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("RetryJob", request, context)
        return self.jobs[request.name]

    def UpdateJob(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("UpdateJob", request, context)
        return request.job

    def ExplainJob(self, request: Any, context: grpc.ServicerContext) -> job_pb2.ExplainJobResponse:
        self.note("ExplainJob", request, context)
        return job_pb2.ExplainJobResponse(
            waiting_reason=job_pb2.WAITING_REASON_DEPENDENCY,
            explanation="It waits for another job.",
            expected_start_time={"seconds": 1_700_000_300},
            earliest_start_time={"seconds": 1_700_000_000},
            latest_start_time={"seconds": 1_700_000_900},
            queue_position=2,
            depends_on=[f"{TEAM}/jobs/j-0000"],
        )

    # voices

    def CreateVoice(self, request: Any, context: grpc.ServicerContext) -> voice_pb2.Voice:
        self.note("CreateVoice", request, context)
        voice = voice_pb2.Voice(
            name=f"{request.parent}/voices/{request.voice_id or 'v-made'}",
            engine="f5",
            bundle="f5-smoke",
            state=voice_pb2.VOICE_STATE_READY,
            references=request.voice.references,
        )
        self.voices[voice.name] = voice
        return voice

    def TrainVoice(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("TrainVoice", request, context)
        return next(iter(self.jobs.values()))

    def GetVoice(self, request: Any, context: grpc.ServicerContext) -> voice_pb2.Voice:
        self.note("GetVoice", request, context)
        if request.name not in self.voices:
            refuse(context, not_found(Reason.VOICE_NOT_FOUND, request.name))
        return self.voices[request.name]

    def ListVoices(self, request: Any, context: grpc.ServicerContext) -> voice_pb2.ListVoicesResponse:
        self.note("ListVoices", request, context)
        return voice_pb2.ListVoicesResponse(voices=self.voices.values())

    def UpdateVoice(self, request: Any, context: grpc.ServicerContext) -> voice_pb2.Voice:
        self.note("UpdateVoice", request, context)
        return request.voice

    # synthesis

    def Synthesize(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.note("Synthesize", request, context)
        for message in self.speech:
            if message.WhichOneof("part") is None:
                refuse(context, grpc.StatusCode.UNAVAILABLE)
            yield message

    def BatchSynthesize(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("BatchSynthesize", request, context)
        return next(iter(self.jobs.values()))

    def ConvertAudio(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("ConvertAudio", request, context)
        return next(iter(self.jobs.values()))

    def ListBundles(self, request: Any, context: grpc.ServicerContext) -> synthesis_pb2.ListBundlesResponse:
        self.note("ListBundles", request, context)
        return synthesis_pb2.ListBundlesResponse(bundles=self.bundles)

    def PullBundle(self, request: Any, context: grpc.ServicerContext) -> job_pb2.Job:
        self.note("PullBundle", request, context)
        return next(iter(self.jobs.values()))

    def ImportBundle(self, request_iterator: Any, context: grpc.ServicerContext) -> synthesis_pb2.Bundle:
        opening = next(request_iterator).open
        self.note("ImportBundle", opening, context)
        path = ""
        announced: dict[str, str] = {}
        for message in request_iterator:
            if message.HasField("file"):
                path = message.file.path
                announced[path] = message.file.sha256
                self.imported[path] = b""
            else:
                self.imported[path] += message.chunk
        assert announced == {p: hashlib.sha256(d).hexdigest() for p, d in self.imported.items()}
        return synthesis_pb2.Bundle(name=opening.bundle, present=True, trained=True)

    # fleet and trust

    def GetFleet(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.Fleet:
        self.note("GetFleet", request, context)
        return fleet_pb2.Fleet(
            version="0.1.0", nodes=[fleet_pb2.Node(name="nodes/n-1", state="alive", gpus=2)]
        )

    def GetQuota(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.Quota:
        self.note("GetQuota", request, context)
        return fleet_pb2.Quota(name=request.name, max_gpus=4.0, weight=2.0)

    def GetUsage(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.Usage:
        self.note("GetUsage", request, context)
        return fleet_pb2.Usage(gpu_seconds=90.0, jobs=3)

    def DrainNode(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.Node:
        self.note("DrainNode", request, context)
        return fleet_pb2.Node(name=request.name, state="draining")

    def ResumeNode(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.Node:
        self.note("ResumeNode", request, context)
        return fleet_pb2.Node(name=request.name, state="alive")

    def UpdateQuota(self, request: Any, context: grpc.ServicerContext) -> fleet_pb2.Quota:
        self.note("UpdateQuota", request, context)
        return request.quota

    def CreateApiKey(self, request: Any, context: grpc.ServicerContext) -> trust_pb2.ApiKey:
        self.note("CreateApiKey", request, context)
        return trust_pb2.ApiKey(name=f"{request.parent}/apiKeys/k-1", token="vf-secret")

    def UpdateTeam(self, request: Any, context: grpc.ServicerContext) -> trust_pb2.Team:
        self.note("UpdateTeam", request, context)
        return request.team

    def VerifyProvenance(
        self, request: Any, context: grpc.ServicerContext
    ) -> trust_pb2.VerifyProvenanceResponse:
        self.note("VerifyProvenance", request, context)
        return self.verified


def refuse(context: grpc.ServicerContext, failure: VoxfleetError | grpc.StatusCode) -> None:
    """Ends the call as the gateway does (an error with its details), or as a broken connection looks."""
    if isinstance(failure, grpc.StatusCode):
        context.abort(failure, "cut")
    else:
        context.set_trailing_metadata(trailers(failure, trace_id="trace-1"))
        context.abort(CODE_OF_KIND[failure.kind], failure.message)


def serve(double: Double) -> tuple[grpc.Server, int]:
    """Starts it on a free port of the loopback."""
    server = grpc.server(futures.ThreadPoolExecutor(8))
    audio_pb2_grpc.add_AudioServiceServicer_to_server(double, server)
    job_pb2_grpc.add_JobServiceServicer_to_server(double, server)
    voice_pb2_grpc.add_VoiceServiceServicer_to_server(double, server)
    synthesis_pb2_grpc.add_SynthesisServiceServicer_to_server(double, server)
    fleet_pb2_grpc.add_FleetServiceServicer_to_server(double, server)
    trust_pb2_grpc.add_TrustServiceServicer_to_server(double, server)
    lexicon_pb2_grpc.add_LexiconServiceServicer_to_server(double, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    return server, port


def change(
    seq: int, state: job_pb2.JobState.ValueType, *, job: str = f"{TEAM}/jobs/j-0001", phase: str = ""
) -> job_pb2.WatchJobResponse:
    """An event of a watch."""
    return job_pb2.WatchJobResponse(
        cursor=seq,
        job=job_pb2.Job(name=job, state=state),
        change=job_pb2.JobEvent(seq=seq, state=state, phase=phase),
    )


def heartbeat(cursor: int, state: job_pb2.JobState.ValueType) -> job_pb2.WatchJobResponse:
    """A sign of life."""
    return job_pb2.WatchJobResponse(
        cursor=cursor, job=job_pb2.Job(state=state), heartbeat=job_pb2.Heartbeat()
    )


def job(state: job_pb2.JobState.ValueType, **facts: Any) -> job_pb2.Job:
    """The job that the double starts with."""
    return job_pb2.Job(name=f"{TEAM}/jobs/j-0001", kind="rvc.train", state=state, **facts)
