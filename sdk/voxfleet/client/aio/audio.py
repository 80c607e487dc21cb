"""Audio in and out: ``client.audio``."""

# ruff: noqa: A002 - the arguments bear the names of the API's fields

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import BinaryIO

from google.protobuf import duration_pb2

from voxfleet.client import port_aio
from voxfleet.client.aio.calls import Calls
from voxfleet.client.aio.download import Downloader
from voxfleet.client.aio.upload import Uploader, new_opening
from voxfleet.client.enums import AUDIO_PURPOSES, enum_value
from voxfleet.client.errors import DeadlineExceeded
from voxfleet.client.files import PartFile
from voxfleet.client.source import open_source
from voxfleet.v1 import audio_pb2, audio_pb2_grpc

# One stream of up to 300 MB, on a slow line.
_STREAM_TIMEOUT_S = 3600.0
_POLL_S = 0.5


class AudioGroup:
    """Uploads, measures, downloads and deletes audios."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = audio_pb2_grpc.AudioServiceStub(calls.channel)

    async def upload(
        self,
        source: str | Path | bytes | bytearray | memoryview | BinaryIO,
        *,
        purpose: str = "conversion",
        display_name: str = "",
        labels: Mapping[str, str] | None = None,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float = _STREAM_TIMEOUT_S,
    ) -> audio_pb2.Audio:
        """Uploads a file; answers once it is verified, measured and committed.

        A stream that is cut is resumed where the server's durable bytes end, as often as that brings it
        forward.

        Args:
            source: a path, the bytes, or an open binary file (read from where it stands; a pipe is copied
                first).
            purpose: ``training``, ``conversion`` or ``reference``; ``voice_file`` of what is no audio, but a
                voice to import.
            display_name: for people; the file's name where empty.
            labels: free labels.
            progress: told of the bytes sent and of all bytes, after each chunk.
            timeout_s: deadline of each stream.

        Raises:
            InvalidArgument: FILE_TOO_LARGE, INVALID_FORMAT, AUDIO_TOO_SHORT and the like.
            Unavailable: it could not be resumed in as many tries as the policy allows.
        """
        value = enum_value(AUDIO_PURPOSES, purpose, "purpose")
        with await port_aio.run_blocking(open_source, source) as opened:
            spec = audio_pb2.AudioSpec(
                display_name=display_name or opened.name,
                purpose=audio_pb2.AudioPurpose.ValueType(value),
                size_bytes=opened.size_bytes,
                sha256=await port_aio.run_blocking(opened.sha256),
                labels=labels or {},
            )
            opening = new_opening(self._calls.team, spec)
            return await Uploader(self._calls, opened, opening, progress, timeout_s).run()

    async def wait_ready(self, name: str, *, timeout_s: float = 300.0) -> audio_pb2.Audio:
        """Waits while an audio is being processed. Raises DeadlineExceeded when time is up."""
        deadline = time.monotonic() + timeout_s
        while True:
            audio = await self.get(name)
            if audio.state not in (audio_pb2.AUDIO_STATE_UPLOADING, audio_pb2.AUDIO_STATE_PROCESSING):
                return audio
            if time.monotonic() + _POLL_S > deadline:
                raise DeadlineExceeded(f"{audio.name} is still being processed", reason="DEADLINE_EXCEEDED")
            await port_aio.sleep(_POLL_S)

    async def get(self, name: str) -> audio_pb2.Audio:
        """One audio."""
        request = audio_pb2.GetAudioRequest(name=self._calls.name("audios", name))
        return await self._calls.unary(self._stub.GetAudio, request, safe=True)

    async def list(
        self, *, filter: str = "", query: str = "", order_by: str = "", page_size: int = 0
    ) -> AsyncIterator[audio_pb2.Audio]:
        """The team's audios, newest first, page after page.

        Args:
            filter: such as ``purpose=TRAINING`` or ``labels.speaker=anna``.
            query: words of the display name.
            order_by: ``create_time desc`` or ``create_time``.
            page_size: how many to fetch at a time; the server's default where 0.
        """
        request = audio_pb2.ListAudiosRequest(
            parent=self._calls.team, filter=filter, query=query, order_by=order_by, page_size=page_size
        )
        async for page in self._calls.pages(self._stub.ListAudios, request):
            for audio in page.audios:
                yield audio

    async def analyze(self, name: str, *, waveform_points: int = 0) -> audio_pb2.AnalyzeAudioResponse:
        """The measures of an audio and its grade.

        Args:
            name: of the audio.
            waveform_points: peaks to return for drawing, 0 to 4096.
        """
        request = audio_pb2.AnalyzeAudioRequest(
            name=self._calls.name("audios", name), waveform_points=waveform_points
        )
        return await self._calls.unary(self._stub.AnalyzeAudio, request, safe=True)

    async def download(
        self,
        name: str,
        to: str | Path,
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float = _STREAM_TIMEOUT_S,
    ) -> Path:
        """Downloads an audio to a file, which appears whole and verified or not at all.

        Raises:
            DataLoss: what came is not what was promised.
        """
        run = Downloader(self._calls, self._calls.name("audios", name), progress, timeout_s)
        part = PartFile(Path(to))
        try:
            async for piece in run.pieces():
                await port_aio.run_blocking(part.write, piece)
            return await port_aio.run_blocking(part.commit)
        finally:
            part.discard()

    async def download_bytes(
        self,
        name: str,
        *,
        progress: Callable[[int, int], None] | None = None,
        timeout_s: float = _STREAM_TIMEOUT_S,
    ) -> bytes:
        """Downloads an audio to memory. Raises as :meth:`download`."""
        run = Downloader(self._calls, self._calls.name("audios", name), progress, timeout_s)
        data = bytearray()
        async for piece in run.pieces():
            data += piece
        return bytes(data)

    async def download_url(self, name: str, *, ttl_s: float = 0.0) -> audio_pb2.GetDownloadUrlResponse:
        """An address from which anyone who holds it can download; for an hour where ``ttl_s`` is 0."""
        request = audio_pb2.GetDownloadUrlRequest(name=self._calls.name("audios", name))
        if ttl_s:
            request.ttl.CopyFrom(duration_pb2.Duration(seconds=int(ttl_s)))
        return await self._calls.unary(self._stub.GetDownloadUrl, request, safe=True)

    async def delete(self, name: str) -> None:
        """Deletes an audio. Raises FailedPrecondition (AUDIO_IN_USE) while something needs it."""
        request = audio_pb2.DeleteAudioRequest(name=self._calls.name("audios", name))
        await self._calls.unary(self._stub.DeleteAudio, request, safe=False)
