# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""Voices: ``client.voices``."""

# ruff: noqa: A002 - the arguments bear the names of the API's fields

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from voxfleet.client import names
from voxfleet.client.enums import VOICE_EXPORT_FORMATS, enum_value
from voxfleet.client.errors import InvalidArgument
from voxfleet.client.sync.calls import Calls
from voxfleet.v1 import job_pb2, voice_pb2, voice_pb2_grpc


class VoiceGroup:
    """Makes, trains, imports, exports, lists, changes and deletes voices."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = voice_pb2_grpc.VoiceServiceStub(calls.channel)

    def create(
        self,
        *,
        reference: str = "",
        text: str = "",
        references: Sequence[voice_pb2.ReferenceClip] = (),
        voice_id: str = "",
        display_name: str = "",
        languages: Sequence[str] = (),
        labels: Mapping[str, str] | None = None,
        consent: str = "",
        request_id: str = "",
    ) -> voice_pb2.Voice:
        """Makes a zero-shot voice from a reference clip; ready at once.

        Args:
            reference: the clip, an audio's id or name.
            text: exactly what is said in it; the fleet listens for itself where empty.
            references: several clips, by style, in place of ``reference`` and ``text``.
            voice_id: the last part of its name; made from the display name where empty.
            display_name: for people.
            languages: BCP-47 codes.
            labels: free labels.
            consent: the speaker's consent, by name.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        clips = [voice_pb2.ReferenceClip(audio=reference, text=text)] if reference else list(references)
        if not clips:
            raise InvalidArgument("a voice needs a reference clip", reason="INVALID_ARGUMENT")
        voice = voice_pb2.Voice(
            display_name=display_name, languages=languages, labels=labels or {}, consent=consent
        )
        for clip in clips:
            voice.references.add(
                audio=self._calls.name("audios", clip.audio), text=clip.text, style=clip.style
            )
        request = voice_pb2.CreateVoiceRequest(
            parent=self._calls.team,
            voice_id=voice_id,
            voice=voice,
            request_id=request_id or names.new_request_id(),
        )
        return self._calls.unary(self._stub.CreateVoice, request, safe=True)

    def train(
        self,
        audios: Sequence[str],
        *,
        voice_id: str = "",
        display_name: str = "",
        parameters: voice_pb2.RvcTrainingParameters | None = None,
        force: bool = False,
        labels: Mapping[str, str] | None = None,
        depends_on: Sequence[str] = (),
        priority: int = 0,
        validate_only: bool = False,
        request_id: str = "",
    ) -> job_pb2.Job:
        """Trains an RVC voice on recordings, as a job.

        Args:
            audios: 1 to 100 ids or names.
            voice_id: the last part of its name; made from the display name where empty.
            display_name: for people.
            parameters: how to train; every zero means the default.
            force: trains even where the quality gate says no.
            labels: free labels.
            depends_on: jobs, ids or names, that must succeed first; where one fails, this one does.
            priority: order within its class, -100 to 100, higher first.
            validate_only: checks everything, makes nothing.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        request = voice_pb2.TrainVoiceRequest(
            parent=self._calls.team,
            voice_id=voice_id,
            display_name=display_name,
            audios=[self._calls.name("audios", audio) for audio in audios],
            parameters=parameters,
            force=force,
            labels=labels or {},
            depends_on=[self._calls.name("jobs", job) for job in depends_on],
            priority=priority,
            validate_only=validate_only,
            request_id=request_id or names.new_request_id(),
        )
        return self._calls.unary(self._stub.TrainVoice, request, safe=True)

    def import_voice(
        self,
        model_file: str,
        *,
        index_file: str = "",
        voice_id: str = "",
        display_name: str = "",
        weights_licence: str = "",
        labels: Mapping[str, str] | None = None,
        validate_only: bool = False,
        request_id: str = "",
    ) -> job_pb2.Job:
        """Imports a voice from files, as a job; the voice is the job's ``result.voice``.

        Args:
            model_file: a community ``.pth`` or a package of ours, uploaded with the purpose
                ``voice_file``: id or name.
            index_file: the ``.index`` of a ``.pth``, uploaded in the same way.
            voice_id: the last part of its name; made from the display name where empty.
            display_name: for people.
            weights_licence: SPDX id; ``LicenseRef-imported`` where empty.
            labels: free labels.
            validate_only: checks everything but the files' contents, makes nothing.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        request = voice_pb2.ImportVoiceRequest(
            parent=self._calls.team,
            voice_id=voice_id,
            model_file=self._calls.name("audios", model_file),
            index_file=self._calls.name("audios", index_file) if index_file else "",
            display_name=display_name,
            weights_licence=weights_licence,
            labels=labels or {},
            validate_only=validate_only,
            request_id=request_id or names.new_request_id(),
        )
        return self._calls.unary(self._stub.ImportVoice, request, safe=True)

    def export_voice(
        self, name: str, *, format: str = "voxfleet", validate_only: bool = False, request_id: str = ""
    ) -> job_pb2.Job:
        """Exports a trained voice to files, as a job; they are the job's ``result.audios``.

        Args:
            name: the voice, id or name.
            format: ``voxfleet`` (one package) or ``pth`` (the community's, with an ``.index``; ContentVec
                voices only).
            validate_only: checks everything, makes nothing.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        value = enum_value(VOICE_EXPORT_FORMATS, format, "format")
        request = voice_pb2.ExportVoiceRequest(
            name=self._calls.name("voices", name),
            format=voice_pb2.VoiceExportFormat.ValueType(value),
            validate_only=validate_only,
            request_id=request_id or names.new_request_id(),
        )
        return self._calls.unary(self._stub.ExportVoice, request, safe=True)

    def get(self, name: str) -> voice_pb2.Voice:
        """One voice."""
        request = voice_pb2.GetVoiceRequest(name=self._calls.name("voices", name))
        return self._calls.unary(self._stub.GetVoice, request, safe=True)

    def list(
        self,
        *,
        filter: str = "",
        query: str = "",
        order_by: str = "",
        show_deleted: bool = False,
        page_size: int = 0,
    ) -> Iterator[voice_pb2.Voice]:
        """The team's voices, newest first, page after page.

        Args:
            filter: such as ``engine=rvc``.
            query: words of the display name.
            order_by: ``create_time desc`` or ``create_time``.
            show_deleted: deleted ones too.
            page_size: how many to fetch at a time; the server's default where 0.
        """
        request = voice_pb2.ListVoicesRequest(
            parent=self._calls.team,
            filter=filter,
            query=query,
            order_by=order_by,
            show_deleted=show_deleted,
            page_size=page_size,
        )
        for page in self._calls.pages(self._stub.ListVoices, request):
            yield from page.voices

    def update(
        self,
        name: str,
        *,
        display_name: str | None = None,
        labels: Mapping[str, str] | None = None,
        languages: Sequence[str] | None = None,
        consent: str | None = None,
    ) -> voice_pb2.Voice:
        """Changes what is given, and leaves the rest."""
        request = voice_pb2.UpdateVoiceRequest(
            voice=voice_pb2.Voice(
                name=self._calls.name("voices", name),
                display_name=display_name or "",
                labels=labels or {},
                languages=languages or (),
                consent=consent or "",
            )
        )
        given = {"display_name": display_name, "labels": labels, "languages": languages, "consent": consent}
        request.update_mask.paths.extend(field for field, value in given.items() if value is not None)
        return self._calls.unary(self._stub.UpdateVoice, request, safe=True)

    def delete(self, name: str) -> voice_pb2.Voice:
        """Deletes a voice; :meth:`undelete` brings it back until its ``purge_time``."""
        request = voice_pb2.DeleteVoiceRequest(name=self._calls.name("voices", name))
        return self._calls.unary(self._stub.DeleteVoice, request, safe=False)

    def undelete(self, name: str) -> voice_pb2.Voice:
        """Brings a deleted voice back."""
        request = voice_pb2.UndeleteVoiceRequest(name=self._calls.name("voices", name))
        return self._calls.unary(self._stub.UndeleteVoice, request, safe=False)

    def checkpoints(self, name: str, *, page_size: int = 0) -> Iterator[voice_pb2.Checkpoint]:
        """The checkpoints of a voice's training, newest first."""
        request = voice_pb2.ListCheckpointsRequest(
            parent=self._calls.name("voices", name), page_size=page_size
        )
        for page in self._calls.pages(self._stub.ListCheckpoints, request):
            yield from page.checkpoints
