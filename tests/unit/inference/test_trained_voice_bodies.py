"""What replicas do for a text in a trained voice: an excerpt to speak from, speech bare, speech converted."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import ConversionParameters, F5Voice, SpeakingParameters
from services.common.media.decode import decode, probe
from services.common.media.encode import Format, encode
from services.common.media.loudness import integrated_lufs
from services.engines.rvc.conversion import ConvertParams
from services.engines.watermark import detect
from services.engines.whisper.scoring import word_error_rate
from services.inference.calls import (
    Closed,
    ConvertSpoken,
    ConvertStream,
    EngineSpec,
    Excerpt,
    Heard,
    Made,
    Opened,
    Pcm,
    Speaker,
    Weights,
)
from services.inference.engine import conversion, spoken
from services.inference.engine.conversion import ConversionBody, ConversionLimits
from services.inference.engine.marking import Marking
from services.inference.engine.running import Calls
from services.inference.engine.speech import SpeechBody
from services.inference.engine.spoken import samples_of
from services.inference.model import Role
from tests.unit.inference.test_engine_bodies import (
    SPEECH,
    cache,  # noqa: F401 - fixtures
    convert_task,
    events_of,
    item,
    loads,  # noqa: F401
    packed_voice,
    put,
    speaker,  # noqa: F401
    store,  # noqa: F401
    voice,  # noqa: F401
)

WHO = Speaker("teams/blue/voices/who", Weights("f5", trained=False, licence="MIT"))
MANIFEST = {file["file"]: file for file in json.loads((SPEECH / "manifest.json").read_text())["files"]}
HOW = ConversionParameters(index_rate=0.0, f0_method="swift", seed=4)


@pytest.fixture
def converter(store: MemoryArtifactStore, tmp_path: Path, loads: list[str]) -> ConversionBody:  # noqa: F811
    return ConversionBody(EngineSpec(Role.RVC), store, tmp_path / "cache", ConversionLimits())


def speech(seconds: float) -> np.ndarray:
    audio = decode(SPEECH / "target_en.flac", rate_hz=24_000).samples
    return audio[: round(seconds * 24_000)]


def pcm(samples: np.ndarray) -> bytes:
    return np.rint(samples * 32767).astype("<i2").tobytes()


def streamed(body: ConversionBody, request: ConvertStream, pieces: list[bytes]) -> list:
    return events_of(body, replace(request, fed=pieces))


def test_an_excerpt_of_a_long_recording_is_some_seconds_with_their_words(
    speaker: SpeechBody,  # noqa: F811
    store: MemoryArtifactStore,  # noqa: F811
) -> None:
    blob = put(store, (SPEECH / "target_en.flac").read_bytes())
    (heard,) = events_of(speaker, Excerpt(blob))
    assert isinstance(heard, Heard)
    assert 3.0 <= heard.end_s - heard.start_s <= 12.0
    assert heard.language == "en"
    # It begins where the recording does, whose words are known.
    said = MANIFEST["target_en.flac"]["text"].split()[: len(heard.text.split())]
    assert word_error_rate(" ".join(said), heard.text) <= 0.25
    (again,) = events_of(speaker, Excerpt(blob))
    assert again == heard, "the same recording gives the same stretch"
    # It can be spoken from: what it names is what is cut.
    voice_ = F5Voice(
        name="a", reference=blob, reference_text=heard.text, start_s=heard.start_s, end_s=heard.end_s
    )
    bundle = next(iter(speaker._bundles.values()))
    clip = bundle.clip(voice_)
    assert clip.duration_s <= heard.end_s - heard.start_s + 0.1
    assert voice_.clip_id != blob.sha256


def test_a_recording_in_which_nobody_speaks_gives_no_excerpt(
    speaker: SpeechBody,  # noqa: F811
    store: MemoryArtifactStore,  # noqa: F811
) -> None:
    tone = (0.3 * np.sin(np.arange(80_000) * 0.1)).astype(np.float32)
    with pytest.raises(VoxfleetError) as caught:
        events_of(speaker, Excerpt(put(store, encode(tone, 16_000, Format.FLAC))))
    assert caught.value.reason is Reason.SPEECH_NOT_HEARD


def test_an_item_that_is_to_be_converted_is_answered_and_not_stored(
    speaker: SpeechBody,  # noqa: F811
    voice: F5Voice,  # noqa: F811
    store: MemoryArtifactStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    plain = item(voice, "Good morning.")
    kept = events_of(speaker, plain)[-1]
    task = plain.task.model_copy(update={"converted": packed_voice(tmp_path, store, 1)})
    before = {blob.key for blob in store.list_prefix("")}
    opened, spoken, closed = [
        event
        for event in events_of(speaker, replace(plain, task=task))
        if isinstance(event, Opened | Pcm | Closed)
    ]
    assert {blob.key for blob in store.list_prefix("")} == before
    assert (opened.rate_hz, opened.weights.name, closed.seed) == (24_000, "f5-small-random", 1)
    whole = decode(store.get_bytes(kept.blob.key)).samples
    np.testing.assert_allclose(samples_of(spoken.data), whole, atol=1e-4)


def test_what_is_fed_comes_back_in_the_voice(
    converter: ConversionBody,
    store: MemoryArtifactStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    target = packed_voice(tmp_path, store, 1)
    said = speech(4.0)
    pieces = [pcm(said[:48_000]), pcm(said[48_000:])]
    opened, *answers, closed = streamed(converter, ConvertStream(target, 24_000, HOW), pieces)
    assert (opened.rate_hz, opened.weights.name) == (40_000, target.name)
    assert len(answers) == len(pieces) + 1
    assert isinstance(closed, Closed)
    assert sum(answer.samples for answer in answers) == 4 * 40_000
    assert answers[0].samples >= 1.6 * 40_000, "the first piece is answered at once"


@pytest.mark.parametrize(("rate_hz", "duration_s"), [(0, 2.1234), (22_050, 2.1234), (48_000, 0.0)])
def test_length_and_rate_are_exact(
    converter: ConversionBody,
    store: MemoryArtifactStore,  # noqa: F811
    tmp_path: Path,
    rate_hz: int,
    duration_s: float,
) -> None:
    said = speech(2.1234)
    request = ConvertStream(packed_voice(tmp_path, store, 1), 24_000, HOW, rate_hz, duration_s=duration_s)
    opened, *answers, _ = streamed(converter, request, [pcm(said[:30_000]), pcm(said[30_000:])])
    assert opened.rate_hz == (rate_hz or 40_000)
    samples = sum(answer.samples for answer in answers)
    assert samples == pytest.approx(2.1234 * opened.rate_hz, abs=0.5 if duration_s else 2)


def test_a_stream_is_as_loud_as_asked_and_marked(
    store: MemoryArtifactStore,  # noqa: F811
    tmp_path: Path,
    loads: list[str],  # noqa: F811
) -> None:
    body = ConversionBody(
        EngineSpec(Role.RVC), store, tmp_path / "cache", ConversionLimits(), Marking(enabled=True, key="k")
    )
    request = ConvertStream(packed_voice(tmp_path, store, 1), 24_000, HOW, loudness_lufs=-23.0)
    opened, *answers, _ = streamed(body, request, [pcm(speech(12.0))])
    assert opened.watermarked
    out = samples_of(b"".join(answer.data for answer in answers))
    assert integrated_lufs(out, 40_000) == pytest.approx(-23.0, abs=2.0)
    assert detect(out, 40_000, "k").present


def test_speech_that_is_there_is_converted_finished_and_stored(
    converter: ConversionBody,
    store: MemoryArtifactStore,  # noqa: F811
    voice: F5Voice,  # noqa: F811
    tmp_path: Path,
) -> None:
    target = packed_voice(tmp_path, store, 1)
    parameters = SpeakingParameters(steps=2, seed=5, duration_s=3.0001, loudness_lufs=-20.0)
    task = item(voice, "Good morning.", format="flac").task.model_copy(
        update={"converted": target, "conversion": HOW, "parameters": parameters}
    )
    request = ConvertSpoken("teams/blue/jobs/s", task, pcm(speech(3.0001)), 24_000, WHO)
    made = events_of(converter, request)[-1]
    assert isinstance(made, Made)
    assert (made.rate_hz, made.seed, made.weights.name) == (40_000, 5, target.name)
    data = store.get_bytes(made.blob.key)
    out = decode(data).samples
    assert len(out) == round(3.0001 * 40_000)
    assert integrated_lufs(out, 40_000) == pytest.approx(-20.0, abs=0.5)
    tags = probe(data).tags
    assert (tags["engine"], tags["speaker"], tags["speaker_licence"]) == (
        "rvc",
        WHO.name,
        "MIT",
    )
    assert tags["speaker_weights"] == "f5 (untrained weights)"


def test_a_call_is_fed_while_it_runs_and_stops_while_it_waits(
    converter: ConversionBody,
    store: MemoryArtifactStore,  # noqa: F811
    tmp_path: Path,
) -> None:
    request = ConvertStream(packed_voice(tmp_path, store, 1), 24_000, HOW)
    calls = Calls(converter, Reason.CONVERSION_FAILED)
    # Fed before it has begun: it may be overtaken on its way.
    calls.feed("one", pcm(speech(1.0)))
    ended: list = []
    running = threading.Thread(target=lambda: ended.append(calls.run("one", request, "")))
    running.start()
    events = list(calls.more("one").events)
    while not any(isinstance(event, Pcm) for event in events):
        events += calls.more("one").events
    calls.feed("one", pcm(speech(1.0)))
    calls.feed("one", b"")
    running.join(60)
    while not isinstance((events := [*events, *(ended[0].events if ended else ())])[-1], Closed):
        events += calls.more("one").events
    assert sum(event.samples for event in events if isinstance(event, Pcm)) == 2 * 40_000
    waiting = threading.Thread(target=lambda: ended.append(calls.run("two", request, "")))
    waiting.start()
    assert isinstance(calls.more("two").events[0], Opened)
    calls.stop("two")
    waiting.join(60)
    assert ended[-1].error.reason is Reason.CANCELLED


RANGE = {"low": 180.0, "median": 220.0, "high": 260.0}


def tone_hz(hz: float) -> np.ndarray:
    time_s = np.arange(24_000 * 2) / 24_000
    return sum(0.2 * np.sin(2 * np.pi * hz * k * time_s) / k for k in range(1, 6)).astype(np.float32)


def test_a_pitch_is_chosen_by_what_is_heard_and_told(
    converter: ConversionBody,
    store: MemoryArtifactStore,  # noqa: F811
    voice: F5Voice,  # noqa: F811
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    used: list[float] = []
    for module, name in ((spoken, "convert"), (conversion, "convert"), (spoken, "BlockConverter")):
        real = getattr(module, name)

        def noting(*args: object, real=real, **kwargs: object) -> object:
            (params,) = [arg for arg in args if isinstance(arg, ConvertParams)]
            used.append(params.pitch_shift)
            return real(*args, **kwargs)

        monkeypatch.setattr(module, name, noting)
    how = HOW.model_copy(update={"auto_pitch": True, "pitch_shift": 1.0})
    knows = packed_voice(tmp_path, store, 1, f0_hz=RANGE)
    low = tone_hz(110.0)

    plain = convert_task(store, knows)
    blob = put(store, encode(low, 24_000, Format.FLAC))
    source = plain.task.audio.model_copy(update={"blob": blob})
    task = plain.task.model_copy(update={"parameters": how, "audio": source})
    made = events_of(converter, replace(plain, task=task))[-1]
    closed = streamed(converter, ConvertStream(knows, 24_000, how), [pcm(low), pcm(low)])[-1]
    line = item(voice, "Hi.").task.model_copy(update={"converted": knows, "conversion": how})
    whole = events_of(converter, ConvertSpoken("j", line, pcm(low), 24_000, WHO))[-1]
    assert used == [13.0, 13.0, 13.0], "an octave, and what was asked for besides"
    for said in (made, closed, whole):
        assert (said.pitch_match.semitones, said.pitch_match.voice_hz) == (12.0, 220.0)
        assert said.pitch_match.source_hz == pytest.approx(110.0, rel=0.02)

    used.clear()
    unknown = packed_voice(tmp_path, store, 2)
    closed = streamed(converter, ConvertStream(unknown, 24_000, how), [pcm(low)])[-1]
    assert used == [1.0], "nothing is moved by itself where the voice does not know its range"
    assert (closed.pitch_match.semitones, closed.pitch_match.voice_hz) == (0.0, 0.0)
    silent = streamed(converter, ConvertStream(knows, 24_000, how), [pcm(low * 0)])[-1]
    assert (silent.pitch_match.semitones, silent.pitch_match.source_hz) == (0.0, 0.0)
    assert streamed(converter, ConvertStream(knows, 24_000, HOW), [pcm(low)])[-1].pitch_match is None
