"""Text in a trained voice: who speaks, what is converted, deaths, leaving early, both licences, batches."""

from __future__ import annotations

import asyncio
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.model import PitchMatch, SpeechQuality, Succeeded
from services.common.jobs.tasks import (
    ConversionParameters,
    F5Voice,
    RvcVoice,
    SpeakingParameters,
    SpeakTask,
    TimedWord,
)
from services.common.jobs.wire import output_from_proto, output_to_proto
from services.inference.app.encoding import _encoder
from services.inference.app.pool import Pool
from services.inference.app.speakers import Speakers
from services.inference.app.synthesis import Header, SpeechRequest, Summary, Synthesis
from services.inference.calls import (
    Closed,
    ConvertSpoken,
    ConvertStream,
    EngineSpec,
    Excerpt,
    Heard,
    Opened,
    Pcm,
    Speak,
    StreamSpeech,
    Weights,
)
from services.inference.model import PoolPlan, Role
from services.inference.ports import ResolvedVoice
from services.inference.servicer import summary_of
from tests.unit.inference.fakes import BLOB, VOICE, FakeCatalog, FakeExecutor, facts, lost, made, settle
from tests.unit.inference.test_jobs import Rig as JobsRig

SINGER = RvcVoice(name="teams/blue/voices/singer", package=BLOB)
RECORDING = F5Voice(name="teams/blue/audios/song", reference=BLOB, reference_text="")
HEARD = Heard("Good morning.", "en", (TimedWord(text="Good", start_s=0, end_s=1),), 0.0, 2.0, 9.5)
F5_WEIGHTS = Weights("small", trained=False, licence="MIT")
RVC_WEIGHTS = Weights(SINGER.name, trained=True, licence="CC-BY-4.0")
SPOKEN = Opened(24_000, 2, 7, F5_WEIGHTS)
CONVERTED = Opened(40_000, 0, 7, RVC_WEIGHTS, watermarked=True)


def pcm(samples: int, work_s: float = 0.25) -> Pcm:
    return Pcm(b"\1\0" * samples, samples, work_s)


class Rig:
    """Both pools, the second of which converts."""

    def __init__(self) -> None:
        self.f5_executor, self.rvc_executor = FakeExecutor(), FakeExecutor()
        self.f5 = Pool(PoolPlan(Role.F5), self.f5_executor)
        self.rvc = Pool(PoolPlan(Role.RVC), self.rvc_executor)
        self.singer = ResolvedVoice(SINGER.name, "rvc", RECORDING, rvc=SINGER)
        self.catalog = FakeCatalog(
            voices={SINGER.name: self.singer, VOICE.name: ResolvedVoice(VOICE.name, "f5", VOICE)}
        )
        self.synthesis = Synthesis(self.f5, self.rvc, Speakers(self.f5), self.catalog)
        self.f5.use(EngineSpec(Role.F5))
        self.rvc.use(EngineSpec(Role.RVC))

    @classmethod
    async def started(cls) -> Rig:
        rig = cls()
        await rig.up()
        return rig

    async def up(self) -> None:
        for role, executor in ((Role.F5, self.f5_executor), (Role.RVC, self.rvc_executor)):
            loaded = executor.engines[-1].loaded
            if not loaded.done():
                loaded.set_result(facts(role))
        await settle()

    def begin(self, voice: str = SINGER.name, **request: object) -> asyncio.Task[list]:
        parameters = SpeakingParameters(**request.pop("parameters", {}))  # type: ignore[arg-type]
        asked = SpeechRequest("blue", voice, "", "Hello.", parameters)

        async def listen() -> list:
            async with aclosing(self.synthesis.stream(replace(asked, **request))) as parts:  # type: ignore[arg-type]
                return [part async for part in parts]

        return asyncio.create_task(listen())

    async def heard(self) -> None:
        """The recording is heard."""
        await settle()
        assert isinstance(self.speaking.request, Excerpt)
        self.speaking.send(HEARD, None)
        await settle()

    @property
    def speaking(self):
        return self.f5_executor.engines[-1].calls[-1]

    @property
    def converting(self):
        return self.rvc_executor.engines[-1].calls[-1]


async def test_a_text_is_spoken_from_the_voices_own_recording_and_converted_piece_by_piece() -> None:
    rig = await Rig.started()
    task = rig.begin(
        parameters={"seed": 7, "pitch_shift": 2.0, "loudness_lufs": -16.0, "duration_s": 3.0},
        rate_hz=16_000,
        conversion=ConversionParameters(pitch_shift=5.0, index_rate=0.2),
    )
    await rig.heard()
    spoken = rig.speaking.request
    assert isinstance(spoken, StreamSpeech)
    assert (spoken.voice.name, spoken.voice.reference_text) == (RECORDING.name, HEARD.text)
    assert (spoken.voice.start_s, spoken.voice.end_s, spoken.voice.languages) == (2.0, 9.5, ("en",))
    assert (spoken.parameters.pitch_shift, spoken.parameters.loudness_lufs) == (0.0, None)
    assert (spoken.parameters.duration_s, spoken.rate_hz, spoken.marked) == (3.0, 0, False)
    assert not rig.rvc_executor.engines[-1].calls, "no slot before there is something to convert"
    rig.speaking.send(SPOKEN, pcm(12_000))
    await settle()
    asked = rig.converting.request
    assert isinstance(asked, ConvertStream)
    assert (asked.voice, asked.from_hz, asked.rate_hz) == (SINGER, 24_000, 16_000)
    assert (asked.parameters.pitch_shift, asked.parameters.index_rate, asked.parameters.seed) == (5.0, 0.2, 7)
    assert (asked.loudness_lufs, asked.duration_s) == (-16.0, 3.0)
    assert [len(piece) for piece in rig.converting.fed] == [24_000]
    rig.converting.send(CONVERTED, pcm(18_000))
    words = (TimedWord(text="Hello.", start_s=0.0, end_s=0.4),)
    closed = Closed(words, SpeechQuality(0.0, 0.8, 2, "hello", passed=True), "Hello.", seed=11)
    rig.speaking.send(pcm(6_000), closed, None)
    await settle()
    assert [len(piece) for piece in rig.converting.fed] == [24_000, 12_000, 0]
    match = PitchMatch(5.0, 165.0, 220.0)
    rig.converting.send(pcm(0), pcm(12_000), Closed(pitch_match=match), None)
    header, *samples, summary = await task
    assert isinstance(header, Header)
    assert (header.rate_hz, header.chunks, header.engine, header.weights) == (40_000, 2, "rvc", RVC_WEIGHTS)
    assert sum(map(len, samples)) == 2 * 30_000
    assert isinstance(summary, Summary)
    assert summary.closed == replace(closed, pitch_match=match)
    assert summary.work_s == pytest.approx(5 * 0.25), "of both engines"
    shown = summary_of(summary).provenance
    assert (shown.engine, shown.voice, shown.weights_licence) == ("rvc", SINGER.name, "CC-BY-4.0")
    assert (shown.speaker, shown.speaker_weights) == (RECORDING.name, "small")
    assert (shown.speaker_weights_licence, shown.speaker_weights_trained) == ("MIT", False)
    assert (shown.weights_trained, shown.watermarked, shown.seed) == (True, True, 11)
    assert (shown.pitch_match.semitones, shown.pitch_match.voice_hz) == (5.0, 220.0)
    assert [replica.busy for pool in (rig.f5, rig.rvc) for replica in pool.replicas] == [0, 0]


async def test_a_recording_is_heard_once_however_many_ask_at_once() -> None:
    rig = await Rig.started()
    tasks = [rig.begin() for _ in range(3)]
    await rig.heard()
    asked = [call.request for call in rig.f5_executor.engines[-1].calls]
    assert sum(isinstance(request, Excerpt) for request in asked) == 1
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def test_another_voice_may_speak_for_it() -> None:
    rig = await Rig.started()
    task = rig.begin(speaker=VOICE.name)
    await settle()
    rig.speaking.send(SPOKEN, pcm(10), None)
    await settle()
    assert rig.speaking.request.voice == VOICE
    rig.converting.send(CONVERTED, pcm(10), None)
    header = (await task)[0]
    assert header.speaker.name == VOICE.name


@pytest.mark.parametrize("before_first_sample", [True, False])
@pytest.mark.parametrize("role", [Role.F5, Role.RVC])
async def test_a_replica_that_dies_is_replaced_once_and_the_other_is_left_alone(
    role: Role, before_first_sample: bool
) -> None:
    rig = await Rig.started()
    dying, other = (
        (rig.f5_executor, rig.rvc_executor) if role is Role.F5 else (rig.rvc_executor, rig.f5_executor)
    )
    task = rig.begin(speaker=VOICE.name)
    await settle()
    rig.speaking.send(SPOKEN, pcm(10))
    await settle()
    rig.converting.send(CONVERTED, *([] if before_first_sample else [pcm(10)]))
    await settle()
    if role is Role.F5:
        rig.speaking.send(lost())
        await settle()
        assert rig.converting.stops == 1
        rig.converting.send(invalid(Reason.CANCELLED, "stopped as asked"))
    else:
        rig.converting.send(lost())
    await settle()
    assert [engine.has_ended for engine in dying.engines][:1] == [True]
    assert [engine.has_ended for engine in other.engines] == [False]
    await rig.up()
    if not before_first_sample:
        with pytest.raises(VoxfleetError) as caught:
            await task
        assert caught.value.reason is Reason.WORKER_LOST
        return
    rig.speaking.send(SPOKEN, pcm(10), None)
    await settle()
    rig.converting.send(CONVERTED, pcm(10), None)
    assert [type(part) for part in await task] == [Header, bytes, Summary]


async def test_leaving_early_frees_both_slots() -> None:
    rig = await Rig.started()
    task = rig.begin(speaker=VOICE.name)
    await settle()
    rig.speaking.send(SPOKEN, pcm(10))
    await settle()
    assert (rig.f5.replicas[0].busy, rig.rvc.replicas[0].busy) == (1, 1)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    await settle()
    assert (rig.speaking.stops, rig.converting.stops) == (1, 1)
    assert (rig.f5.replicas[0].busy, rig.rvc.replicas[0].busy) == (0, 0)


async def test_speech_waits_for_a_conversion_that_is_behind() -> None:
    rig = await Rig.started()
    task = rig.begin(speaker=VOICE.name)
    await settle()
    rig.speaking.send(SPOKEN, *[pcm(10)] * 10)
    await settle()
    assert len(rig.converting.fed) == 4
    rig.converting.send(CONVERTED, pcm(10))
    await settle()
    assert len(rig.converting.fed) == 5
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("changes", "request_", "reason"),
    [
        ({"f5": None}, {}, Reason.INVALID_ARGUMENT),
        ({}, {"style": "calm"}, Reason.INVALID_ARGUMENT),
        ({}, {"speaker": SINGER.name}, Reason.UNSUPPORTED_ENGINE),
        ({"licence": "CC-BY-NC-4.0", "allowed_licences": ("MIT",)}, {}, Reason.LICENCE_NOT_ALLOWED),
        ({"allowed_licences": ("Apache-2.0",)}, {"speaker": VOICE.name}, Reason.LICENCE_NOT_ALLOWED),
        ({}, {"voice": VOICE.name, "speaker": VOICE.name}, Reason.INVALID_ARGUMENT),
        ({}, {"voice": VOICE.name, "conversion": ConversionParameters()}, Reason.INVALID_ARGUMENT),
    ],
)
async def test_what_cannot_be_is_refused_before_anything_is_spoken(
    changes: dict, request_: dict, reason: Reason
) -> None:
    rig = await Rig.started()
    rig.catalog.voices[SINGER.name] = replace(rig.singer, **changes)
    with pytest.raises(VoxfleetError) as caught:
        await rig.begin(**request_)
    assert caught.value.reason is reason
    assert not rig.f5_executor.engines[-1].calls
    assert rig.f5.replicas[0].busy == 0


async def test_a_recording_without_speech_says_to_name_a_speaker_and_is_heard_once() -> None:
    rig = await Rig.started()
    first = rig.begin()
    await settle()
    rig.speaking.send(invalid(Reason.SPEECH_NOT_HEARD, "nobody is heard"))
    for task in (first, rig.begin()):
        with pytest.raises(VoxfleetError) as caught:
            await task
        assert caught.value.reason is Reason.INVALID_ARGUMENT
        assert caught.value.violations[0].field == "parameters.speaker"
    assert len(rig.f5_executor.engines[-1].calls) == 1


async def test_a_file_of_it_names_both_in_its_tags() -> None:
    rig = await Rig.started()
    task = rig.begin(speaker=VOICE.name)
    await settle()
    rig.speaking.send(SPOKEN, pcm(10), None)
    await settle()
    rig.converting.send(CONVERTED, pcm(10), None)
    header = (await task)[0]
    from services.common.jobs.tasks import Output
    from services.common.media.decode import probe

    encoder = _encoder(replace(header, rate_hz=24_000), Output(format="flac"))
    import numpy as np

    data = encoder.push(np.zeros(24_000, np.float32)) + encoder.finish()
    tags = probe(data).tags
    assert (tags["engine"], tags["voice"], tags["licence"]) == ("rvc", SINGER.name, "CC-BY-4.0")
    assert (tags["speaker"], tags["speaker_licence"]) == (VOICE.name, "MIT")


# ---- items of batches


def line(**changes: object) -> SpeakTask:
    parameters = SpeakingParameters(seed=7, pitch_shift=1.0, loudness_lufs=-20.0)
    task = SpeakTask(team="blue", text="Hello.", voice=VOICE, parameters=parameters, converted=SINGER)
    return task.model_copy(update=changes)


async def test_an_item_goes_through_both_pools_and_names_both(tmp_path: Path) -> None:
    rig = await JobsRig.up(tmp_path)
    _, task = rig.begin(line(conversion=ConversionParameters(protect=0.1)))
    await settle()
    spoken = rig.speaker.calls[-1].request
    assert isinstance(spoken, Speak)
    assert (spoken.task.parameters.pitch_shift, spoken.task.parameters.loudness_lufs) == (0.0, None)
    words = (TimedWord(text="Hello.", start_s=0.0, end_s=0.4),)
    rig.speaker.calls[-1].send(SPOKEN, pcm(100), Closed(words, None, "Hello.", seed=9), None)
    await settle()
    assert rig.f5.replicas[0].busy == 0, "speaking is over"
    asked = rig.converter.calls[-1].request
    assert isinstance(asked, ConvertSpoken)
    assert (len(asked.spoken), asked.from_hz, asked.speaker.name) == (200, 24_000, VOICE.name)
    assert (asked.task.conversion.protect, asked.task.conversion.seed) == (0.1, 7)
    assert asked.task.parameters.loudness_lufs == -20.0
    match = PitchMatch(5.0, 165.0, 220.0)
    rig.converter.calls[-1].send(replace(made(), pitch_match=match), None)
    done = await task
    assert isinstance(done, Succeeded)
    (audio,) = done.audios
    assert audio.pitch_match == match
    assert output_from_proto(output_to_proto(audio)) == audio, "on the wire too"
    assert (audio.engine, audio.voice, audio.words) == ("rvc", SINGER.name, words)
    assert audio.spoken is not None
    assert (audio.spoken.name, audio.spoken.weights, audio.spoken.weights_licence) == (
        VOICE.name,
        "small",
        "MIT",
    )
    assert done.metrics["work_s"] == 0.75
    assert (done.weights, done.weights_trained) == ("small", False)


async def test_a_converter_that_dies_does_not_cost_the_speech(tmp_path: Path) -> None:
    rig = await JobsRig.up(tmp_path)
    _, task = rig.begin(line())
    await settle()
    rig.speaker.calls[-1].send(SPOKEN, pcm(100), Closed(), None)
    await settle()
    rig.converter.calls[-1].send(lost())
    await settle()
    again = rig.executor.engines[-1]
    again.loaded.set_result(facts(Role.RVC))
    await settle()
    again.calls[-1].send(made(), None)
    assert isinstance(await task, Succeeded)
    assert len(rig.speaker.calls) == 1


async def test_an_item_without_a_speaker_is_heard_first(tmp_path: Path) -> None:
    rig = await JobsRig.up(tmp_path)
    _, task = rig.begin(line(voice=RECORDING))
    await settle()
    assert isinstance(rig.speaker.calls[-1].request, Excerpt)
    rig.speaker.calls[-1].send(HEARD, None)
    await settle()
    assert rig.speaker.calls[-1].request.task.voice.reference_text == HEARD.text
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
