"""A watch is one story, told over as many streams as it takes."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from services.common.errors import Reason, unavailable
from tests.unit.sdk.conftest import QUICK, Face
from tests.unit.sdk.server import TEAM, Double, change, heartbeat, job
from voxfleet.client import AsyncClient, JobCancelled, JobFailed, RetryPolicy
from voxfleet.client.errors import NotFound, Unavailable
from voxfleet.v1 import error_pb2, job_pb2, job_pb2_grpc

QUEUED, RUNNING = job_pb2.JOB_STATE_QUEUED, job_pb2.JOB_STATE_RUNNING
SUCCEEDED, FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED
CUT = unavailable(Reason.SERVICE_UNAVAILABLE, "restarting", retry_after_s=0.0)


def seqs(messages: list[job_pb2.WatchJobResponse]) -> list[int]:
    return [message.change.seq for message in messages if message.HasField("change")]


async def test_a_dropped_watch_goes_on_at_its_cursor(face: Face, double: Double) -> None:
    double.watches.extend(
        [
            [change(1, QUEUED), change(2, RUNNING), heartbeat(2, RUNNING), CUT],
            [CUT],
            # This server tells again what was told already; the client does not.
            [change(2, RUNNING), change(3, RUNNING, phase="train"), CUT],
            [change(4, SUCCEEDED)],
        ]
    )
    seen = await face.collect(face.client.jobs.watch, "j-0001")
    assert seqs(seen) == [1, 2, 3, 4]
    assert [request.cursor for request in double.asked("WatchJob")] == [0, 2, 2, 3]


async def test_a_hole_in_the_story_is_asked_for_again(face: Face, double: Double) -> None:
    double.watches.extend(
        [
            [change(1, QUEUED), change(4, SUCCEEDED)],
            [change(2, RUNNING), change(3, RUNNING), change(4, SUCCEEDED)],
        ]
    )
    assert seqs(await face.collect(face.client.jobs.watch, "j-0001")) == [1, 2, 3, 4]
    assert [request.cursor for request in double.asked("WatchJob")] == [0, 1]


async def test_a_stream_that_ends_early_is_opened_again(face: Face, double: Double) -> None:
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(RUNNING)
    double.watches.extend([[change(1, QUEUED)], [], [change(2, SUCCEEDED)]])
    assert seqs(await face.collect(face.client.jobs.watch, "j-0001")) == [1, 2]


async def test_a_watch_from_the_end_of_an_ended_job_ends(face: Face, double: Double) -> None:
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(SUCCEEDED)
    double.watches.append([])
    assert await face.collect(face.client.jobs.watch, "j-0001", cursor=9) == []
    assert double.asked("WatchJob")[0].cursor == 9


async def test_a_watch_of_nothing_fails_at_once(face: Face, double: Double) -> None:
    from services.common.errors import not_found

    double.failures["WatchJob"].append(not_found(Reason.JOB_NOT_FOUND, "j-none"))
    with pytest.raises(NotFound):
        await face.collect(face.client.jobs.watch, "j-none")
    assert len(double.asked("WatchJob")) == 1


async def test_wait_returns_the_job_or_raises_what_became_of_it(face: Face, double: Double) -> None:
    name = f"{TEAM}/jobs/j-0001"
    double.jobs[name] = job(SUCCEEDED, result=job_pb2.JobResult(voice="teams/acme/voices/v-anna"))
    double.watches.append([change(1, QUEUED), CUT])
    double.watches.append([change(2, SUCCEEDED)])
    told: list[job_pb2.WatchJobResponse] = []
    ended = await face.call(face.client.jobs.wait, "j-0001", on_message=told.append)
    assert ended.result.voice == "teams/acme/voices/v-anna"
    assert seqs(told) == [1, 2]

    double.jobs[name] = job(FAILED, error=error_pb2.Error(reason="TRAINING_DIVERGED", message="loss is NaN"))
    double.watches.append([change(1, FAILED)])
    with pytest.raises(JobFailed, match="TRAINING_DIVERGED: loss is NaN") as failed:
        await face.call(face.client.jobs.wait, "j-0001")
    assert failed.value.job.name == name

    double.jobs[name] = job(job_pb2.JOB_STATE_CANCELLED)
    double.watches.append([change(1, job_pb2.JOB_STATE_CANCELLED)])
    with pytest.raises(JobCancelled):
        await face.call(face.client.jobs.wait, "j-0001")


async def test_a_watch_gives_up_after_its_time(endpoint: str, double: Double) -> None:
    policy = RetryPolicy(attempts=99, initial_backoff_s=0.001, max_backoff_s=0.001, reconnect_s=0.0)
    double.watches.append([change(1, QUEUED), CUT])
    async with AsyncClient(endpoint, team="acme", retry=policy) as client:
        with pytest.raises(Unavailable, match="restarting"):
            _ = [message async for message in client.jobs.watch("j-0001")]


async def test_a_gateway_that_stops_and_comes_back_does_not_end_a_watch() -> None:
    class Gateway(job_pb2_grpc.JobServiceServicer):
        def __init__(self, messages: list[job_pb2.WatchJobResponse], *, hang: bool) -> None:
            self.messages, self.hang = messages, hang

        async def WatchJob(self, request: Any, context: Any) -> Any:
            for message in self.messages:
                if message.cursor > request.cursor:
                    yield message
            if self.hang:
                await asyncio.Event().wait()

    async def start(gateway: Gateway, port: int) -> tuple[grpc.aio.Server, int]:
        server = grpc.aio.server()
        job_pb2_grpc.add_JobServiceServicer_to_server(gateway, server)
        port = server.add_insecure_port(f"127.0.0.1:{port}")
        await server.start()
        return server, port

    events = [change(1, QUEUED), change(2, RUNNING), change(3, SUCCEEDED)]
    first, port = await start(Gateway(events[:2], hang=True), 0)
    seen: list[int] = []
    async with AsyncClient(f"127.0.0.1:{port}", team="acme", retry=QUICK) as client:
        async for message in client.jobs.watch("j-0001"):
            seen.append(message.change.seq)
            if message.change.seq == 2:
                await first.stop(0)
                second, _ = await start(Gateway(events, hang=False), port)
    assert seen == [1, 2, 3]
    await second.stop(0)


async def test_cancelling_the_task_of_a_watch_cancels_it(endpoint: str, double: Double) -> None:
    started = asyncio.Event()
    double.watches.extend([[heartbeat(0, RUNNING)] * 3 + [CUT] for _ in range(1000)])

    async def follow(client: AsyncClient) -> None:
        async for _ in client.jobs.watch("j-0001"):
            started.set()

    async with AsyncClient(endpoint, team="acme", retry=QUICK) as client:
        task = asyncio.create_task(follow(client))
        await started.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
