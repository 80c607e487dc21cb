"""What the layers of the chain cost: the gateway's hop on a read, and an upload against a raw PUT.

``gateway_read_vs_direct``: median time of GetAudio through the gateway over the same call made straight to
metadata. ``upload_vs_raw_put``: throughput of an upload through the gateway (hashed, staged, verified,
decoded, measured, committed) over that of a bare PUT of the same bytes.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import grpc
import numpy as np

from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.media.encode import Format, encode
from services.common.rpc.caller import Caller
from services.common.rpc.channel import identity_headers
from services.stack.config import StackConfig
from services.stack.stack import Stack, running_stack
from voxfleet.client import Client
from voxfleet.v1 import audio_pb2, audio_pb2_grpc

RATE_HZ = 48_000
CHUNK_BYTES = 256 * 1024


def timed(call: Callable[[], object]) -> float:
    """Seconds that a call takes."""
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def reads(stack: Stack, name: str, rounds: int) -> dict[str, float]:
    """The gateway's hop: both paths in turn, medians."""
    request = audio_pb2.GetAudioRequest(name=name)
    service_token = stack.services["metadata"].env["VOXFLEET_SERVICE_TOKEN"]
    headers = identity_headers(service_token, Caller(team=stack.team))
    bearer = (("authorization", f"Bearer {stack.token}"),)
    with (
        grpc.insecure_channel(stack.services["metadata"].grpc_address) as direct,
        grpc.insecure_channel(stack.endpoint) as front,
    ):
        straight = audio_pb2_grpc.AudioServiceStub(direct).GetAudio
        through = audio_pb2_grpc.AudioServiceStub(front).GetAudio
        for _ in range(20):
            straight(request, metadata=headers)
            through(request, metadata=bearer)
        a, b = [], []
        for _ in range(rounds):
            a.append(timed(lambda: straight(request, metadata=headers)))
            b.append(timed(lambda: through(request, metadata=bearer)))
    return {
        "gateway_read_vs_direct": statistics.median(b) / statistics.median(a),
        "direct_read_p50_ms": 1000 * statistics.median(a),
    }


def uploads(stack: Stack, seconds: float, rounds: int) -> dict[str, float]:
    """An upload against a bare PUT of the same bytes: in turn, medians."""
    store = MinioArtifactStore(stack.s3)
    whole, put = [], []
    size = 0
    for number in range(rounds):
        noise = np.random.default_rng(number).standard_normal(int(seconds * RATE_HZ)).astype(np.float32)
        data = encode(0.05 * noise, RATE_HZ, Format.WAV)
        size = len(data)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "noise.wav"
            path.write_bytes(data)
            put.append(timed(partial(store.put_file, f"teams/bench/work/x/1/{number}", path)))
        began = time.perf_counter()

        def messages(data: bytes = data) -> Iterator[audio_pb2.UploadAudioRequest]:
            spec = audio_pb2.AudioSpec(size_bytes=len(data), display_name="noise.wav")
            opened = audio_pb2.OpenUpload(parent=f"teams/{stack.team}", audio=spec)
            yield audio_pb2.UploadAudioRequest(open=opened)
            for start in range(0, len(data), CHUNK_BYTES):
                yield audio_pb2.UploadAudioRequest(chunk=data[start : start + CHUNK_BYTES])

        with grpc.insecure_channel(stack.endpoint) as channel:
            stub = audio_pb2_grpc.AudioServiceStub(channel)
            stub.UploadAudio(messages(), metadata=(("authorization", f"Bearer {stack.token}"),))
        whole.append(time.perf_counter() - began)
    return {
        "upload_mb": size / 1e6,
        "upload_vs_raw_put": statistics.median(put) / statistics.median(whole),
    }


def main() -> int:
    """Measures on a stack of its own (no Ray: it is not part of what is measured)."""
    parser = argparse.ArgumentParser(prog="bench.chain", description=__doc__)
    parser.add_argument("--reads", type=int, default=400)
    parser.add_argument("--uploads", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=120.0, help="of noise in an upload")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="voxfleet-bench-") as home:
        config = StackConfig.from_environ(
            os.environ,
            home=Path(home),
            services=("metadata", "audio", "gateway"),
            team="bench",
            durable=False,
        )
        with (
            running_stack(config, lambda line: print(line, file=sys.stderr)) as stack,
            Client(endpoint=stack.endpoint, token=stack.token, team=stack.team) as client,
        ):
            tone = encode(np.full(RATE_HZ, 0.1, np.float32), RATE_HZ, Format.WAV)
            audio = client.audio.upload(tone)
            figures = reads(stack, audio.name, arguments.reads)
            figures |= uploads(stack, arguments.seconds, arguments.uploads)
    print(json.dumps({name: round(value, 4) for name, value in figures.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
