"""Our ledger as its workers reach it: a metadata process of its own, Work streams, EndAttempts calls."""

from __future__ import annotations

import asyncio
import os
import secrets
import sys
from collections.abc import Sequence

import grpc

from bench.peers.ledger import KIND, LedgerPeer
from services.common.rpc import status
from services.common.rpc.channel import service_channel
from services.stack.config import ServiceProcess, inherited, python_env
from services.stack.home import Home
from services.stack.process import Child
from services.stack.stack import ServiceComponent
from voxfleet.internal.v1 import work_pb2, work_pb2_grpc

_NOTHING_S = 0.25
_READY_S = 60.0
_CALL_S = 30.0


class GrpcPeer:
    """The same ledger; what claims and ends is a client of the service's process."""

    name = "voxfleet_grpc"

    def __init__(self, *, teams: int, home: Home) -> None:
        self.ledger = LedgerPeer(teams=teams, serving=False)
        self._home = home
        self._token = secrets.token_urlsafe(32)
        self._service: Child | None = None
        self._address = ""
        self._claimers: list[StreamClaimer] = []

    async def setup(self, url: str) -> None:
        """The schema and teams as in-process, then the service."""
        await self.ledger.setup(url)
        book = self._home.ports()
        # Ports of its own: gRPC would take a new service on an old one's port for the one that went away.
        database = url.rpartition("/")[2]
        ports = book.port(f"metadata-{database}"), book.port(f"metrics-{database}")
        process = ServiceProcess(
            name="metadata",
            argv=(sys.executable, "-m", "services.metadata"),
            env={
                **python_env(inherited(os.environ)),
                "VOXFLEET_DATABASE_URL": url,
                "VOXFLEET_LISTEN": f"127.0.0.1:{ports[0]}",
                "VOXFLEET_METRICS_LISTEN": f"127.0.0.1:{ports[1]}",
                "VOXFLEET_SERVICE_TOKEN": self._token,
                "VOXFLEET_LOG_LEVEL": "WARNING",
            },
            grpc_port=ports[0],
            metrics_port=ports[1],
        )
        self._address = process.grpc_address
        component = ServiceComponent(process, self._home.logs / "metadata.log", self._home.path, _READY_S)
        self._service = Child(component, restart=False)
        self._service.start()
        await asyncio.to_thread(self._service.wait_ready, _READY_S)

    async def enqueue(self, count: int, teams: int) -> None:
        """As in-process: submits are another figure."""
        await self.ledger.enqueue(count, teams)

    async def claimer(self) -> StreamClaimer:
        """One more worker process's channel."""
        worker = f"bench-{len(self._claimers) + 1}"
        claimer = StreamClaimer(service_channel(self._address, self._token), worker)
        self._claimers.append(claimer)
        await claimer.open()
        return claimer

    async def finished(self) -> int:
        """Jobs in their good final state."""
        return await self.ledger.finished()

    async def teardown(self) -> None:
        """Closes the channels and stops the service."""
        for claimer in self._claimers:
            await claimer.close()
        self._claimers.clear()
        if self._service is not None:
            await asyncio.to_thread(self._service.stop)
            self._service = None
        await self.ledger.teardown()


class StreamClaimer:
    """One worker process."""

    def __init__(self, channel: grpc.aio.Channel, worker: str) -> None:
        self._channel = channel
        self._stub = work_pb2_grpc.WorkServiceStub(channel)
        self._hello = work_pb2.WorkerHello(worker=worker, queue="inference", node="bench", version="0")
        self._call = self._stub.Work()
        self._batches: asyncio.Queue[list[work_pb2.Lease]] = asyncio.Queue()
        self._seen = 0
        self._offered = False
        self._reader: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Says who we are and begins to read."""
        await self._call.write(work_pb2.WorkRequest(hello=self._hello))
        self._reader = asyncio.create_task(self._read())

    async def close(self) -> None:
        """Ends the stream and the channel."""
        if self._reader is not None:
            self._reader.cancel()
            await asyncio.gather(self._reader, return_exceptions=True)
        self._call.cancel()
        await self._channel.close()

    async def claim(self, batch: int) -> list[work_pb2.Lease]:
        """Offers ``batch`` places and takes what comes down the stream, within a quarter of a second."""
        try:
            async with asyncio.timeout(_NOTHING_S):
                return await self.wait(batch)
        except TimeoutError:
            return []

    async def wait(self, batch: int = 1) -> list[work_pb2.Lease]:
        """Offers ``batch`` places, once, and waits until leases come."""
        if not self._offered:
            self._offered = True
            capacity = work_pb2.WorkerCapacity(free={KIND: batch}, leases_seen=self._seen)
            await self._call.write(work_pb2.WorkRequest(capacity=capacity))
        leases = await self._batches.get()
        self._seen += len(leases)
        self._offered = False
        return leases

    async def finish(self, jobs: Sequence[work_pb2.Lease]) -> None:
        """Ends each attempt, all in one call, as a worker does with what ends at the same time."""
        ends = [
            work_pb2.AttemptEnd(fence=lease.fence, succeeded=work_pb2.AttemptSucceeded()) for lease in jobs
        ]
        answer = await self._stub.EndAttempts(work_pb2.EndAttemptsRequest(ends=ends), timeout=_CALL_S)
        for ended in answer.ended:
            if ended.status:
                raise status.from_status(ended.status)

    async def _read(self) -> None:
        try:
            async for response in self._call:
                if response.leases.leases:
                    self._batches.put_nowait(list(response.leases.leases))
        finally:
            # Whoever waits is told that nothing more will come.
            self._batches.put_nowait([])
