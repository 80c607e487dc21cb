"""``voxfleet.v1.AudioService``, as far as this service serves it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import aclosing
from typing import Any, Final

import grpc

from services.audio import wire
from services.audio.app.audios import Audios
from services.audio.app.uploads import Uploads
from services.common import names
from services.common.errors import Reason, not_found
from services.common.rpc.caller import current_caller
from services.common.rpc.reading import read_out
from voxfleet.v1 import audio_pb2

CHUNK_BYTES: Final = 256 * 1024

Context = grpc.aio.ServicerContext[Any, Any]


class AudioServicer:
    """The methods that move bytes or measure them; metadata serves the others."""

    def __init__(self, uploads: Uploads[audio_pb2.Audio], audios: Audios[audio_pb2.Audio]) -> None:
        self._uploads = uploads
        self._audios = audios

    async def UploadAudio(
        self, requests: AsyncIterator[audio_pb2.UploadAudioRequest], context: Context
    ) -> audio_pb2.Audio:
        """Takes one file as a stream."""
        audio = await self._uploads.upload(wire.read_steps(requests, current_caller().team))
        # What was committed already is answered while the client still sends.
        await read_out(requests)
        return audio

    async def GetUpload(self, request: audio_pb2.GetUploadRequest, context: Context) -> audio_pb2.Upload:
        """The state of an upload."""
        return wire.upload_to_proto(await self._uploads.state(_own(request.name, "uploads")))

    async def AnalyzeAudio(
        self, request: audio_pb2.AnalyzeAudioRequest, context: Context
    ) -> audio_pb2.AnalyzeAudioResponse:
        """The measures of an audio, and its grade."""
        audio, outline = await self._audios.analyze(_own(request.name, "audios"), request.waveform_points)
        response = audio_pb2.AnalyzeAudioResponse(measures=audio.measures, assessment=audio.assessment)
        response.measures.waveform_peaks[:] = outline
        return response

    async def DownloadAudio(
        self, request: audio_pb2.DownloadAudioRequest, context: Context
    ) -> AsyncIterator[audio_pb2.DownloadAudioResponse]:
        """The bytes of an audio, or a range of them."""
        name = _own(request.name, "audios")
        download = await self._audios.open_download(name, request.offset, request.limit)
        header = audio_pb2.DownloadHeader(
            sha256=download.blob.sha256,
            size_bytes=download.blob.size_bytes,
            media_type=download.blob.media_type,
            offset=download.offset,
        )
        yield audio_pb2.DownloadAudioResponse(header=header)
        async with aclosing(self._audios.read(download)) as blocks:
            async for block in blocks:
                for start in range(0, len(block), CHUNK_BYTES):
                    yield audio_pb2.DownloadAudioResponse(chunk=block[start : start + CHUNK_BYTES])

    async def GetDownloadUrl(
        self, request: audio_pb2.GetDownloadUrlRequest, context: Context
    ) -> audio_pb2.GetDownloadUrlResponse:
        """An address from which anyone who holds it can download."""
        ttl_s = request.ttl.seconds if request.HasField("ttl") else None
        url, expires_at = await self._audios.url(_own(request.name, "audios"), ttl_s)
        return audio_pb2.GetDownloadUrlResponse(url=url, expire_time=wire.timestamp(expires_at))


def _own(name: str, collection: str) -> str:
    """The name, where it is of the caller's team; the gateway has checked, and this costs nothing."""
    team = current_caller().team
    if team and names.parse(name, collection).team != team:
        reason = Reason.UPLOAD_NOT_FOUND if collection == "uploads" else Reason.AUDIO_NOT_FOUND
        raise not_found(reason, name)
    return name
