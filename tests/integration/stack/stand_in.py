"""A real, tiny gRPC server that stands in for a service: health, and nothing else.

Its argument is the name of the service that it stands in for. STAND_IN_LOG is a file to which it appends
``start NAME`` and ``stop NAME`` lines; STAND_IN_FAIL names a service that dies at its start with a
message, STAND_IN_DEAF one that never answers SERVING, and STAND_IN_STUBBORN one that ignores SIGTERM.
"""

from __future__ import annotations

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from grpc_health.v1 import health, health_pb2, health_pb2_grpc


def main() -> int:
    name = sys.argv[1]
    if os.environ.get("STAND_IN_FAIL") == name:
        sys.stderr.write("cannot find the frobnicator\n")
        return 7
    # A pipe: an Event's lock may be held by the very thread that a signal interrupts.
    wait_end, ask_end = os.pipe()
    if os.environ.get("STAND_IN_STUBBORN") == name:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    else:
        signal.signal(signal.SIGTERM, lambda *_: os.write(ask_end, b"!"))
    servicer = health.HealthServicer()
    if os.environ.get("STAND_IN_DEAF") == name:
        servicer.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    server = grpc.server(ThreadPoolExecutor(2))
    health_pb2_grpc.add_HealthServicer_to_server(servicer, server)
    server.add_insecure_port(os.environ["VOXFLEET_LISTEN"])
    note("start", name)
    server.start()
    os.read(wait_end, 1)
    server.stop(1).wait()
    note("stop", name)
    return 0


def note(event: str, name: str) -> None:
    if path := os.environ.get("STAND_IN_LOG"):
        with Path(path).open("a") as file:
            file.write(f"{event} {name}\n")


if __name__ == "__main__":
    sys.exit(main())
