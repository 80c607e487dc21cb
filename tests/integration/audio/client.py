"""A client as the gateway is one: the public messages, with the identity in the headers."""

from __future__ import annotations

import asyncio
import hashlib
import io
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import grpc
import soundfile as sf

from services.common.errors import VoxfleetError
from services.common.rpc.caller import Caller
from services.common.rpc.channel import identity_headers
from services.common.rpc.status import from_rpc_error
from voxfleet.v1 import audio_pb2, audio_pb2_grpc

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
TOKEN = "integration-service-token"
TEAM = "alpha"
CHUNK_BYTES = 64 * 1024


def speech_file(seconds: int = 11) -> bytes:
    """Real speech as 16 bit WAV: large enough to be cut."""
    samples, rate_hz = sf.read(SPEECH / "target_en.flac", stop=seconds * 16_000)
    buffer = io.BytesIO()
    sf.write(buffer, samples, rate_hz, format="WAV", subtype="PCM_16")
    return buffer.getvalue()


class Client:
    """Calls one audio service."""

    def __init__(self, address: str, team: str = TEAM, token: str = TOKEN) -> None:
        self.channel = grpc.aio.insecure_channel(address)
        self.stub = audio_pb2_grpc.AudioServiceStub(self.channel)
        self.headers = identity_headers(token, Caller(team=team, key="k1", request_id="r1"))
        self.team = team

    async def upload(self, data: bytes, **given: object) -> audio_pb2.Audio:
        """Uploads a file in one stream."""
        return await self.send(self.opening(**given), data)

    async def send(self, first: audio_pb2.UploadAudioRequest, data: bytes) -> audio_pb2.Audio:
        """One stream, to its end."""
        try:
            return await self.stub.UploadAudio(_messages(first, data), metadata=self.headers, timeout=120)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def send_and_cut(
        self,
        first: audio_pb2.UploadAudioRequest,
        data: bytes,
        *,
        turns: int = 0,
        arrived: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """One stream, cancelled ``turns`` of the loop after ``data`` went out and ``arrived`` returned."""
        sent, over = asyncio.Event(), asyncio.Event()

        async def messages() -> AsyncIterator[audio_pb2.UploadAudioRequest]:
            async for message in _messages(first, data):
                yield message
            sent.set()
            await over.wait()

        call = self.stub.UploadAudio(messages(), metadata=self.headers)
        await sent.wait()
        if arrived is not None:
            await arrived()
        for _ in range(turns):
            await asyncio.sleep(0)
        call.cancel()
        await call.code()
        over.set()

    async def state(self, name: str) -> audio_pb2.Upload:
        """``GetUpload``."""
        return await self._unary(self.stub.GetUpload, audio_pb2.GetUploadRequest(name=name))

    async def until_durable(self, name: str, size_bytes: int) -> None:
        """Waits until so much of an upload is durable; its row may not be there yet."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(VoxfleetError):
                if (await self.state(name)).durable_offset >= size_bytes:
                    return
            await asyncio.sleep(0.02)
        raise AssertionError(f"{name} does not get on")

    async def analyze(self, name: str, points: int = 0) -> audio_pb2.AnalyzeAudioResponse:
        """``AnalyzeAudio``."""
        request = audio_pb2.AnalyzeAudioRequest(name=name, waveform_points=points)
        return await self._unary(self.stub.AnalyzeAudio, request)

    async def url(self, name: str) -> audio_pb2.GetDownloadUrlResponse:
        """``GetDownloadUrl``."""
        return await self._unary(self.stub.GetDownloadUrl, audio_pb2.GetDownloadUrlRequest(name=name))

    async def download(
        self, name: str, offset: int = 0, limit: int = 0
    ) -> tuple[audio_pb2.DownloadHeader, bytes]:
        """``DownloadAudio``, whole."""
        request = audio_pb2.DownloadAudioRequest(name=name, offset=offset, limit=limit)
        try:
            found = [m async for m in self.stub.DownloadAudio(request, metadata=self.headers, timeout=60)]
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None
        assert all(len(message.chunk) <= 256 * 1024 for message in found)
        return found[0].header, b"".join(message.chunk for message in found[1:])

    def opening(self, upload_id: str = "", **spec: object) -> audio_pb2.UploadAudioRequest:
        """The first message of a new upload."""
        return audio_pb2.UploadAudioRequest(
            open=audio_pb2.OpenUpload(
                parent=f"teams/{self.team}", upload_id=upload_id, audio=audio_pb2.AudioSpec(**spec)
            )
        )

    def resuming(self, upload_id: str, offset: int) -> audio_pb2.UploadAudioRequest:
        """The first message that goes on with one."""
        return audio_pb2.UploadAudioRequest(
            resume=audio_pb2.ResumeUpload(upload=self.upload_name(upload_id), offset=offset)
        )

    def upload_name(self, upload_id: str) -> str:
        """An upload's name."""
        return f"teams/{self.team}/uploads/{upload_id}"

    async def _unary(self, method, request):
        try:
            return await method(request, metadata=self.headers, timeout=60)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None


async def _messages(
    first: audio_pb2.UploadAudioRequest, data: bytes
) -> AsyncIterator[audio_pb2.UploadAudioRequest]:
    yield first
    for start in range(0, len(data), CHUNK_BYTES):
        yield audio_pb2.UploadAudioRequest(chunk=data[start : start + CHUNK_BYTES])


def sha256(data: bytes) -> str:
    """Hexadecimal."""
    return hashlib.sha256(data).hexdigest()


async def reason_of(call) -> VoxfleetError:
    """The error that a call ends with."""
    try:
        await call
    except VoxfleetError as error:
        return error
    raise AssertionError("it was not refused")
