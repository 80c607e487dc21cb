"""Leased jobs: texts of batches, conversions, bundles to pull, voices in and out of files."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, TypeVar

from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.common.jobs.model import (
    AttemptStopped,
    AudioOutput,
    Capacity,
    FleetOrders,
    GpuFacts,
    NodeFacts,
    Outcome,
    Progress,
    Released,
    Spoken,
    Succeeded,
)
from services.common.jobs.tasks import (
    BatchTask,
    ConvertTask,
    ExportVoiceTask,
    ImportVoiceTask,
    PullBundleTask,
    RespeakTask,
    RvcVoice,
    SourceAudio,
    SpeakTask,
    TrainTask,
)
from services.common.jobs.worker import Attempt
from services.inference import metrics
from services.inference.app.bundles import Bundles
from services.inference.app.converting import bare
from services.inference.app.exchange import Exchange
from services.inference.app.licences import TeamLicences
from services.inference.app.members import GpusLentError, Running
from services.inference.app.pool import Pool
from services.inference.app.seeds import seeded
from services.inference.app.speakers import Speakers
from services.inference.calls import (
    Advance,
    Closed,
    Convert,
    ConvertSpoken,
    EngineFacts,
    Made,
    Opened,
    Pcm,
    Request,
    Respeak,
    Speak,
    Speaker,
)
from services.inference.languages import bundle_for, first_allowed, language_of
from services.inference.model import Rank

T = TypeVar("T")

# Where each phase begins and ends, in percent of a job.
_SPANS = {
    "fetch": (0.0, 5.0),
    "load": (5.0, 10.0),
    "listen": (5.0, 10.0),
    "convert": (10.0, 85.0),
    "speak": (10.0, 85.0),
    "encode": (85.0, 95.0),
    "store": (95.0, 100.0),
}
_SPOKEN_PERCENT = 60.0
"""Of a text in a trained voice, speaking it is so much."""
_PULLS_AT_ONCE = 1
_EXCHANGED_AT_ONCE = 1
"""Voices imported, and exported: each takes a CPU and memory beside the pools."""
_AHEAD = 2
"""Texts held for each slot: one spoken, one waiting."""


class Jobs:
    """The worker's handler and its capacity.

    Args:
        f5: the pool that speaks.
        rvc: the pool that converts.
        bundles: for pulls.
        speakers: who speaks for trained voices.
        licences: which weights a team may use.
        exchange: for voices that come from files and go to files.
    """

    def __init__(
        self,
        f5: Pool,
        rvc: Pool,
        bundles: Bundles,
        *,
        speakers: Speakers,
        licences: TeamLicences,
        exchange: Exchange,
    ) -> None:
        self._f5 = f5
        self._rvc = rvc
        self._bundles = bundles
        self._speakers = speakers
        self._licences = licences
        self._exchange = exchange
        self._running: Counter[str] = Counter()
        self._drained: frozenset[str] = frozenset()
        self.nodes: tuple[NodeFacts, ...] = ()

    def obey(self, orders: FleetOrders) -> None:
        """Heeds operators and the scheduler: the pools leave drained nodes and keep to their grants."""
        self._drained = orders.drained_nodes
        for pool in (self._f5, self._rvc):
            pool.obey(orders.drained_nodes, orders.grants.get(pool.plan.role.value))

    def capacity(self) -> Capacity:
        """What could be taken now."""
        places = {
            "f5.item": self._f5.places() * _AHEAD,
            "f5.convert": self._f5.places(),
            "rvc.convert": self._rvc.places(),
            "bundle.pull": _PULLS_AT_ONCE,
            "voice.import": _EXCHANGED_AT_ONCE,
            "voice.export": _EXCHANGED_AT_ONCE,
        }
        free = {kind: max(0, most - self._running[kind]) for kind, most in places.items()}
        return Capacity(
            free,
            tuple(self._shown(node) for node in self.nodes),
            self._bundles.default_name,
            GpuFacts(pools=(self._f5.state, self._rvc.state)),
        )

    def _shown(self, node: NodeFacts) -> NodeFacts:
        gone = self._f5.left(node.name) and self._rvc.left(node.name)
        return node.leaving(self._drained, busy=not gone)

    async def __call__(self, attempt: Attempt) -> Outcome:
        """Does the work of one lease; see :mod:`services.common.jobs.worker`."""
        task = attempt.lease.task
        try:
            with self._counted(task.kind):
                match task:
                    case SpeakTask():
                        return await _until_stopped(attempt, self._speak(attempt, task))
                    case ConvertTask():
                        return await _until_stopped(attempt, self._convert(attempt, task))
                    case PullBundleTask():
                        return await _until_stopped(attempt, self._pull(attempt, task))
                    case RespeakTask():
                        return await _until_stopped(attempt, self._respeak(attempt, task))
                    case ImportVoiceTask():
                        work = self._exchange.bring_in(task, partial(_advance, attempt))
                        return await _until_stopped(attempt, work)
                    case ExportVoiceTask():
                        work = self._exchange.send_out(task, partial(_advance, attempt))
                        return await _until_stopped(attempt, work)
                    case TrainTask() | BatchTask():
                        raise internal(f"a job of kind {task.kind} was leased to the inference service")
        except GpusLentError:
            return Released("trainings have the GPUs just now")

    async def _speak(self, attempt: Attempt, task: SpeakTask) -> Succeeded:
        asked = task.model_copy(update={"parameters": seeded(task.parameters)})
        if asked.converted is not None:
            return await self._speak_converted(attempt, asked, asked.converted)
        made = await self._made(self._f5, await self._speaking(attempt, asked), Rank.BATCH, attempt)
        return _succeeded(made, "f5", task.voice.name, _title(task), "")

    async def _speaking(self, attempt: Attempt, task: SpeakTask) -> Callable[[EngineFacts], Request]:
        allowed = await self._licences.allowed(task.team)

        def speak(facts: EngineFacts) -> Request:
            bundle_for(language_of(task.parameters, task.voice), facts, allowed)
            return Speak(attempt.lease.job, task, allowed)

        return speak

    async def _speak_converted(self, attempt: Attempt, task: SpeakTask, target: RvcVoice) -> Succeeded:
        """Asks one pool after the other: where a replica dies, only its own part is done again."""
        lease = attempt.lease
        speaker = await self._speakers.ready(task.voice, target.name, Rank.BATCH, avoid=lease.avoid_nodes)
        said = task.model_copy(update={"voice": speaker, "parameters": bare(task.parameters)})
        speech = _Speech(attempt)
        await self._asked(self._f5, await self._speaking(attempt, said), Rank.BATCH, attempt, speech.follow)
        seed = speech.closed.seed
        how = task.conversion.model_copy(update={"seed": task.conversion.seed or task.parameters.seed})
        finished = task.model_copy(
            update={"conversion": how, "parameters": task.parameters.model_copy(update={"seed": seed})}
        )
        spoke = Speaker(speaker.name, speech.opened.weights)
        request = ConvertSpoken(
            lease.job, finished, speech.data, speech.opened.rate_hz, spoke, lease.batch_scale
        )
        made = await self._made(
            self._rvc,
            lambda _: request,
            Rank.BATCH,
            attempt,
            within=(_SPOKEN_PERCENT, 100.0),
            needs=target.package_id,
        )
        made = replace(
            made,
            words=speech.closed.words,
            quality=speech.closed.quality,
            work_s=made.work_s + speech.work_s,
        )
        return _succeeded(made, "rvc", target.name, _title(task), "", speaker=spoke)

    async def _convert(self, attempt: Attempt, task: ConvertTask) -> Succeeded:
        request = Convert(attempt.lease.job, task, attempt.lease.batch_scale)
        needs = task.voice.package_id
        made = await self._made(self._rvc, lambda _: request, Rank.CONVERSION, attempt, needs=needs)
        return _succeeded(made, "rvc", task.voice.name, _name_of(task.audio), task.audio.name)

    async def _respeak(self, attempt: Attempt, task: RespeakTask) -> Succeeded:
        asked = task.model_copy(update={"parameters": seeded(task.parameters)})
        allowed = await self._licences.allowed(task.team)

        def respeak(facts: EngineFacts) -> Request:
            # What is said there is judged once it has been heard; what was announced, at once.
            if task.parameters.language:
                bundle_for(task.parameters.language, facts, allowed)
            else:
                first_allowed(facts.speaking, allowed)
            return Respeak(attempt.lease.job, asked, allowed)

        made = await self._made(self._f5, respeak, Rank.CONVERSION, attempt)
        return _succeeded(made, "f5", task.voice.name, _name_of(task.audio), task.audio.name)

    async def _made(
        self,
        pool: Pool,
        make: Callable[[EngineFacts], Request],
        rank: Rank,
        attempt: Attempt,
        *,
        within: tuple[float, float] = (0.0, 100.0),
        needs: str = "",
    ) -> Made:
        """What a call makes; ``within`` is its part of the job, in percent, ``needs`` as of a pool's call."""

        async def follow(running: Running) -> Made:
            return await _follow(running, attempt, within)

        return await self._asked(pool, make, rank, attempt, follow, needs=needs)

    async def _asked(
        self,
        pool: Pool,
        make: Callable[[EngineFacts], Request],
        rank: Rank,
        attempt: Attempt,
        follow: Callable[[Running], Awaitable[T]],
        *,
        needs: str = "",
    ) -> T:
        """What comes of a call; where its replica dies, another is asked once."""
        for last in (False, True):
            try:
                avoid = attempt.lease.avoid_nodes
                async with pool.call(make, rank, avoid=avoid, needs=needs) as running:
                    return await follow(running)
            except VoxfleetError as error:
                if last or error.reason is not Reason.WORKER_LOST:
                    raise
        raise AssertionError("unreachable")

    async def _pull(self, attempt: Attempt, task: PullBundleTask) -> Succeeded:
        def advance(phase: str, share: float, message: str) -> None:
            # The store's copy is a tenth of the way.
            percent = 90 * share if phase == "pull" else 90 + 10 * share
            attempt.report(Progress(phase, percent=percent, message=message))

        manifest = await self._bundles.pull(
            task.bundle, team=task.team, accepted=task.accepted_licence, advance=advance
        )
        return Succeeded(weights=manifest.name, weights_trained=manifest.trained)

    @contextmanager
    def _counted(self, kind: str) -> Any:
        engine = {"f5.item": "f5", "f5.convert": "f5", "rvc.convert": "rvc"}.get(kind, "none")
        self._running[kind] += 1
        try:
            yield
        except BaseException as error:
            gone = isinstance(error, AttemptStopped | GpusLentError)
            outcome = "cancelled" if gone else metrics.outcome_of(error)
            metrics.CALLS.labels(engine, kind, outcome).inc()
            raise
        else:
            metrics.CALLS.labels(engine, kind, "ok").inc()
        finally:
            self._running[kind] -= 1


def _advance(attempt: Attempt, phase: str, percent: float) -> None:
    attempt.report(Progress(phase, percent=percent))


def _title(task: SpeakTask) -> str:
    return task.display_name or task.text[:60]


def _name_of(audio: SourceAudio) -> str:
    return audio.display_name or audio.name.rpartition("/")[2]


async def _until_stopped(attempt: Attempt, work: Coroutine[Any, Any, T]) -> T:
    """Does the work, unless the attempt is told to stop first; then the work is cancelled."""
    working = asyncio.create_task(work)
    told = asyncio.create_task(attempt.wait_stop())
    try:
        await asyncio.wait({working, told}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise AttemptStopped
    finally:
        told.cancel()
        if not working.done():
            working.cancel()
            await asyncio.gather(working, return_exceptions=True)


class _Speech:
    """What was spoken and is now to be converted."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt

    async def follow(self, running: Running) -> None:
        """Takes a call's speech, from its beginning."""
        opened: Opened | None = None
        self.closed, self.work_s = Closed(), 0.0
        pieces = []
        async for event in running.events():
            match event:
                case Advance():
                    _report(self._attempt, event, (0.0, _SPOKEN_PERCENT))
                case Opened():
                    opened = event
                case Pcm():
                    pieces.append(event.data)
                    self.work_s += event.work_s
                case Closed():
                    self.closed = event
        if opened is None:
            raise internal("the engine ended without an answer")
        self.opened, self.data = opened, b"".join(pieces)


def _report(attempt: Attempt, event: Advance, within: tuple[float, float]) -> None:
    low, high = _SPANS[event.phase]
    percent = low + (high - low) * event.share
    attempt.report(Progress(event.phase, percent=within[0] + (within[1] - within[0]) * percent / 100.0))


async def _follow(running: Running, attempt: Attempt, within: tuple[float, float]) -> Made:
    """Reports how far a call is; what it made in the end."""
    made: Made | None = None
    async for event in running.events():
        match event:
            case Advance():
                _report(attempt, event, within)
            case Made():
                made = event
    if made is None:
        raise internal("the engine ended without an answer")
    return made


def _succeeded(
    made: Made,
    engine: str,
    voice: str,
    display_name: str,
    source: str,
    *,
    speaker: Speaker | None = None,
) -> Succeeded:
    if made.duration_s <= 0:
        reason = Reason.SYNTHESIS_FAILED if engine == "f5" else Reason.CONVERSION_FAILED
        raise VoxfleetError(reason, "the engine made no sound", kind=Kind.INTERNAL)
    rtf = made.work_s / made.duration_s
    metrics.RTF.labels(engine, "batch").observe(rtf)
    audio = AudioOutput(
        blob=made.blob,
        duration_s=made.duration_s,
        rate_hz=made.rate_hz,
        channels=made.channels,
        codec=made.codec,
        display_name=display_name,
        engine=engine,
        weights=made.weights.name,
        weights_trained=made.weights.trained,
        weights_licence=made.weights.licence,
        seed=made.seed,
        voice=voice,
        source_audio=source,
        watermarked=made.watermarked,
        words=made.words,
        quality=made.quality,
        spoken=_spoken(speaker) if speaker is not None else None,
        pitch_match=made.pitch_match,
    )
    weights = made.weights
    if speaker is not None and weights.trained and not speaker.weights.trained:
        # A job names one: that of which somebody must be told.
        weights = speaker.weights
    return Succeeded(
        audios=(audio,),
        metrics={"rtf": rtf, "work_s": made.work_s, "audio_s": made.duration_s},
        weights=weights.name,
        weights_trained=weights.trained,
    )


def _spoken(speaker: Speaker) -> Spoken:
    weights = speaker.weights
    return Spoken(speaker.name, weights.name, weights.trained, weights.licence)
