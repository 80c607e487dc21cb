"""Uploads as streams: opened, cut, resumed, taken over, finished."""

from __future__ import annotations

import asyncio
import datetime as dt
import logging
import re
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from typing import Generic

from services.audio import metrics
from services.audio.app.finishing import REFUSALS, Finisher
from services.audio.app.intake import Intake
from services.audio.grade import check_file
from services.audio.records import AudioSpec, AudioT, OpenStep, ResumeStep, Step, UploadRecord
from services.common.errors import Kind, Reason, VoxfleetError, invalid, precondition
from services.common.names import Name, check_id, new_id

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Session(Generic[AudioT]):
    """One stream of one upload, from its first message to its answer.

    It runs in a task of its own: a client that goes away ends the call, while the session makes durable
    what was received, or commits what was complete.
    """

    before: _Session[AudioT] | None
    spec: AudioSpec | None = None
    task: asyncio.Task[AudioT] | None = None
    receiver: asyncio.Task[None] | None = None
    is_cut: bool = False
    is_superseded: bool = False
    is_finishing: bool = False
    stopped: asyncio.Event = field(default_factory=asyncio.Event)

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
        self.stopped.set()
        if self.receiver is not None:
            self.receiver.cancel()


class Uploads(Generic[AudioT]):
    """The use cases of uploads.

    Args:
        finisher: ends complete uploads; its catalogue and store are used here too.
        part_bytes: size of a durable part, in bytes.
        max_streams: further streams are told to come back.
        end_grace_s: how long a stream that announced no size must have ended before it counts as whole.
            A client that is cut off behind a proxy can look like one that has ended, until the
            cancellation follows.
        now: the wall clock.
    """

    def __init__(
        self,
        finisher: Finisher[AudioT],
        *,
        part_bytes: int,
        max_streams: int,
        end_grace_s: float,
        now: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
    ) -> None:
        self._finisher = finisher
        self._catalog = finisher.catalog
        self._part_bytes = part_bytes
        self._max_streams = max_streams
        self._end_grace_s = end_grace_s
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
            spec = first.spec
            _check_spec(spec)
            check_file(
                spec.purpose, size_bytes=spec.size_bytes, duration_s=None, limits=self._finisher.limits
            )
            upload_id = check_id(first.upload_id, field="upload_id") if first.upload_id else new_id()
            name = str(Name(first.team, "uploads", upload_id))
            first = OpenStep(first.team, upload_id, spec)
        elif isinstance(first, ResumeStep):
            name = first.name
        else:
            raise invalid(
                Reason.INVALID_ARGUMENT, "the first message opens or resumes an upload", field="step"
            )
        before = self._sessions.get(name)
        if before is not None:
            if before.is_finishing and (isinstance(first, ResumeStep) or before.spec == first.spec):
                return await before.answer()
            if isinstance(first, OpenStep):
                raise _taken(await self._catalog.fetch_upload(name))
        session: _Session[AudioT] = _Session(before)
        self._sessions[name] = session
        session.task = asyncio.create_task(self._serve(session, name, first, steps))
        self._tasks.add(session.task)
        session.task.add_done_callback(partial(self._ended, session, name))
        try:
            return await session.answer()
        except asyncio.CancelledError:
            session.cut()
            raise

    def _ended(self, session: _Session[AudioT], name: str, task: asyncio.Task[AudioT]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        # Of a stream that was cut nobody is left to hear how it ended: the log is.
        if session.is_cut and error is not None:
            known = isinstance(error, VoxfleetError)
            log.log(
                logging.INFO if known else logging.ERROR,
                "%s: %s",
                name,
                error,
                exc_info=None if known else error,
            )

    async def _serve(
        self,
        session: _Session[AudioT],
        name: str,
        first: OpenStep | ResumeStep,
        steps: AsyncIterator[Step],
    ) -> AudioT:
        try:
            if session.before is not None:
                await session.before.give_way()
                session.before = None
            record = await (self._open(name, first) if isinstance(first, OpenStep) else self._resume(first))
            session.spec = record.spec
            if record.committed_audio:
                return (await self._catalog.resolve_audio(record.committed_audio)).audio
            return await self._receive_and_finish(session, record, steps)
        finally:
            if self._sessions.get(name) is session:
                del self._sessions[name]

    async def _receive_and_finish(
        self, session: _Session[AudioT], record: UploadRecord, steps: AsyncIterator[Step]
    ) -> AudioT:
        intake = Intake(
            self._catalog,
            self._finisher.objects,
            record,
            limits=self._finisher.limits,
            part_bytes=self._part_bytes,
        )
        try:
            await _receive(session, intake, steps, record.spec.size_bytes, self._end_grace_s)
            session.is_finishing = True
            return await self._finisher.finish(record, intake.durable)
        except VoxfleetError as error:
            if error.reason in REFUSALS:
                await intake.abandon()
                await self._finisher.discard(record.name)
            raise

    async def _open(self, name: str, first: OpenStep) -> UploadRecord:
        try:
            return await self._catalog.open_upload(first.team, first.upload_id, first.spec)
        except VoxfleetError as error:
            if error.reason is not Reason.UPLOAD_OFFSET_MISMATCH:
                raise
        # A client whose first answer was lost opens again: it gets what it would have got then.
        record = await self._catalog.fetch_upload(name)
        if record.spec != first.spec or (record.durable_offset and not record.committed_audio):
            raise _taken(record)
        return record

    async def _resume(self, first: ResumeStep) -> UploadRecord:
        record = await self._catalog.fetch_upload(first.name)
        if record.committed_audio:
            return record
        if record.expires_at is not None and record.expires_at <= self._now():
            raise precondition(
                Reason.UPLOAD_EXPIRED,
                f"{first.name} expired: open a new upload",
                expire_time=record.expires_at.isoformat(),
            )
        if first.offset != record.durable_offset:
            raise VoxfleetError(
                Reason.UPLOAD_OFFSET_MISMATCH,
                f"the durable offset is {record.durable_offset}, not {first.offset}: resume there",
                kind=Kind.OUT_OF_RANGE,
                metadata={"durable_offset": record.durable_offset},
            )
        return record


async def _receive(
    session: _Session[AudioT],
    intake: Intake,
    steps: AsyncIterator[Step],
    announced_bytes: int,
    end_grace_s: float,
) -> None:
    """Takes the stream to its end; what came of one that was cut is made durable all the same."""
    if not session.is_stopped:
        session.receiver = asyncio.create_task(intake.take(steps))
        try:
            await session.receiver
        except asyncio.CancelledError:
            if not session.is_stopped:
                raise
        except VoxfleetError:
            raise
        except Exception:
            await _flush(intake)
            raise
        if end_grace_s and not announced_bytes and not session.is_stopped:
            with suppress(TimeoutError):
                await asyncio.wait_for(session.stopped.wait(), end_grace_s)
    # The end of a stream and the news that its client is gone may come in either order.
    if session.is_superseded:
        await intake.abandon()
        raise VoxfleetError(
            Reason.UPLOAD_OFFSET_MISMATCH,
            "a newer stream goes on with this upload",
            kind=Kind.ABORTED,
            metadata={"durable_offset": intake.durable},
        )
    if session.is_cut:
        await _flush(intake)
        if announced_bytes and intake.durable == announced_bytes:
            return  # it was whole, and nobody need send it again
        raise VoxfleetError(
            Reason.CANCELLED,
            f"the stream was cut: resume at {intake.durable}",
            kind=Kind.CANCELLED,
            metadata={"durable_offset": intake.durable},
        )


async def _flush(intake: Intake) -> None:
    try:
        await intake.flush()
    except VoxfleetError as error:
        log.warning("the end of a cut stream was not kept, it resumes at %d: %s", intake.durable, error)


def _taken(record: UploadRecord) -> VoxfleetError:
    return VoxfleetError(
        Reason.UPLOAD_OFFSET_MISMATCH,
        f"{record.name} is there already: resume it at {record.durable_offset}, or choose another id",
        kind=Kind.CONFLICT,
        metadata={"durable_offset": record.durable_offset},
    )


_SHA256 = re.compile(r"[0-9a-f]{64}")


def _check_spec(spec: AudioSpec) -> None:
    if spec.size_bytes < 0:
        raise invalid(
            Reason.INVALID_ARGUMENT, "size_bytes is negative: leave it 0 if unknown", field="audio.size_bytes"
        )
    if spec.sha256 and not _SHA256.fullmatch(spec.sha256):
        raise invalid(Reason.INVALID_ARGUMENT, "sha256 must be 64 hexadecimal digits", field="audio.sha256")
