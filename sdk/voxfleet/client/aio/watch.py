"""One watch of a job, over as many streams as it takes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator

import grpc

from voxfleet.client import port_aio
from voxfleet.client.aio.calls import Calls
from voxfleet.client.enums import FINAL_STATES
from voxfleet.client.errors import DeadlineExceeded, Unavailable, VoxfleetError, is_cut
from voxfleet.client.retry import Patience
from voxfleet.v1 import job_pb2


class Watcher:
    """Yields each change of a job once and in order.

    Args:
        calls: how to call.
        name: the job's full name.
        cursor: events after it are sent.
        timeout_s: deadline of the whole; none where None.
    """

    def __init__(self, calls: Calls, name: str, cursor: int, timeout_s: float | None) -> None:
        self._calls = calls
        self._stub = calls.jobs
        self._name = name
        self._cursor = cursor
        self._deadline = None if timeout_s is None else time.monotonic() + timeout_s
        # The number of the last change that was yielded; 0 before the first.
        self._seq = 0
        self._state: job_pb2.JobState.ValueType = job_pb2.JOB_STATE_UNSPECIFIED

    async def messages(self) -> AsyncIterator[job_pb2.WatchJobResponse]:
        """What happens, until the job has ended."""
        patience = Patience(self._calls.policy, self._calls.policy.reconnect_s)
        while True:
            error: VoxfleetError = Unavailable(f"the watch of {self._name} broke off before the job ended")
            call = self._stub.WatchJob(
                job_pb2.WatchJobRequest(name=self._name, cursor=self._cursor),
                timeout=self._left_s(),
                metadata=self._calls.headers(),
            )
            try:
                async for message in call:
                    if self._is_gap(message):
                        break
                    if self._is_new(message):
                        patience.renew()
                        yield message
                else:
                    if await self._has_ended():
                        return
            except grpc.RpcError as failure:
                error = self._calls.error(failure)
                if not is_cut(error):
                    raise error from failure
            finally:
                call.cancel()
            await port_aio.sleep(patience.wait_s(error))

    def _is_gap(self, message: job_pb2.WatchJobResponse) -> bool:
        """Whether changes are missing before this one; the stream is then opened again at the cursor."""
        return message.HasField("change") and 0 < self._seq < message.change.seq - 1

    def _is_new(self, message: job_pb2.WatchJobResponse) -> bool:
        """Whether this was not yielded before; notes it as seen."""
        if message.HasField("change"):
            if message.change.seq <= self._seq:
                return False
            self._seq = message.change.seq
        if message.HasField("job"):
            self._state = message.job.state
        self._cursor = max(self._cursor, message.cursor)
        return True

    async def _has_ended(self) -> bool:
        if self._state not in FINAL_STATES:
            # A stream that brought nothing may have been opened after the last event of an ended job.
            request = job_pb2.GetJobRequest(name=self._name)
            self._state = (await self._calls.unary(self._stub.GetJob, request, safe=True)).state
        return self._state in FINAL_STATES

    def _left_s(self) -> float | None:
        if self._deadline is None:
            return None
        left_s = self._deadline - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(
                f"{self._name} had not ended in time; it goes on", reason="DEADLINE_EXCEEDED"
            )
        return left_s
