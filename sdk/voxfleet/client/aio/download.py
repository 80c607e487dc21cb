"""One download: resumed by range after a cut, and verified."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Callable

import grpc

from voxfleet.client import port_aio
from voxfleet.client.aio.calls import Calls
from voxfleet.client.errors import DataLoss, Unavailable, VoxfleetError, is_cut
from voxfleet.client.retry import Patience
from voxfleet.v1 import audio_pb2


class Downloader:
    """Receives one audio.

    Args:
        calls: how to call.
        name: the audio's full name.
        progress: told of the bytes received and of all bytes, after each piece.
        timeout_s: deadline of each stream.

    Attributes:
        header: what is being downloaded; set once the first piece has come.
    """

    def __init__(
        self, calls: Calls, name: str, progress: Callable[[int, int], None] | None, timeout_s: float
    ) -> None:
        self._calls = calls
        self._stub = calls.audio
        self._name = name
        self._progress = progress
        self._timeout_s = timeout_s
        self.header = audio_pb2.DownloadHeader()

    async def pieces(self) -> AsyncIterator[bytes]:
        """The bytes in order. Ends only when all came and their SHA-256 is the promised one."""
        digest = hashlib.sha256()
        received = 0
        patience = Patience(self._calls.policy)
        while True:
            call = self._stub.DownloadAudio(
                audio_pb2.DownloadAudioRequest(name=self._name, offset=received),
                timeout=self._timeout_s,
                metadata=self._calls.headers(),
            )
            error: VoxfleetError
            try:
                async for message in call:
                    if message.HasField("header"):
                        self._take(message.header, received)
                    if message.chunk:
                        patience.renew()
                        received += len(message.chunk)
                        digest.update(message.chunk)
                        self._tell(received)
                        yield message.chunk
                if received >= self.header.size_bytes:
                    break
                error = Unavailable(f"the download of {self._name} ended after {received} bytes")
            except grpc.RpcError as failure:
                error = self._calls.error(failure)
                if not is_cut(error):
                    raise error from failure
            finally:
                call.cancel()
            await port_aio.sleep(patience.wait_s(error))
        self._check(received, digest.hexdigest())

    def _tell(self, received: int) -> None:
        if self._progress is not None:
            self._progress(received, self.header.size_bytes)

    def _check(self, received: int, sha256: str) -> None:
        if received != self.header.size_bytes or sha256 != self.header.sha256:
            raise DataLoss(
                f"{self._name} came as {received} bytes with SHA-256 {sha256}, "
                f"promised were {self.header.size_bytes} with {self.header.sha256}",
                reason="CHECKSUM_MISMATCH",
            )

    def _take(self, header: audio_pb2.DownloadHeader, received: int) -> None:
        changed = self.header.sha256 and header.sha256 != self.header.sha256
        if changed or header.offset != received:
            raise DataLoss(
                f"{self._name} changed while it was downloaded, or came from byte {header.offset} "
                f"where {received} was asked for",
                reason="CHECKSUM_MISMATCH",
            )
        self.header = header
