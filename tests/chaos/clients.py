"""The clients of a chaos run: they submit, meddle and watch through the public API, and never lose heart.

A call that was cut off may have been done. A submit is therefore repeated under its request id until it is
answered, and every answer to one id must name one job; a watch goes on at its cursor.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import grpc

from services.common.names import new_id
from tests.chaos.arena import TEAM, Arena, Things
from voxfleet.v1 import job_pb2, job_pb2_grpc, synthesis_pb2, synthesis_pb2_grpc

log = logging.getLogger(__name__)

LABEL = "chaos"
"""The label that carries a submit's request id into the history."""

FINAL = frozenset({job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED})

_PARENT = f"teams/{TEAM}"
_TRY_AGAIN_S = 0.15
_WATCH_AGAIN_S = 0.5
_CUT_OFF = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    }
)
"""What a client may be told while things are killed. Everything else that is no refusal is noted as odd."""
_REFUSED = frozenset({grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.ABORTED})
_OPTIONS = (("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 500))

Call = Callable[..., Any]
Submit = tuple[Call, synthesis_pb2.ConvertAudioRequest | synthesis_pb2.BatchSynthesizeRequest, int]


@dataclass
class Seen:
    """What clients were told, to be held against the history.

    Args:
        acknowledged: the job that each request id was answered with.
        watched: of each watched job, what came of its events: (sequence, state).
        contradictions: answers that disagree with an earlier one.
        odd: errors that a client should not have been told.
        counts: of what was done, and of what was cut off.
        leaves: jobs that were acknowledged, batches counted by their items.
    """

    acknowledged: dict[str, str] = field(default_factory=dict)
    watched: dict[str, list[tuple[int, str]]] = field(default_factory=dict)
    contradictions: list[str] = field(default_factory=list)
    odd: list[str] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    leaves: int = 0

    @property
    def jobs(self) -> list[str]:
        """Jobs that were acknowledged."""
        return list(self.acknowledged.values())


class Clients:
    """Every client of a run, in one process.

    Args:
        arena: what they speak to.
        seed: decides what they do.
        share: how far the run is, from 0 to 1: submits are spread over it.
    """

    def __init__(self, arena: Arena, seed: str, share: Callable[[], float]) -> None:
        self._channel = grpc.aio.insecure_channel(arena.stack.endpoint, options=_OPTIONS)
        self._headers = arena.headers
        self._jobs = job_pb2_grpc.JobServiceStub(self._channel)
        self._synthesis = synthesis_pb2_grpc.SynthesisServiceStub(self._channel)
        self._things: Things = arena.things
        self._seed = seed
        self._share = share
        self.seen = Seen()

    async def close(self) -> None:
        """Hangs up."""
        await self._channel.close()

    # ---- submits

    async def submit(self, leaves: int, *, at_once: int = 4) -> None:
        """Submits jobs until there are so many, batches counted by their items."""
        chance = random.Random(f"{self._seed}/submits")
        waiting: list[Submit] = []
        planned = 0
        while planned < leaves:
            made = self._draw(chance, leaves - planned)
            planned += made[2]
            waiting.append(made)
        waiting.reverse()

        async def client() -> None:
            while waiting:
                while self.seen.leaves > leaves * (self._share() + 0.15):
                    await asyncio.sleep(0.05)
                if waiting:
                    await self._submit(*waiting.pop(), chance)

        await asyncio.gather(*(client() for _ in range(at_once)))

    def _draw(self, chance: random.Random, most: int) -> Submit:
        """A request, and how many leaves it makes; what it depends on is chosen when it is sent."""
        draw = chance.random()
        if draw < 0.5 or most == 1:
            convert = synthesis_pb2.ConvertAudioRequest(
                parent=_PARENT, audios=[self._things.audio], voice=self._things.converting_voice
            )
            return self._synthesis.ConvertAudio, convert, 1
        size = min(most, chance.randint(2, 12))
        if draw < 0.6:
            convert = synthesis_pb2.ConvertAudioRequest(
                parent=_PARENT, audios=[self._things.audio] * size, voice=self._things.converting_voice
            )
            return self._synthesis.ConvertAudio, convert, size
        # A line in twenty has nothing to speak: it is failed from the start, and harms no other.
        texts = ["" if chance.random() < 0.05 else f"line {number}" for number in range(size)]
        items = [synthesis_pb2.BatchItem(id=f"i{number}", text=text) for number, text in enumerate(texts)]
        batch = synthesis_pb2.BatchSynthesizeRequest(
            parent=_PARENT, voice=self._things.speaking_voice, items=items
        )
        return self._synthesis.BatchSynthesize, batch, size

    async def _submit(
        self,
        method: Call,
        request: synthesis_pb2.ConvertAudioRequest | synthesis_pb2.BatchSynthesizeRequest,
        leaves: int,
        chance: random.Random,
    ) -> None:
        request.request_id = new_id()
        request.labels[LABEL] = request.request_id
        if self.seen.acknowledged and chance.random() < 0.15:
            many = min(chance.choice((1, 1, 2)), len(self.seen.acknowledged))
            request.depends_on.extend(chance.sample(self.seen.jobs, many))
        while True:
            try:
                job = await method(request, timeout=chance.choice((0.3, 5.0)), metadata=self._headers)
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.INVALID_ARGUMENT and request.depends_on:
                    # What it was to depend on has failed: as another request, it goes without.
                    del request.depends_on[:]
                    request.request_id = new_id()
                    request.labels[LABEL] = request.request_id
                elif error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                    raise
                else:
                    self._note("submit", error)
                    await asyncio.sleep(_TRY_AGAIN_S)
                continue
            first = self.seen.acknowledged.setdefault(request.request_id, job.name)
            if first != job.name:
                self.seen.contradictions.append(f"{request.request_id} is {first} and {job.name}")
            self.seen.counts["submits"] += 1
            if chance.random() < 0.1:
                continue  # it forgot that it was answered
            self.seen.leaves += leaves
            return

    # ---- meddling

    async def meddle(self, number: int) -> None:
        """Cancels, pauses, resumes, retries and reorders what there is, until cancelled."""
        chance = random.Random(f"{self._seed}/meddler-{number}")
        while True:
            await asyncio.sleep(chance.uniform(0.02, 0.4))
            if not self.seen.acknowledged:
                continue
            try:
                if chance.random() < 0.2:
                    await self._retry_one(chance)
                else:
                    await self._meddle_with(chance.choice(self.seen.jobs[-60:]), chance)
            except grpc.aio.AioRpcError as error:
                self._note("meddle", error)

    async def _retry_one(self, chance: random.Random) -> None:
        """Of what has ended badly."""
        state = chance.choice(("FAILED", "CANCELLED"))
        request = job_pb2.ListJobsRequest(parent=_PARENT, filter=f"state={state}", page_size=20)
        found = await self._jobs.ListJobs(request, timeout=3, metadata=self._headers)
        if found.jobs:
            name = chance.choice(list(found.jobs)).name
            await self._ask(self._jobs.RetryJob, job_pb2.RetryJobRequest(name=name), "retries")

    async def _meddle_with(self, name: str, chance: random.Random) -> None:
        if chance.random() < 0.4:
            request = job_pb2.ListJobsRequest(parent=_PARENT, batch_job=name, page_size=50)
            items = await self._jobs.ListJobs(request, timeout=3, metadata=self._headers)
            if items.jobs:
                name = chance.choice(list(items.jobs)).name
        draw = chance.random()
        if draw < 0.3:
            await self._ask(self._jobs.CancelJob, job_pb2.CancelJobRequest(name=name), "cancels")
        elif draw < 0.4:
            await self._ask(self._jobs.RetryJob, job_pb2.RetryJobRequest(name=name), "retries")
        elif draw < 0.7:
            await self._ask(self._jobs.PauseJob, job_pb2.PauseJobRequest(name=name), "pauses")
            await asyncio.sleep(chance.uniform(0.0, 0.5))
            await self._ask(self._jobs.ResumeJob, job_pb2.ResumeJobRequest(name=name), "resumes")
        else:
            update = job_pb2.UpdateJobRequest(job=job_pb2.Job(name=name, priority=chance.randint(-100, 100)))
            update.update_mask.paths.append("priority")
            await self._ask(self._jobs.UpdateJob, update, "reorders")

    async def _ask(self, method: Call, request: Any, what: str) -> None:
        await method(request, timeout=3, metadata=self._headers)
        self.seen.counts[what] += 1

    async def resume(self, names: Sequence[str]) -> None:
        """Lets paused jobs go on."""
        for name in names:
            try:
                request = job_pb2.ResumeJobRequest(name=name)
                await self._jobs.ResumeJob(request, timeout=5, metadata=self._headers)
            except grpc.aio.AioRpcError as error:
                self._note("resume", error)

    # ---- watching

    async def watch(self) -> None:
        """Watches every other job from its first event to its end, until cancelled."""
        async with asyncio.TaskGroup() as group:
            looked = 0
            while True:
                for name in self.seen.jobs[looked:]:
                    if looked % 2 == 0:
                        group.create_task(self._watch(name))
                    looked += 1
                await asyncio.sleep(0.05)

    async def _watch(self, name: str) -> None:
        events = self.seen.watched.setdefault(name, [])
        cursor = 0
        while True:
            request = job_pb2.WatchJobRequest(name=name, cursor=cursor)
            stream = self._jobs.WatchJob(request, timeout=30, metadata=self._headers)
            try:
                async for message in stream:
                    cursor = message.cursor
                    if message.HasField("change"):
                        change = message.change
                        state = job_pb2.JobState.Name(change.state).removeprefix("JOB_STATE_")
                        events.append((change.seq, state))
                        if change.seq != cursor:
                            self.seen.contradictions.append(
                                f"{name}: event {change.seq} under cursor {cursor}"
                            )
                    if message.job.state in FINAL and events and message.job.state == _state(events[-1][1]):
                        return
            except grpc.aio.AioRpcError as error:
                self._note("watch", error)
            self.seen.counts["reconnects"] += 1
            await asyncio.sleep(_WATCH_AGAIN_S)

    def _note(self, what: str, error: grpc.aio.AioRpcError) -> None:
        code = error.code()
        if code in _CUT_OFF:
            self.seen.counts[f"{what} cut off"] += 1
        elif code in _REFUSED:
            self.seen.counts[f"{what} refused"] += 1
        else:
            self.seen.odd.append(f"{what}: {code.name}: {error.details()}")
            log.warning("%s: %s: %s", what, code.name, error.details())


def _state(name: str) -> int:
    return int(job_pb2.JobState.Value(f"JOB_STATE_{name}"))
