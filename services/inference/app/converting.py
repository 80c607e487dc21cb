"""Speech in a trained voice: what one pool speaks is converted by the other, piece after piece."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass, field, replace

from services.common.errors import VoxfleetError, internal
from services.common.jobs.model import PitchMatch
from services.common.jobs.tasks import ConversionParameters, RvcVoice, SpeakingParameters
from services.inference.app.members import Running
from services.inference.app.pool import Pool
from services.inference.calls import Closed, ConvertStream, Event, Opened, Pcm, Speaker
from services.inference.model import Rank


@dataclass(frozen=True, slots=True)
class Conversion:
    """What becomes of what is spoken.

    Args:
        voice: the trained voice.
        parameters: how; the seed is not 0.
        speaker: who speaks, by name.
        speaking: the request's own parameters: what is asked of the outcome is done after the conversion.
        rate_hz: of the outcome; 0 for the voice's own.
    """

    voice: RvcVoice
    parameters: ConversionParameters
    speaker: str
    speaking: SpeakingParameters
    rate_hz: int = 0


def bare(parameters: SpeakingParameters) -> SpeakingParameters:
    """How to speak what is then converted: pitch and loudness are the conversion's to set."""
    return parameters.model_copy(update={"pitch_shift": 0.0, "loudness_lufs": None})


@dataclass(slots=True)
class _Speech:
    """What the speaking pool has told beside its samples."""

    work_s: float = 0.0
    closed: Closed = field(default_factory=Closed)

    def taken_s(self) -> float:
        work_s, self.work_s = self.work_s, 0.0
        return work_s


async def converted(
    speech: AsyncGenerator[Event], pool: Pool, how: Conversion, waited: Callable[[float], None]
) -> AsyncGenerator[Event]:
    """The events of a stream of speech, in the trained voice: Opened, Pcm after Pcm, Closed.

    Args:
        speech: of the speaking pool's call; it is closed.
        pool: that converts; its slot is asked for once the speech has begun.
        how: into what.
        waited: told how long that slot was waited for.

    Errors: those of both calls.
    """
    async with aclosing(speech):
        opened = await _opening(speech)
        request = ConvertStream(
            voice=how.voice,
            from_hz=opened.rate_hz,
            parameters=how.parameters,
            rate_hz=how.rate_hz,
            loudness_lufs=how.speaking.loudness_lufs,
            duration_s=how.speaking.duration_s,
        )
        async with pool.call(lambda _: request, Rank.INTERACTIVE, needs=how.voice.package_id) as running:
            waited(running.waited_s)
            told = _Speech()
            feeding = asyncio.create_task(_feed(speech, running, told))
            pitch: PitchMatch | None = None
            try:
                async for event in running.events():
                    match event:
                        case Opened():
                            speaker = Speaker(how.speaker, opened.weights)
                            yield replace(event, chunks=opened.chunks, seed=opened.seed, speaker=speaker)
                        case Pcm(samples=samples):
                            told.work_s += event.work_s
                            if samples:
                                yield replace(event, work_s=told.taken_s())
                        case Closed():
                            pitch = event.pitch_match
                await feeding
                yield replace(told.closed, pitch_match=pitch)
            except VoxfleetError:
                # Speech that fails ends its conversion: what is wrong is what it failed of.
                if feeding.done() and not feeding.cancelled() and (cause := feeding.exception()):
                    raise cause from None
                raise
            finally:
                feeding.cancel()
                await asyncio.gather(feeding, return_exceptions=True)


async def _opening(speech: AsyncGenerator[Event]) -> Opened:
    async for event in speech:
        if isinstance(event, Opened):
            return event
    raise internal("the engine ended without an answer")


async def _feed(speech: AsyncGenerator[Event], running: Running, told: _Speech) -> None:
    try:
        async for event in speech:
            match event:
                case Pcm(data=data) if data:
                    told.work_s += event.work_s
                    await running.feed(data)
                case Closed():
                    told.closed = event
        await running.feed(b"")
    except VoxfleetError:
        with suppress(VoxfleetError):
            await running.stop()
        raise
