"""A streamed request's lexicons: asked of the record once, handed to the engine with the text."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

import pytest

from services.common.errors import Reason, VoxfleetError, not_found
from services.common.jobs.tasks import Pronunciation, SpeakingParameters
from services.inference.app.pool import Pool
from services.inference.app.speakers import Speakers
from services.inference.app.synthesis import SpeechRequest, Synthesis
from services.inference.calls import EngineSpec, Opened, Pcm, StreamSpeech, Weights
from services.inference.model import PoolPlan, Role
from services.inference.ports import ResolvedVoice
from tests.unit.inference.fakes import VOICE, FakeCatalog, FakeExecutor, facts, lost, settle

SAID = Pronunciation(grapheme="Voxfleet", alias="vox fleet")
OTHER = Pronunciation(grapheme="Siân", alias="Sharn")
NAME = "teams/blue/lexicons/names"
OPENED = Opened(24_000, 1, 7, Weights("small", trained=False, licence="MIT"))


class Counting(FakeCatalog):
    """Keeps who asked for what."""

    asked: list[tuple[str, tuple[str, ...], str]]

    async def pronunciations(self, team, lexicons, text):
        self.asked.append((team, tuple(lexicons), text))
        if NAME not in self.lexicons:
            raise not_found(Reason.LEXICON_NOT_FOUND, NAME)
        return await super().pronunciations(team, lexicons, text)


@pytest.fixture
async def rig():
    executor = FakeExecutor()
    pool = Pool(PoolPlan(Role.F5), executor)
    catalog = Counting(
        voices={VOICE.name: ResolvedVoice(VOICE.name, "f5", VOICE)}, lexicons={NAME: (SAID, OTHER)}
    )
    catalog.asked = []
    pool.use(EngineSpec(Role.F5))
    executor.engines[-1].loaded.set_result(facts())
    await settle()
    rvc = Pool(PoolPlan(Role.RVC), FakeExecutor())
    return Synthesis(pool, rvc, Speakers(pool), catalog), executor, catalog


def begin(synthesis: Synthesis, *lexicons: str) -> asyncio.Task[list]:
    asked = SpeechRequest(
        "blue", VOICE.name, "", "Voxfleet.", SpeakingParameters(seed=7), lexicons=tuple(lexicons)
    )

    async def listen() -> list:
        async with aclosing(synthesis.stream(asked)) as parts:
            return [part async for part in parts]

    return asyncio.create_task(listen())


async def test_the_engine_is_handed_what_the_lexicons_say_of_this_text(rig):
    synthesis, executor, catalog = rig
    task = begin(synthesis, NAME)
    await settle()
    request = executor.engines[-1].calls[-1].request
    assert isinstance(request, StreamSpeech)
    assert (request.text, request.pronunciations) == ("Voxfleet.", (SAID,))
    assert catalog.asked == [("blue", (NAME,), "Voxfleet.")]
    executor.engines[-1].calls[-1].send(OPENED, Pcm(b"\1\0" * 100, 100, 0.1), None)
    await task
    await synthesis.close()


async def test_without_lexicons_nobody_is_asked(rig):
    synthesis, executor, catalog = rig
    task = begin(synthesis)
    await settle()
    assert executor.engines[-1].calls[-1].request.pronunciations == ()
    assert catalog.asked == []
    executor.engines[-1].calls[-1].send(lost())
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_a_lexicon_that_is_not_there_reaches_no_engine(rig):
    synthesis, executor, catalog = rig
    catalog.lexicons.clear()
    with pytest.raises(VoxfleetError) as caught:
        await begin(synthesis, NAME)
    assert caught.value.reason is Reason.LEXICON_NOT_FOUND
    assert executor.engines[-1].calls == []
