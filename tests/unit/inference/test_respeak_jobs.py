"""Leased zero-shot conversions: what the pool is asked, how far they are, second tries."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs.model import AttemptStopped, StopKind
from services.common.jobs.tasks import RespeakTask, SourceAudio, SpeakingParameters
from services.inference.calls import Advance, Respeak, Speak
from tests.unit.inference.fakes import BLOB, VOICE, facts, lost, made, settle
from tests.unit.inference.test_jobs import Rig, text


def respeak(**parameters: object) -> RespeakTask:
    audio = SourceAudio(name="teams/blue/audios/one", blob=BLOB, duration_s=2.0, display_name="One")
    return RespeakTask(team="blue", audio=audio, voice=VOICE, parameters=SpeakingParameters(**parameters))


async def test_it_goes_through_its_phases_and_names_its_source(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    attempt, task = rig.begin(respeak(seed=4))
    await settle()
    (call,) = rig.speaker.calls
    assert call.request == Respeak("teams/blue/jobs/1", respeak(seed=4))
    assert rig.converter.calls == []
    percents = []
    for phase, share in (("fetch", 0.5), ("listen", 0.5), ("speak", 0.0), ("speak", 0.5), ("encode", 0.0)):
        call.send(Advance(phase, share))
        await settle()
        progress = attempt.take_progress()
        assert progress.phase == phase
        percents.append(progress.percent)
    assert percents == sorted(set(percents))
    call.send(made(), None)
    audio = (await task).audios[0]
    assert (audio.engine, audio.display_name, audio.source_audio) == ("f5", "One", "teams/blue/audios/one")
    assert audio.voice == VOICE.name


async def test_without_a_seed_it_gets_one_and_keeps_it_on_the_one_second_try(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    _, task = rig.begin(respeak())
    await settle()
    seed = rig.speaker.calls[0].request.task.parameters.seed
    assert seed > 0
    rig.speaker.die()
    await settle()
    successor = rig.executor.engines[-1]
    successor.loaded.set_result(facts())
    await settle()
    assert successor.calls[0].request.task.parameters.seed == seed
    successor.calls[0].send(lost())
    with pytest.raises(VoxfleetError) as caught:
        await task
    assert caught.value.reason is Reason.WORKER_LOST


async def test_it_goes_before_the_texts_of_batches(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    tasks = [rig.begin(text(words))[1] for words in "ab"]
    await settle()
    tasks.append(rig.begin(respeak())[1])
    await settle()
    rig.speaker.calls[0].send(made(), None)
    await settle()
    assert [type(call.request) for call in rig.speaker.calls] == [Speak, Respeak]
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_language_that_the_weights_lack_is_refused_before_it_is_heard(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path)
    with pytest.raises(VoxfleetError) as caught:
        await rig.begin(respeak(language="ru"))[1]
    assert caught.value.reason is Reason.UNSUPPORTED_LANGUAGE
    assert rig.speaker.calls == []


async def test_a_stop_stops_the_engine_and_capacity_counts_what_runs(tmp_path: Path) -> None:
    rig = await Rig.up(tmp_path, slots=2)
    before = rig.jobs.capacity().free["f5.convert"]
    attempt, task = rig.begin(respeak())
    await settle()
    assert rig.jobs.capacity().free["f5.convert"] == before - 1
    attempt.tell_stop(StopKind.CANCEL)
    with pytest.raises(AttemptStopped):
        await task
    await settle()
    assert rig.speaker.calls[0].stops == 1
    assert rig.jobs.capacity().free["f5.convert"] == before
