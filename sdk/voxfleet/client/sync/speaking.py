# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""Speech as it comes: what ``client.synthesis.synthesize`` returns."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from voxfleet.client import port_sync
from voxfleet.client.errors import DataLoss
from voxfleet.client.sync.calls import Calls
from voxfleet.v1 import synthesis_pb2


class SpeechStream:
    """Pieces of PCM (signed 16-bit little-endian mono), or of the file that was asked for, in order, once.

    The request is sent when iteration begins. While the server is unavailable and nothing has come, it is
    repeated; once anything has come, never.

    Attributes:
        header: set before the first piece: the format, the sample rate, how it is made.
        summary: set after the last: seed, duration, and where asked for word timestamps and quality.
    """

    def __init__(self, calls: Calls, request: synthesis_pb2.SynthesizeRequest, timeout_s: float) -> None:
        self._calls = calls
        self._stub = calls.synthesis
        self._request = request
        self._timeout_s = timeout_s
        self.header = synthesis_pb2.SynthesisHeader()
        self.summary = synthesis_pb2.SynthesisSummary()

    def __iter__(self) -> Iterator[bytes]:
        return self._pieces()

    def _pieces(self) -> Iterator[bytes]:
        failures = 0
        while True:
            began = complete = False
            call = self._stub.Synthesize(
                self._request, timeout=self._timeout_s, metadata=self._calls.headers()
            )
            try:
                for message in call:
                    began = True
                    part = message.WhichOneof("part")
                    if part == "header":
                        self.header = message.header
                    elif part == "pcm":
                        yield message.pcm
                    elif part == "encoded":
                        yield message.encoded
                    elif part == "summary":
                        self.summary = message.summary
                        complete = True
                if not complete:
                    raise DataLoss("the speech ended without its summary: it is not whole")
                return
            except grpc.RpcError as failure:
                failures += 1
                error = self._calls.error(failure)
                if not self._calls.policy.repeats(error, failures, safe=not began):
                    raise error from failure
            finally:
                call.cancel()
            port_sync.sleep(self._calls.policy.backoff_s(failures, error.retry_after_s))
