"""Clips of a new voice: who listens, when nobody does, and what is made of what was heard."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

import pytest

from services.common.errors import Reason, VoxfleetError, internal, invalid, not_found
from services.common.jobs.tasks import TimedWord
from services.inference.app.listening import Listening
from services.inference.app.pool import Pool
from services.inference.calls import EngineSpec, Heard, Listen
from services.inference.model import PoolPlan, Role
from services.inference.ports import ResolvedAudio
from services.inference.servicer import VoiceServicer
from tests.unit.inference.fakes import BLOB, FakeCatalog, FakeExecutor, facts, lost, settle
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import voice_pb2

AUDIO = "teams/blue/audios/clip"
WORDS = (TimedWord(text="Hello.", start_s=0.5, end_s=1.25),)
HEARD = Heard("Hello.", "en", WORDS, 0.0)


@dataclass
class StoringStub:
    """Metadata's end of StoreVoice."""

    stored: list[catalog_pb2.StoreVoiceRequest] = field(default_factory=list)

    async def StoreVoice(self, request: catalog_pb2.StoreVoiceRequest, **_: float) -> voice_pb2.Voice:
        self.stored.append(request)
        return voice_pb2.Voice(name="teams/blue/voices/made")


class Context:
    def time_remaining(self) -> None:
        return None


class Rig:
    def __init__(self, *, limit: float = 0.6, wait_s: float = 30.0) -> None:
        self.executor = FakeExecutor()
        self.pool = Pool(PoolPlan(Role.F5), self.executor)
        self.catalog = FakeCatalog(audios={AUDIO: ResolvedAudio(BLOB, 8.0)})
        self.listening = Listening(self.pool, self.catalog, max_word_error_rate=limit, check_wait_s=wait_s)
        self.stub = StoringStub()
        self.servicer = VoiceServicer(self.pool, self.listening, self.stub)  # type: ignore[arg-type]
        self.pool.use(EngineSpec(Role.F5))

    async def up(self) -> None:
        self.executor.engines[-1].loaded.set_result(facts())
        await settle()

    def create(self, *texts: str, audio: str = AUDIO, languages: tuple[str, ...] = ()) -> asyncio.Task:
        clips = [
            voice_pb2.ReferenceClip(audio=audio, text=text, style=f"s{n}") for n, text in enumerate(texts)
        ]
        request = voice_pb2.CreateVoiceRequest(
            parent="teams/blue",
            voice=voice_pb2.Voice(references=clips, languages=languages),
            request_id="once",
        )
        return asyncio.create_task(self.servicer.CreateVoice(request, Context()))  # type: ignore[arg-type]

    @property
    def call(self):
        return self.executor.engines[-1].calls[-1]


async def refused(task: asyncio.Task) -> VoxfleetError:
    with pytest.raises(VoxfleetError) as caught:
        await task
    return caught.value


async def test_a_clip_without_a_text_is_heard() -> None:
    rig = Rig()
    await rig.up()
    task = rig.create(" ", languages=("en-GB", "fr"))
    await settle()
    assert rig.call.request == Listen(BLOB, "", "en-GB", 0.6)
    rig.call.send(HEARD, None)
    assert (await task).name == "teams/blue/voices/made"
    stored = rig.stub.stored[0]
    assert stored.request.voice.references[0].text == " ", "as it was asked for: a repeat is known by it"
    heard = stored.heard[0]
    assert (heard.index, heard.text) == (0, "Hello.")
    assert [(word.word, word.start_s, word.end_s) for word in heard.words] == [("Hello.", 0.5, 1.25)]
    assert rig.pool.replicas[0].busy == 0
    assert rig.call.stops == 0, "it was heard to its end"


async def test_each_clip_is_heard_in_turn() -> None:
    rig = Rig()
    await rig.up()
    task = rig.create("Hello.", "")
    await settle()
    assert rig.call.request.text == "Hello."
    rig.call.send(HEARD, None)
    await settle()
    assert rig.call.request.text == ""
    rig.call.send(HEARD, None)
    await task
    assert [heard.index for heard in rig.stub.stored[0].heard] == [0, 1]


async def test_a_wrong_text_is_refused_at_its_place_in_the_request() -> None:
    rig = Rig()
    await rig.up()
    task = rig.create("Hello.", "Other.")
    await settle()
    rig.call.send(HEARD, None)
    await settle()
    rig.call.send(invalid(Reason.TRANSCRIPT_MISMATCH, "no", field="reference_text", heard="Hello."))
    error = await refused(task)
    assert error.reason is Reason.TRANSCRIPT_MISMATCH
    assert [violation.field for violation in error.violations] == ["voice.references[1].text"]
    assert not rig.stub.stored, "nothing is half made"


async def test_a_bad_clip_is_refused_whether_or_not_it_has_a_text() -> None:
    for text in ("", "Hello."):
        rig = Rig()
        await rig.up()
        task = rig.create(text)
        await settle()
        rig.call.send(invalid(Reason.AUDIO_SILENT, "silent", field="reference_audio"))
        error = await refused(task)
        assert error.reason is Reason.AUDIO_SILENT
        assert error.violations[0].field == "voice.references[0].audio"


@pytest.mark.parametrize(
    "failure", [lost(), not_found(Reason.MODEL_NOT_FOUND, "whisper-base"), internal("a defect")]
)
async def test_a_check_that_cannot_be_made_costs_no_voice(failure: VoxfleetError) -> None:
    rig = Rig()
    await rig.up()
    task = rig.create("Hello.")
    await settle()
    rig.call.send(failure)
    await task
    assert not rig.stub.stored[0].heard


async def test_a_text_that_must_be_heard_needs_somebody_who_listens() -> None:
    rig = Rig()
    await rig.up()
    task = rig.create("")
    await settle()
    rig.call.send(not_found(Reason.MODEL_NOT_FOUND, "whisper-base"))
    assert (await refused(task)).reason is Reason.MODEL_NOT_FOUND
    assert not rig.stub.stored


async def test_a_check_does_not_wait_long_for_a_slot() -> None:
    rig = Rig(wait_s=0.01)
    # No replica ever comes up: trainings have the GPUs.
    await rig.create("Hello.")
    assert not rig.stub.stored[0].heard
    assert rig.pool.state.streams_waiting == 0


async def test_without_the_check_a_given_text_is_not_listened_to() -> None:
    rig = Rig(limit=0.0)
    await rig.up()
    await rig.create("Hello.")
    assert not rig.executor.engines[-1].calls
    assert not rig.stub.stored[0].heard


@pytest.mark.parametrize("audio", ["teams/blue/audios/gone", "teams/blue/audios/long"])
async def test_what_is_no_reference_is_left_to_the_record(audio: str) -> None:
    rig = Rig()
    rig.catalog.audios["teams/blue/audios/long"] = ResolvedAudio(BLOB, 31.0)
    await rig.up()
    await rig.create("", audio=audio)
    assert not rig.executor.engines[-1].calls
    assert not rig.stub.stored[0].heard, "it refuses it, or repeats its first answer"


async def test_who_hangs_up_frees_the_slot() -> None:
    rig = Rig()
    await rig.up()
    task = rig.create("")
    await settle()
    task.cancel()
    await settle()
    assert rig.call.stops == 1
    assert rig.pool.replicas[0].busy == 0
