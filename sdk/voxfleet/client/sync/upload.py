# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""One upload: streamed, and resumed at the durable offset after a cut."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from voxfleet.client import names, port_sync
from voxfleet.client.errors import NotFound, VoxfleetError, is_cut
from voxfleet.client.retry import Patience
from voxfleet.client.source import CHUNK_BYTES, Source
from voxfleet.client.sync.calls import Calls
from voxfleet.v1 import audio_pb2

# What the server says of an upload that can go on once its durable offset has been asked for.
_RESUMABLE_REASONS = frozenset({"UPLOAD_OFFSET_MISMATCH", "UPLOAD_INCOMPLETE"})


class Uploader:
    """Sends one source until the server has committed it.

    Args:
        calls: how to call.
        source: the bytes.
        opening: opens the upload; its ``upload_id`` names it, so that a cut stream can be found again.
        progress: told of the bytes handed to the connection and of all bytes, after each chunk; in the
            synchronous client it is called from a thread of gRPC's.
        timeout_s: deadline of each stream.
    """

    def __init__(
        self,
        calls: Calls,
        source: Source,
        opening: audio_pb2.OpenUpload,
        progress: Callable[[int, int], None] | None,
        timeout_s: float,
    ) -> None:
        self._calls = calls
        self._stub = calls.audio
        self._source = source
        self._opening = opening
        self._progress = progress
        self._timeout_s = timeout_s
        self._name = f"{opening.parent}/uploads/{opening.upload_id}"

    def run(self) -> audio_pb2.Audio:
        """The committed audio. Resumes while that brings the durable offset forward."""
        first = audio_pb2.UploadAudioRequest(open=self._opening)
        offset = 0
        patience = Patience(self._calls.policy)
        while True:
            try:
                return self._calls.send(
                    self._stub.UploadAudio, self._messages(first, offset), self._timeout_s
                )
            except VoxfleetError as error:
                if not _can_resume(error):
                    raise
                wait_s = patience.wait_s(error)
            port_sync.sleep(wait_s)
            upload = self._find()
            if upload is None:
                first, offset = audio_pb2.UploadAudioRequest(open=self._opening), 0
                continue
            if upload.audio:
                # It was the answer that got lost, not the bytes.
                return self._calls.unary(
                    self._stub.GetAudio, audio_pb2.GetAudioRequest(name=upload.audio), safe=True
                )
            if upload.durable_offset > offset:
                patience.renew()
            offset = upload.durable_offset
            first = audio_pb2.UploadAudioRequest(
                resume=audio_pb2.ResumeUpload(upload=self._name, offset=offset)
            )

    def _find(self) -> audio_pb2.Upload | None:
        request = audio_pb2.GetUploadRequest(name=self._name)
        try:
            return self._calls.unary(self._stub.GetUpload, request, safe=True)
        except NotFound:
            # The stream was cut before the server had opened it.
            return None

    def _messages(
        self, first: audio_pb2.UploadAudioRequest, offset: int
    ) -> Iterator[audio_pb2.UploadAudioRequest]:
        yield first
        self._tell(offset)
        while chunk := port_sync.run_blocking(self._source.read_at, offset, CHUNK_BYTES):
            yield audio_pb2.UploadAudioRequest(chunk=chunk)
            offset += len(chunk)
            self._tell(offset)

    def _tell(self, offset: int) -> None:
        if self._progress is not None:
            self._progress(offset, self._source.size_bytes)


def new_opening(parent: str, spec: audio_pb2.AudioSpec) -> audio_pb2.OpenUpload:
    """Opens an upload under an id that the client made."""
    return audio_pb2.OpenUpload(parent=parent, upload_id=names.new_upload_id(), audio=spec)


def _can_resume(error: VoxfleetError) -> bool:
    return is_cut(error) or error.reason in _RESUMABLE_REASONS
