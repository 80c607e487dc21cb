"""Streamed speech: a slot of the pool, a header, samples as they are made, a summary."""

from __future__ import annotations

import asyncio
import logging
import time
import unicodedata
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, field

from services.common import limits, telemetry
from services.common.errors import Reason, VoxfleetError, internal, invalid
from services.common.jobs.tasks import ConversionParameters, F5Voice, Pronunciation, SpeakingParameters
from services.common.licences import check_licence
from services.common.speakers import SPEAKER_FIELD, check_own, check_unconverted
from services.inference import metrics
from services.inference.app.converting import Conversion, bare, converted
from services.inference.app.pool import Pool
from services.inference.app.seeds import seeded
from services.inference.app.speakers import Speakers
from services.inference.calls import (
    Closed,
    EngineFacts,
    Opened,
    Pcm,
    Request,
    Speaker,
    StreamSpeech,
    Weights,
)
from services.inference.languages import bundle_for, language_of
from services.inference.model import Rank
from services.inference.ports import Catalog, ResolvedVoice, Usage

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
        speaker: the zero-shot voice that speaks for a trained one, by name; the trained one's own recording
            where empty.
        conversion: how a trained voice's text is converted; None where the request says nothing of it.
    """

    team: str
    voice: str
    style: str
    text: str
    parameters: SpeakingParameters
    rate_hz: int = 0
    lexicons: tuple[str, ...] = ()
    speaker: str = ""
    conversion: ConversionParameters | None = None


@dataclass(frozen=True, slots=True)
class Header:
    """What is coming; ``speaker`` is what spoke before a conversion."""

    rate_hz: int
    chunks: int
    voice: str
    weights: Weights
    seed: int
    watermarked: bool = False
    speaker: Speaker | None = None

    @property
    def engine(self) -> str:
        """That made what is heard."""
        return "rvc" if self.speaker is not None else "f5"


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


@dataclass(frozen=True, slots=True)
class _Asked:
    """What the pools are asked for; ``conversion`` where the voice is a trained one."""

    voice: str
    speech: StreamSpeech
    conversion: Conversion | None


class Synthesis:
    """Speaks while the caller listens.

    Args:
        f5: the pool that speaks.
        rvc: the pool that converts what is spoken in a trained voice.
        speakers: who speaks for trained voices.
        catalog: resolves voices and keeps the usage.
    """

    def __init__(self, f5: Pool, rvc: Pool, speakers: Speakers, catalog: Catalog) -> None:
        self._f5 = f5
        self._rvc = rvc
        self._speakers = speakers
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
        UNSUPPORTED_ENGINE, INVALID_ARGUMENT, LEXICON_NOT_FOUND, UNSUPPORTED_LANGUAGE, LICENCE_NOT_ALLOWED,
        QUEUE_FULL, SYNTHESIS_FAILED, CONVERSION_FAILED, WORKER_LOST.
        """
        began_s = time.perf_counter()
        progress = _Progress()
        engine, outcome = "f5", "cancelled"
        try:
            check_text(request.text)
            asked = await self._asked(request)
            engine = "f5" if asked.conversion is None else "rvc"
            async with aclosing(self._speak(asked, progress)) as parts:
                async for part in parts:
                    if isinstance(part, bytes) and progress.samples == 0:
                        metrics.FIRST_AUDIO.observe(time.perf_counter() - began_s)
                    yield part
                    if isinstance(part, bytes):
                        progress.samples += len(part) // 2
            outcome = "ok"
            yield _summary(progress, asked.speech.parameters.steps)
        except Exception as error:
            outcome = metrics.outcome_of(error)
            raise
        finally:
            metrics.CALLS.labels(engine, "synthesize", outcome).inc()
            if progress.samples:
                metrics.RTF.labels(engine, "stream").observe(progress.work_s / progress.duration_s)
                # Beside the stream: its end does not wait for the record.
                task = asyncio.create_task(self._record(request, progress))
                self._recording.add(task)
                task.add_done_callback(self._recording.discard)

    async def _asked(self, request: SpeechRequest) -> _Asked:
        resolved = await self._catalog.resolve_voice(request.voice, request.style)
        parameters = seeded(request.parameters)
        allowed = tuple(resolved.allowed_licences)
        if resolved.rvc is None:
            check_unconverted(request.voice, request.speaker, has_conversion=request.conversion is not None)
            voice = _zero_shot(resolved, "voice")
            pronunciations = await self._pronunciations(request)
            speech = StreamSpeech(request.text, voice, parameters, request.rate_hz, pronunciations, allowed)
            return _Asked(request.voice, speech, None)
        if resolved.licence:
            # A voice that was trained here says nothing of a licence: it is the team's own.
            check_licence(allowed, resolved.licence, resolved.name)
        speaker = await self._speaker(request, resolved)
        pronunciations = await self._pronunciations(request)
        how = request.conversion or ConversionParameters(pitch_shift=parameters.pitch_shift)
        conversion = Conversion(
            resolved.rvc,
            how.model_copy(update={"seed": how.seed or parameters.seed}),
            speaker.name,
            parameters,
            request.rate_hz,
        )
        speech = StreamSpeech(
            request.text, speaker, bare(parameters), 0, pronunciations, allowed, marked=False
        )
        return _Asked(request.voice, speech, conversion)

    async def _speaker(self, request: SpeechRequest, trained: ResolvedVoice) -> F5Voice:
        """Who speaks for a trained voice."""
        if request.speaker:
            resolved = await self._catalog.resolve_voice(request.speaker, request.style)
            return _zero_shot(resolved, SPEAKER_FIELD)
        check_own(trained.name, request.style, has_recording=trained.f5 is not None)
        assert trained.f5 is not None
        return await self._speakers.ready(trained.f5, trained.name, Rank.INTERACTIVE)

    async def _pronunciations(self, request: SpeechRequest) -> tuple[Pronunciation, ...]:
        if not request.lexicons:
            return ()
        return await self._catalog.pronunciations(request.team, request.lexicons, request.text)

    async def _speak(self, asked: _Asked, progress: _Progress) -> AsyncGenerator[Header | bytes]:
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

    async def _speak_once(self, asked: _Asked, progress: _Progress) -> AsyncGenerator[Header | bytes]:
        def make(facts: EngineFacts) -> Request:
            bundle_for(language_of(speech.parameters, speech.voice), facts, speech.allowed)
            return speech

        def waited(seconds: float) -> None:
            progress.queue_s += seconds

        speech = asked.speech
        async with self._f5.call(make, Rank.INTERACTIVE) as running:
            waited(running.waited_s)
            spoken = running.events()
            if asked.conversion is not None:
                spoken = converted(spoken, self._rvc, asked.conversion, waited)
            async with aclosing(spoken) as events:
                async for event in events:
                    match event:
                        case Opened() if progress.header is None:
                            progress.header = Header(
                                event.rate_hz,
                                event.chunks,
                                asked.voice,
                                event.weights,
                                event.seed,
                                event.watermarked,
                                event.speaker,
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


def _zero_shot(resolved: ResolvedVoice, field: str) -> F5Voice:
    """What a voice speaks from. Errors: UNSUPPORTED_ENGINE where it does not speak by itself."""
    if resolved.rvc is not None or resolved.f5 is None:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"{resolved.name} is a voice of engine {resolved.engine}, which does not speak by itself",
            field=field,
            engine=resolved.engine,
        )
    return resolved.f5


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
