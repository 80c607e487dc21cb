"""Streamed speech: a slot of the pool, a header, samples as they are made, a summary."""

from __future__ import annotations

import asyncio
import logging
import time
import unicodedata
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field

from services.common import limits, telemetry
from services.common.errors import Reason, VoxfleetError, internal, invalid, not_built
from services.common.jobs.tasks import F5Voice, Pronunciation, SpeakingParameters
from services.inference import metrics
from services.inference.app.pool import Pool
from services.inference.app.seeds import seeded
from services.inference.calls import Closed, EngineFacts, Opened, Pcm, Request, StreamSpeech, Weights
from services.inference.languages import bundle_for, language_of
from services.inference.model import Rank
from services.inference.ports import Catalog, Usage

log = logging.getLogger(__name__)

PIECE_BYTES = 128 * 1024
"""Of one message: well under gRPC's default limit, whatever the length of a chunk of text."""


@dataclass(frozen=True, slots=True)
class SpeechRequest:
    """What is to be spoken.

    Args:
        team: whose request it is.
        voice: by name.
        style: of the reference clip.
        text: up to 5,000 characters.
        parameters: how; a seed of 0 is chosen here.
        rate_hz: of the samples; 0 for the engine's own.
        lexicons: by name, the first that has a word first.
    """

    team: str
    voice: str
    style: str
    text: str
    parameters: SpeakingParameters
    rate_hz: int = 0
    lexicons: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Header:
    """What is coming."""

    rate_hz: int
    chunks: int
    voice: str
    weights: Weights
    seed: int
    watermarked: bool = False


@dataclass(frozen=True, slots=True)
class Summary:
    """What came."""

    header: Header
    duration_s: float
    steps: int
    rtf: float
    queue_s: float
    work_s: float
    closed: Closed = field(default_factory=Closed)


Part = Header | bytes | Summary


@dataclass
class _Progress:
    """What has been sent of one request."""

    header: Header | None = None
    samples: int = 0
    work_s: float = 0.0
    queue_s: float = 0.0
    closed: Closed = field(default_factory=Closed)

    @property
    def duration_s(self) -> float:
        return self.samples / self.header.rate_hz if self.header is not None else 0.0


class Synthesis:
    """Speaks while the caller listens.

    Args:
        pool: of F5 replicas.
        catalog: resolves voices and keeps the usage.
    """

    def __init__(self, pool: Pool, catalog: Catalog) -> None:
        self._pool = pool
        self._catalog = catalog
        self._recording: set[asyncio.Task[None]] = set()

    async def close(self) -> None:
        """Waits until the usage of every stream that has ended is recorded."""
        await asyncio.gather(*self._recording, return_exceptions=True)

    async def stream(self, request: SpeechRequest) -> AsyncGenerator[Part]:
        """A header, samples (signed 16-bit little-endian mono), a summary.

        A replica that dies is replaced by another, once, and only while no sample has been sent. Leaving
        the stream early stops the engine and frees its slot.

        Errors: TEXT_EMPTY, TEXT_TOO_LONG, UNSUPPORTED_CHARACTERS, VOICE_NOT_FOUND, VOICE_NOT_READY,
        LEXICON_NOT_FOUND, UNSUPPORTED_LANGUAGE, LICENCE_NOT_ALLOWED, QUEUE_FULL, SYNTHESIS_FAILED,
        WORKER_LOST, FEATURE_NOT_BUILT.
        """
        began_s = time.perf_counter()
        progress = _Progress()
        outcome = "cancelled"
        try:
            check_text(request.text)
            voice, allowed = await self._resolve(request)
            asked = self._asked(request, voice, await self._pronunciations(request), allowed)
            async with aclosing(self._speak(asked, progress)) as parts:
                async for part in parts:
                    if isinstance(part, bytes) and progress.samples == 0:
                        metrics.FIRST_AUDIO.observe(time.perf_counter() - began_s)
                    yield part
                    if isinstance(part, bytes):
                        progress.samples += len(part) // 2
            outcome = "ok"
            yield _summary(progress, asked.parameters.steps)
        except Exception as error:
            outcome = metrics.outcome_of(error)
            raise
        finally:
            metrics.CALLS.labels("f5", "synthesize", outcome).inc()
            if progress.samples:
                metrics.RTF.labels("f5", "stream").observe(progress.work_s / progress.duration_s)
                # Beside the stream: its end does not wait for the record.
                task = asyncio.create_task(self._record(request, progress))
                self._recording.add(task)
                task.add_done_callback(self._recording.discard)

    async def _resolve(self, request: SpeechRequest) -> tuple[F5Voice, Sequence[str]]:
        """The voice, and the licences of weights that its team may use."""
        resolved = await self._catalog.resolve_voice(request.voice, request.style)
        if resolved.engine == "rvc":
            raise not_built("speaking text in an RVC voice")
        if resolved.f5 is None:
            raise invalid(
                Reason.UNSUPPORTED_ENGINE,
                f"{request.voice} is a voice of engine {resolved.engine}, which does not speak",
                field="voice",
                engine=resolved.engine,
            )
        return resolved.f5, resolved.allowed_licences

    async def _pronunciations(self, request: SpeechRequest) -> tuple[Pronunciation, ...]:
        if not request.lexicons:
            return ()
        return await self._catalog.pronunciations(request.team, request.lexicons, request.text)

    def _asked(
        self,
        request: SpeechRequest,
        voice: F5Voice,
        pronunciations: tuple[Pronunciation, ...],
        allowed: Sequence[str],
    ) -> StreamSpeech:
        parameters = seeded(request.parameters)
        return StreamSpeech(request.text, voice, parameters, request.rate_hz, pronunciations, tuple(allowed))

    async def _speak(self, asked: StreamSpeech, progress: _Progress) -> AsyncGenerator[Header | bytes]:
        for last in (False, True):
            try:
                async with aclosing(self._speak_once(asked, progress)) as parts:
                    async for part in parts:
                        yield part
                return
            except VoxfleetError as error:
                if last or error.reason is not Reason.WORKER_LOST or progress.samples:
                    raise
                log.info("a replica died before the first sample; the request goes to another")

    async def _speak_once(self, asked: StreamSpeech, progress: _Progress) -> AsyncGenerator[Header | bytes]:
        def make(facts: EngineFacts) -> Request:
            bundle_for(language_of(asked.parameters, asked.voice), facts, asked.allowed)
            return asked

        async with self._pool.call(make, Rank.INTERACTIVE) as running:
            progress.queue_s += running.waited_s
            async with aclosing(running.events()) as events:
                async for event in events:
                    match event:
                        case Opened() if progress.header is None:
                            progress.header = Header(
                                event.rate_hz,
                                event.chunks,
                                asked.voice.name,
                                event.weights,
                                event.seed,
                                event.watermarked,
                            )
                            yield progress.header
                        case Closed():
                            progress.closed = event
                        case Pcm():
                            progress.work_s += event.work_s
                            for start in range(0, len(event.data), PIECE_BYTES):
                                yield event.data[start : start + PIECE_BYTES]

    async def _record(self, request: SpeechRequest, progress: _Progress) -> None:
        usage = Usage(request.team, request.voice, progress.duration_s, progress.work_s, len(request.text))
        try:
            with telemetry.span("record usage"):
                await self._catalog.record_usage(usage)
        except VoxfleetError as error:
            # The caller has their audio: that it was not counted is ours to mend.
            log.warning("usage of %s is not recorded: %s", request.voice, error.message)


def check_text(text: str) -> None:
    """What can be said of a text before it waits for a slot. Errors: TEXT_EMPTY, TEXT_TOO_LONG."""
    if len(text) > limits.MAX_TEXT:
        raise invalid(
            Reason.TEXT_TOO_LONG,
            f"the text has {len(text)} characters; at most {limits.MAX_TEXT} are spoken in one request",
            field="text",
            characters=len(text),
            max_characters=limits.MAX_TEXT,
        )
    if not any(unicodedata.category(char)[0] in "LN" for char in text):
        raise invalid(Reason.TEXT_EMPTY, "the text has no letter or digit to speak", field="text")


def _summary(progress: _Progress, steps: int) -> Summary:
    if progress.header is None or progress.samples == 0:
        raise internal("the engine made no sound")
    duration_s = progress.duration_s
    return Summary(
        progress.header,
        duration_s,
        steps,
        progress.work_s / duration_s,
        progress.queue_s,
        progress.work_s,
        progress.closed,
    )
