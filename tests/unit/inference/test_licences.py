"""A team's allowed licences, where texts are spoken."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs.model import Succeeded
from services.common.jobs.tasks import RespeakTask, SourceAudio, SpeakTask
from services.common.licences import check_licence
from services.inference.app.licences import TeamLicences
from tests.unit.inference import test_jobs, test_synthesis
from tests.unit.inference.fakes import BLOB, VOICE, Clock, FakeCatalog, made, settle


@pytest.mark.parametrize("allowed", [(), ("MIT",), ("CC-BY-4.0", "MIT")])
def test_an_empty_list_allows_all_and_a_list_what_it_names(allowed: tuple[str, ...]) -> None:
    check_licence(allowed, "MIT", "small")


@pytest.mark.parametrize("licence", ["CC-BY-NC-4.0", "mit", ""])
def test_what_is_not_on_the_list_is_refused_with_its_facts(licence: str) -> None:
    with pytest.raises(VoxfleetError) as caught:
        check_licence(("MIT", "CC-BY-4.0"), licence, "f5-v1-base")
    error = caught.value
    assert (error.reason, error.kind) == (Reason.LICENCE_NOT_ALLOWED, Kind.FORBIDDEN)
    assert error.failure is FailureClass.PERMANENT, "another try would be refused as well"
    assert error.metadata == {"licence": licence, "allowed": "MIT, CC-BY-4.0", "weights": "f5-v1-base"}


async def test_what_a_team_may_is_asked_once_in_a_while() -> None:
    catalog, clock = FakeCatalog(licences={"blue": ("MIT",)}), Clock()
    licences = TeamLicences(catalog, keep_s=10.0, clock=clock)
    assert [await licences.allowed("blue") for _ in range(3)] == [("MIT",)] * 3
    assert await licences.allowed("red") == ()
    assert catalog.licences_asked == ["blue", "red"]
    catalog.licences["blue"] = ()
    clock.now_s += 10.0
    assert await licences.allowed("blue") == ()


@pytest.mark.parametrize("allowed", [(), ("MIT",)])
async def test_an_item_is_spoken_with_weights_that_its_team_may_use(
    tmp_path: Path, allowed: tuple[str, ...]
) -> None:
    rig = await test_jobs.Rig.up(tmp_path)
    rig.catalog.licences["blue"] = allowed
    task = rig.begin(test_jobs.text("a"))[1]
    await settle()
    rig.speaker.calls[0].send(made(), None)
    assert isinstance(await task, Succeeded)


RESPEAK = RespeakTask(
    team="blue", audio=SourceAudio(name="teams/blue/audios/one", blob=BLOB, duration_s=2.0), voice=VOICE
)


@pytest.mark.parametrize("task", [test_jobs.text("a"), RESPEAK])
async def test_a_job_is_refused_when_it_would_be_spoken_with_others(
    tmp_path: Path, task: SpeakTask | RespeakTask
) -> None:
    rig = await test_jobs.Rig.up(tmp_path)
    rig.catalog.licences["blue"] = ("CC-BY-4.0",)
    found = await asyncio.gather(rig.begin(task)[1], return_exceptions=True)
    assert isinstance(found[0], VoxfleetError)
    assert found[0].reason is Reason.LICENCE_NOT_ALLOWED
    assert rig.speaker.calls == []
    assert rig.f5.replicas[0].busy == 0


async def test_a_stream_is_refused_before_its_first_byte() -> None:
    rig = test_synthesis.Rig()
    await rig.up()
    voices = rig.catalog.voices
    voices[VOICE.name] = replace(voices[VOICE.name], allowed_licences=("CC-BY-4.0",))
    found = await asyncio.gather(rig.begin(), return_exceptions=True)
    assert isinstance(found[0], VoxfleetError)
    assert found[0].reason is Reason.LICENCE_NOT_ALLOWED
    assert found[0].metadata["weights"] == "small"

    voices[VOICE.name] = replace(voices[VOICE.name], allowed_licences=("MIT",))
    task = rig.begin()
    await settle()
    rig.call.send(test_synthesis.OPENED, test_synthesis.pcm(100), None)
    assert len(await task) == 3
