"""The public methods that make, show and stop jobs."""

from __future__ import annotations

import datetime as dt
from collections.abc import AsyncIterator
from typing import Any

from google.protobuf import message

from services.common import names, speaking, telemetry
from services.common.errors import Reason, invalid, not_found
from services.common.jobs import tasks
from services.common.limits import CONVERTING_ENGINES
from services.common.rpc.caller import require_operator
from services.metadata.app.jobs import Jobs
from services.metadata.app.listing import next_token, page_of
from services.metadata.app.resolving import Line, Respeaking
from services.metadata.app.submit import MAX_BATCH_ITEMS, Request, Submitter
from services.metadata.model.jobs import Job
from services.metadata.servicers import convert
from services.metadata.servicers.resources import check_mask
from voxfleet.v1 import job_pb2, synthesis_pb2, voice_pb2

UPDATABLE_JOB_FIELDS = ("priority", "labels", "display_name")


class JobServicer:
    """``voxfleet.v1.JobService``."""

    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    async def GetJob(self, request: job_pb2.GetJobRequest, _: object) -> job_pb2.Job:
        """One job."""
        name = names.parse(request.name, "jobs")
        return convert.job_to_proto(*await self._jobs.get(name.team, name.id))

    async def ListJobs(self, request: job_pb2.ListJobsRequest, _: object) -> job_pb2.ListJobsResponse:
        """A team's jobs, or the items of a batch."""
        team = names.parse_team(request.parent)
        batch = ""
        if request.batch_job:
            name = names.parse(request.batch_job, "jobs", field="batch_job")
            if name.team != team:
                raise not_found(Reason.JOB_NOT_FOUND, request.batch_job)
            batch = name.id
        scope = {
            "filter_text": request.filter,
            "order_by": request.order_by,
            "query": f"{batch}|{request.query}",
        }
        page = page_of(
            request.page_size,
            request.page_token,
            filter_text=request.filter,
            order_by=request.order_by,
            query=f"{batch}|{request.query}",
        )
        page = type(page)(page.size, page.after, page.filters, request.query, page.ascending)
        found = await self._jobs.page(team, page, batch=batch)
        after = ""
        if found:
            after = str(found[-1].item_index) if batch else found[-1].id
        return job_pb2.ListJobsResponse(
            jobs=[convert.job_to_proto(job) for job in found],
            next_page_token=next_token(after, **scope) if len(found) == page.size else "",
        )

    async def WatchJob(
        self, request: job_pb2.WatchJobRequest, _: object
    ) -> AsyncIterator[job_pb2.WatchJobResponse]:
        """What happens to a job."""
        name = names.parse(request.name, "jobs")
        if request.cursor < 0:
            raise invalid(Reason.INVALID_ARGUMENT, "cursor must not be negative", field="cursor")
        cursor = request.cursor
        async for seen in self._jobs.watch(name.team, name.id, cursor):
            response = job_pb2.WatchJobResponse(cursor=cursor)
            if seen is None:
                response.heartbeat.time.FromDatetime(dt.datetime.now(dt.UTC))
            else:
                cursor = response.cursor = seen.cursor
                response.job.CopyFrom(convert.job_to_proto(seen.job))
                if seen.event is not None:
                    response.change.CopyFrom(convert.event_to_proto(seen.event))
                else:
                    response.progress.CopyFrom(response.job.progress)
            yield response

    async def CancelJob(self, request: job_pb2.CancelJobRequest, _: object) -> job_pb2.Job:
        """Asks a job to stop."""
        name = names.parse(request.name, "jobs")
        return convert.job_to_proto(await self._jobs.cancel(name.team, name.id))

    async def PauseJob(self, request: job_pb2.PauseJobRequest, _: object) -> job_pb2.Job:
        """Holds a job back."""
        name = names.parse(request.name, "jobs")
        return convert.job_to_proto(await self._jobs.pause(name.team, name.id))

    async def ResumeJob(self, request: job_pb2.ResumeJobRequest, _: object) -> job_pb2.Job:
        """Lets a paused job go on."""
        name = names.parse(request.name, "jobs")
        return convert.job_to_proto(await self._jobs.resume(name.team, name.id))

    async def RetryJob(self, request: job_pb2.RetryJobRequest, _: object) -> job_pb2.Job:
        """Runs an ended job again."""
        name = names.parse(request.name, "jobs")
        return convert.job_to_proto(await self._jobs.retry(name.team, name.id))

    async def ExplainJob(self, request: job_pb2.ExplainJobRequest, _: object) -> job_pb2.ExplainJobResponse:
        """Why a job waits."""
        name = names.parse(request.name, "jobs")
        job, why = await self._jobs.explain(name.team, name.id)
        return convert.explanation_to_proto(job, why)

    async def UpdateJob(self, request: job_pb2.UpdateJobRequest, _: object) -> job_pb2.Job:
        """Changes priority, labels or display name."""
        name = names.parse(request.job.name, "jobs", field="job.name")
        paths = check_mask(request.update_mask.paths, UPDATABLE_JOB_FIELDS)
        values: dict[str, Any] = {
            "priority": request.job.priority,
            "labels": dict(request.job.labels),
            "display_name": request.job.display_name,
        }
        return convert.job_to_proto(
            await self._jobs.update(name.team, name.id, {path: values[path] for path in paths})
        )


class SubmitServicer:
    """The methods of VoiceService and SynthesisService that make jobs."""

    def __init__(self, submitter: Submitter) -> None:
        self._submitter = submitter

    async def TrainVoice(self, request: voice_pb2.TrainVoiceRequest, _: object) -> job_pb2.Job:
        """Trains a voice."""
        p = request.parameters
        parameters = tasks.TrainingParameters(
            epochs=p.epochs,
            batch_size=p.batch_size,
            learning_rate=p.learning_rate,
            save_every=p.save_every,
            preset=p.preset,
            f0_method=p.f0_method or "fcpe",
            content_encoder=p.content_encoder,
            gpus=p.gpus or 1,
            seed=p.seed or 1234,
            max_steps=p.max_steps,
            gpu_type=p.gpu_type,
        )
        job = await self._submitter.train(
            _request(request), _voice_id(request), list(request.audios), parameters, force=request.force
        )
        return convert.job_to_proto(job)

    async def ImportVoice(self, request: voice_pb2.ImportVoiceRequest, _: object) -> job_pb2.Job:
        """Makes a voice of files from outside."""
        job = await self._submitter.import_voice(
            _request(request),
            _voice_id(request),
            request.model_file,
            request.index_file,
            request.weights_licence,
        )
        return convert.job_to_proto(job)

    async def ExportVoice(self, request: voice_pb2.ExportVoiceRequest, _: object) -> job_pb2.Job:
        """Makes files of a voice."""
        name = names.parse(request.name, "voices")
        as_pth = request.format == voice_pb2.VOICE_EXPORT_FORMAT_PTH
        envelope = _request(request, team=name.team)
        return convert.job_to_proto(
            await self._submitter.export_voice(envelope, name.id, "pth" if as_pth else "voxfleet")
        )

    async def ConvertAudio(self, request: synthesis_pb2.ConvertAudioRequest, _: object) -> job_pb2.Job:
        """Converts one recording or several."""
        match request.engine:
            case "" | "rvc":
                job = await self._convert(request)
            case "f5":
                job = await self._respeak(request)
            case _:
                raise invalid(
                    Reason.UNSUPPORTED_ENGINE,
                    f"no engine {request.engine[:40]!r} converts; use {' or '.join(CONVERTING_ENGINES)}",
                    field="engine",
                    engine=request.engine[:40],
                    supported_engines=", ".join(CONVERTING_ENGINES),
                )
        return convert.job_to_proto(job)

    async def _convert(self, request: synthesis_pb2.ConvertAudioRequest) -> Job:
        speaking.refuse(speaking.conversion_faults(request.parameters, "parameters"))
        parameters = speaking.conversion_parameters(request.parameters)
        return await self._submitter.convert(
            _request(request), list(request.audios), request.voice, parameters, _output(request.output)
        )

    async def _respeak(self, request: synthesis_pb2.ConvertAudioRequest) -> Job:
        asked = synthesis_pb2.SynthesisParameters()
        asked.CopyFrom(request.parameters.speaking)
        # Both engines have a seed and a pitch, and the conversion's own fields for them.
        asked.seed = asked.seed or request.parameters.seed
        asked.pitch_shift = asked.pitch_shift or request.parameters.pitch_shift
        speaking.refuse(speaking.faults(asked, "parameters.speaking"))
        how = Respeaking(speaking.speaking_parameters(asked), asked.style, tuple(asked.lexicons))
        return await self._submitter.convert(
            _request(request), list(request.audios), request.voice, how, _output(request.output)
        )

    async def BatchSynthesize(self, request: synthesis_pb2.BatchSynthesizeRequest, _: object) -> job_pb2.Job:
        """Speaks many texts."""
        if not 1 <= len(request.items) <= MAX_BATCH_ITEMS:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"a batch has 1 to {MAX_BATCH_ITEMS} items, not {len(request.items)}",
                field="items",
            )
        speaking.refuse(speaking.spoken_faults(request.parameters, "parameters"))
        shared = speaking.speaking_parameters(request.parameters)
        lines = [_line(item, index, request, shared) for index, item in enumerate(request.items)]
        if len({line.id for line in lines}) < len(lines):
            raise invalid(Reason.INVALID_ARGUMENT, "item ids must be unique in the batch", field="items")
        slim = synthesis_pb2.BatchSynthesizeRequest()
        slim.CopyFrom(request)
        del slim.items[:]
        envelope = _request(request, spec={**convert.as_json(slim), "item_count": len(lines)})
        return convert.job_to_proto(await self._submitter.batch(envelope, lines, _output(request.output)))

    async def PullBundle(self, request: synthesis_pb2.PullBundleRequest, _: object) -> job_pb2.Job:
        """Brings a bundle of weights into the store."""
        require_operator()
        job = await self._submitter.pull_bundle(
            _request(request), request.bundle, accepted_licence=request.accept_licence
        )
        return convert.job_to_proto(job)


def _line(
    item: synthesis_pb2.BatchItem,
    index: int,
    request: synthesis_pb2.BatchSynthesizeRequest,
    shared: tasks.SpeakingParameters,
) -> Line:
    """One text with what holds for it; ``shared`` is what the batch says of those that say nothing."""
    own = item.HasField("parameters")
    asked = item.parameters if own else request.parameters
    if own:
        speaking.refuse(speaking.spoken_faults(asked, f"items[{index}].parameters"))
    return Line(
        id=item.id or str(index),
        text=item.text,
        voice=item.voice or request.voice,
        parameters=speaking.speaking_parameters(asked) if own else shared,
        style=asked.style,
        lexicons=tuple(asked.lexicons),
        speaker=asked.speaker,
        conversion=speaking.conversion_of_speech(asked),
        has_conversion=asked.HasField("conversion"),
    )


def _output(output: synthesis_pb2.OutputFormat) -> tasks.Output:
    speaking.refuse(speaking.output_faults(output, "output"))
    return speaking.output_of(output)


def _voice_id(request: voice_pb2.TrainVoiceRequest | voice_pb2.ImportVoiceRequest) -> str:
    if request.voice_id:
        return names.check_id(request.voice_id, field="voice_id")
    return names.slug(request.display_name or "voice")


def _request(request: message.Message, *, spec: dict[str, Any] | None = None, team: str = "") -> Request:
    return Request(
        team=team or names.parse_team(str(getattr(request, "parent", ""))),
        request_id=str(getattr(request, "request_id", "")),
        fingerprint=convert.fingerprint(request),
        spec=spec if spec is not None else convert.as_json(request),
        validate_only=bool(getattr(request, "validate_only", False)),
        labels=dict(getattr(request, "labels", {})),
        display_name=str(getattr(request, "display_name", "")),
        traceparent=telemetry.current_traceparent(),
        depends_on=tuple(getattr(request, "depends_on", ())),
        priority=int(getattr(request, "priority", 0)),
    )
