"""Uploads as streams: opened, cut, resumed, taken over, finished."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Generic, cast

from services.audio import metrics
from services.audio.app.finishing import REFUSALS, Finisher
from services.audio.app.intake import Intake
from services.audio.grade import check_file
from services.audio.records import AudioSpec, AudioT, OpenStep, ResumeStep, Step, UploadRecord
from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.common.names import Name, check_id, new_id

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Session(Generic[AudioT]):
    """One stream of one upload, from its first message to its answer.

    It runs in a task of its own: a client that goes away ends the call, while the session makes durable
    what was received, or commits what was complete.
    """

    spec: AudioSpec | None
    before: _Session[AudioT] | None
    task: asyncio.Task[AudioT] | None = None
    receiver: asyncio.Task[None] | None = None
    is_cut: bool = False
    is_superseded: bool = False
    is_finishing: bool = False

    def cut(self) -> None:
        """The client is gone."""
        self.is_cut = True
        self._stop_receiving()

    async def give_way(self) -> None:
        """Ends for the sake of a newer stream of the same upload; returns when it has."""
        if not self.is_cut:
            self.is_superseded = True
            self._stop_receiving()
        if self.task is not None:
            await asyncio.wait({self.task})

    async def answer(self) -> AudioT:
        """Its answer, for whoever else asks."""
        assert self.task is not None
        return await asyncio.shield(self.task)

    @property
    def is_stopped(self) -> bool:
        """Whether it is to receive no more."""
        return self.is_cut or self.is_superseded

    def _stop_receiving(self) -> None:
        if self.receiver is not None:
            self.receiver.cancel()


class Uploads(Generic[AudioT]):
    """The use cases of uploads.

    Args:
        finisher: ends complete uploads; its catalogue and store are used here too.
        part_bytes: size of a durable part, in bytes.
        max_streams: further streams are told to come back.
        now: the wall clock.
    """

    def __init__(
        self,
        finisher: Finisher[AudioT],
        *,
        part_bytes: int,
        max_streams: int,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._finisher = finisher
        self._catalog = finisher.catalog
        self._part_bytes = part_bytes
        self._max_streams = max_streams
        self._now = now
        self._streams = 0
        self._sessions: dict[str, _Session[AudioT]] = {}
        self._tasks: set[asyncio.Task[AudioT]] = set()

    async def upload(self, steps: AsyncIterator[Step]) -> AudioT:
        """Takes one stream; returns the audio that it became.

        Errors: those in the API's description of UploadAudio, and QUEUE_FULL.
        """
        if self._streams >= self._max_streams:
            metrics.UPLOADS.labels(Reason.QUEUE_FULL.value).inc()
            raise VoxfleetError(
                Reason.QUEUE_FULL,
                f"{self._max_streams} uploads are being received: try again shortly",
                kind=Kind.EXHAUSTED,
                retry_after_s=2.0,
            )
        self._streams += 1
        metrics.STREAMS.set(self._streams)
        outcome = "error"
        try:
            audio = await self._upload(steps)
            outcome = "committed"
        except asyncio.CancelledError:
            outcome = "cut"
            raise
        except VoxfleetError as error:
            outcome = error.reason.value
            raise
        finally:
            self._streams -= 1
            metrics.STREAMS.set(self._streams)
            metrics.UPLOADS.labels(outcome).inc()
        return audio

    async def state(self, name: str) -> UploadRecord:
        """An upload as it stands; of a stream just cut, once its bytes are durable."""
        session = self._sessions.get(name)
        if session is not None and session.task is not None and session.is_cut and not session.is_finishing:
            await asyncio.wait({session.task})
        return await self._catalog.fetch_upload(name)

    async def drain(self, timeout_s: float) -> None:
        """Waits for what goes on without its client."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=timeout_s)

    async def _upload(self, steps: AsyncIterator[Step]) -> AudioT:
        first = await anext(steps, None)
        if isinstance(first, OpenStep):
            _check_spec(first.spec)
            spec = first.spec
            check_file(
                spec.purpose, size_bytes=spec.size_bytes, duration_s=None, limits=self._finisher.limits
            )
            upload_id = check_id(first.upload_id, field="upload_id") if first.upload_id else new_id()
            name = str(Name(first.team, "uploads", upload_id))
            return await self._run(name, spec, self._open(name, first.team, upload_id, spec), steps)
        if isinstance(first, ResumeStep):
            return await self._run(first.name, None, self._resume(first.name, first.offset), steps)
        raise invalid(Reason.INVALID_ARGUMENT, "the first message opens or resumes an upload", field="step")

    async def _run(
        self,
        name: str,
        spec: AudioSpec | None,
        begin: Callable[[], Awaitable[UploadRecord]],
        steps: AsyncIterator[Step],
    ) -> AudioT: ...
