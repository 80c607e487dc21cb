"""Streamed speech: order, second tries, leaving early, what is counted."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.model import SpeechQuality
from services.common.jobs.tasks import SpeakingParameters, TimedWord
from services.inference.app.pool import Pool
from services.inference.app.speakers import Speakers
from services.inference.app.synthesis import PIECE_BYTES, Header, SpeechRequest, Summary, Synthesis
from services.inference.calls import Closed, EngineSpec, Opened, Pcm, Weights
from services.inference.model import PoolPlan, Role
from services.inference.ports import ResolvedVoice
from services.inference.servicer import summary_of
from tests.unit.inference.fakes import VOICE, FakeCatalog, FakeExecutor, facts, lost, settle

WEIGHTS = Weights("small", trained=False, licence="MIT")
OPENED = Opened(24_000, 2, 7, WEIGHTS)


def pcm(samples: int) -> Pcm:
    return Pcm(b"\1\0" * samples, samples, 0.25)


class Rig:
    def __init__(self) -> None:
        self.executor = FakeExecutor()
        self.pool = Pool(PoolPlan(Role.F5), self.executor)
        self.catalog = FakeCatalog(
            voices={
                VOICE.name: ResolvedVoice(VOICE.name, "f5", VOICE),
                "other": ResolvedVoice("other", "other", None),
            }
        )
        rvc = Pool(PoolPlan(Role.RVC), FakeExecutor())
        self.synthesis = Synthesis(self.pool, rvc, Speakers(self.pool), self.catalog)
        self.pool.use(EngineSpec(Role.F5))

    async def up(self) -> None:
        self.executor.engines[-1].loaded.set_result(facts())
        await settle()

    def begin(
        self, text: str = "Hello.", voice: str = VOICE.name, **parameters: object
    ) -> asyncio.Task[list]:
        async def listen() -> list:
            asked = SpeechRequest("blue", voice, "", text, SpeakingParameters(**parameters))
            try:
                async with aclosing(self.synthesis.stream(asked)) as parts:
                    return [part async for part in parts]
            finally:
                await self.synthesis.close()

        return asyncio.create_task(listen())

    @property
    def call(self):
        return self.executor.engines[-1].calls[-1]


async def test_header_samples_summary_usage() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin(steps=7, seed=7)
    await settle()
    rig.call.send(OPENED, pcm(12_000), pcm(100_000), None)
    parts = await task
    assert isinstance(parts[0], Header)
    assert isinstance(parts[-1], Summary)
    assert all(isinstance(part, bytes) and len(part) <= PIECE_BYTES for part in parts[1:-1])
    assert sum(len(part) for part in parts[1:-1]) == 2 * 112_000
    summary = parts[-1]
    assert summary.duration_s == pytest.approx(112_000 / 24_000)
    assert (summary.work_s, summary.steps) == (0.5, 7)
    assert summary.rtf == pytest.approx(0.5 / summary.duration_s)
    usage = rig.catalog.usage[0]
    assert (usage.team, usage.voice, usage.characters) == ("blue", VOICE.name, 6)
    assert usage.audio_s == summary.duration_s


async def test_what_the_engine_says_at_the_end_is_in_the_summary() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin(word_timestamps=True)
    await settle()
    words = (TimedWord(text="Hello.", start_s=0.0, end_s=0.4),)
    closed = Closed(words, SpeechQuality(0.0, 0.8, 2, "hello", passed=True), "Hello.", seed=11)
    rig.call.send(OPENED, pcm(24_000), closed, None)
    summary = (await task)[-1]
    assert summary.closed == closed
    shown = summary_of(summary)
    assert [(word.word, word.start_s, word.end_s) for word in shown.words] == [("Hello.", 0.0, 0.4)]
    assert (shown.quality.similarity, shown.quality.tries, shown.quality.heard) == (0.8, 2, "hello")
    assert (shown.quality.passed, shown.spoken_text) == (True, "Hello.")
    assert shown.provenance.seed == 11, "of the try that was sent"


async def test_a_death_before_the_first_sample_is_hidden() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin()
    await settle()
    seed = rig.call.request.parameters.seed
    rig.call.send(OPENED, lost())
    await settle()
    await rig.up()
    assert rig.call.request.parameters.seed == seed > 0
    rig.call.send(OPENED, pcm(2400), None)
    parts = await task
    assert [type(part) for part in parts] == [Header, bytes, Summary]


async def test_a_death_after_the_first_sample_is_not() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin()
    await settle()
    rig.call.send(OPENED, pcm(2400), lost())
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.reason is Reason.WORKER_LOST
    assert rig.catalog.usage[0].audio_s == pytest.approx(0.1), "what was sent is counted"


async def test_a_second_death_is_told() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin()
    for _ in range(2):
        await settle()
        rig.call.send(lost())
        await settle()
        if not task.done():
            await rig.up()
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.reason is Reason.WORKER_LOST
    assert not rig.catalog.usage


async def test_an_engines_refusal_is_not_repeated() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin()
    await settle()
    rig.call.send(invalid(Reason.UNSUPPORTED_CHARACTERS, "ꙮ"))
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.reason is Reason.UNSUPPORTED_CHARACTERS
    assert len(rig.executor.engines[-1].calls) == 1


async def test_a_listener_that_leaves_stops_the_engine_and_is_counted() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin()
    await settle()
    rig.call.send(OPENED, pcm(24_000))
    await settle()
    task.cancel()
    await settle()
    assert rig.call.stops == 1
    assert rig.pool.replicas[0].busy == 0
    assert rig.catalog.usage[0].audio_s == pytest.approx(1.0)


async def test_usage_that_cannot_be_recorded_costs_nobody_their_audio() -> None:
    rig = Rig()
    await rig.up()
    rig.catalog.down = True
    task = rig.begin()
    await settle()
    rig.call.send(OPENED, pcm(2400), None)
    assert isinstance((await task)[-1], Summary)


@pytest.mark.parametrize(
    ("text", "voice", "parameters", "reason"),
    [
        (" … ", VOICE.name, {}, Reason.TEXT_EMPTY),
        ("x" * 5001, VOICE.name, {}, Reason.TEXT_TOO_LONG),
        ("Hello.", "other", {}, Reason.UNSUPPORTED_ENGINE),
        ("Hello.", VOICE.name, {"language": "ru"}, Reason.UNSUPPORTED_LANGUAGE),
    ],
)
async def test_what_is_refused_reaches_no_engine(
    text: str, voice: str, parameters: dict[str, str], reason: Reason
) -> None:
    rig = Rig()
    await rig.up()
    with pytest.raises(VoxfleetError) as caught:
        await rig.begin(text, voice, **parameters)
    assert caught.value.reason is reason
    assert not rig.executor.engines[-1].calls


async def test_an_engine_that_says_nothing_is_a_failure() -> None:
    rig = Rig()
    await rig.up()
    task = rig.begin()
    await settle()
    rig.call.send(OPENED, None)
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.reason is Reason.INTERNAL
