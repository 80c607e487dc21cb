"""A recording of real speech, heard by the real Whisper, spoken again by a small random network."""

from __future__ import annotations

import hashlib
import threading
from pathlib import Path

import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import Blob, Output, RespeakTask, SourceAudio, SpeakingParameters
from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from services.common.media.resample import resample
from services.engines.f5 import small
from services.engines.f5.model import Architecture
from services.engines.f5.planning import RATE_HZ, Reference
from services.engines.f5.reference import prepare
from services.engines.f5.synthesis import F5Model
from services.engines.whisper.recordings import STRETCH_S, stretches
from services.engines.whisper.scoring import word_error_rate
from services.inference.calls import Advance, EngineFacts, Speaking, Weights
from services.inference.engine.listening import Ear
from services.inference.engine.respeaking import Respeaking, Respoken
from services.inference.model import Role
from tests.unit.inference.fakes import VOICE

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
SAID = (
    "Your call is now first in line and will be answered by the next available representative. "
    "Please enter your phone number, starting with the area code."
)
PROMPTS = ((0.0, 5.362), (5.662, 9.168))
"""Where each of the two sentences stands in the recording, with 0.3 s of silence between."""
TINY = small.SmallShape(
    Architecture(dim=32, depth=2, heads=1, ff_mult=2, text_dim=32, conv_layers=2, dim_head=32),
    vocoder_dim=32,
    vocoder_layers=1,
)


class Rig:
    """A speaker, with a store of recordings."""

    def __init__(self, model: F5Model, cache: Path) -> None:
        weights = Weights("tiny", trained=False, licence="MIT")
        facts = EngineFacts(
            Role.F5,
            weights,
            "cpu",
            slots=1,
            node="n",
            pid=1,
            speaking=(Speaking(weights, ("en", "zh")),),
        )
        self.model = model
        self.store = MemoryArtifactStore()
        self.respeaking = Respeaking(facts, self.store, Ear(cache))
        self.events: list[Advance] = []
        self.stop = threading.Event()

    def task(
        self, samples: np.ndarray, rate_hz: int, *, output_hz: int = 0, **parameters: object
    ) -> RespeakTask:
        data = encode(samples, rate_hz, Format.FLAC)
        sha256 = hashlib.sha256(data).hexdigest()
        key = content_key("blue", sha256)
        self.store.put_bytes(key, data)
        blob = Blob(key=key, sha256=sha256, size_bytes=len(data))
        return RespeakTask(
            team="blue",
            audio=SourceAudio(name="teams/blue/audios/a", blob=blob, duration_s=len(samples) / rate_hz),
            voice=VOICE,
            parameters=SpeakingParameters(**{"steps": 2, "seed": 5} | parameters),
            output=Output(rate_hz=output_hz),
        )

    def run(self, task: RespeakTask, reference: Reference) -> Respoken:
        self.events.clear()
        heard = self.respeaking.hear(task, (), self.events.append, self.stop.is_set)
        return self.respeaking.speak(
            self.model, heard, task, reference, self.events.append, stopped=self.stop.is_set
        )

    def refused(self, task: RespeakTask, reference: Reference) -> VoxfleetError:
        with pytest.raises(VoxfleetError) as caught:
            self.run(task, reference)
        return caught.value


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Rig:
    cache = tmp_path_factory.mktemp("cache")
    small.build(cache / "tiny", shape=TINY)
    return Rig(F5Model.load(cache / "tiny"), cache)


@pytest.fixture(scope="module")
def reference(rig: Rig) -> Reference:
    clip = decode(SPEECH / "clip_en_1.flac")
    said = "There is currently one other participant in the conference."
    return rig.model.reference(prepare("voice", clip.samples, clip.rate_hz, said))


@pytest.fixture(scope="module")
def recording() -> np.ndarray:
    """Two sentences, 16 kHz, with half a second of silence before and three after."""
    samples = decode(SPEECH / "heldout_en.flac").samples[: round(9.3 * 16_000)]
    return np.concatenate([np.zeros(8_000, np.float32), samples, np.zeros(48_001, np.float32)])


@pytest.fixture(scope="module")
def respoken(rig: Rig, reference: Reference, recording: np.ndarray) -> tuple[Respoken, list[str]]:
    found = rig.run(rig.task(recording, 16_000), reference)
    return found, list(dict.fromkeys(event.phase for event in rig.events))


def level_db(audio: np.ndarray) -> float:
    return float(10 * np.log10(np.mean(np.square(audio, dtype=np.float64)) + 1e-12))


def test_it_is_as_long_as_the_recording_and_speaks_where_that_spoke(respoken, recording) -> None:
    found, phases = respoken
    assert phases == ["fetch", "listen", "speak"]
    assert found.rate_hz == RATE_HZ
    assert len(found.audio) == round(len(recording) * 1.5)
    assert word_error_rate(SAID, found.spoken_text) <= 0.15
    assert np.isfinite(found.audio).all()
    within = np.zeros(len(found.audio), bool)
    for phrase in found.phrases:
        first_s, last_s = phrase.first / RATE_HZ - 0.5, phrase.last / RATE_HZ - 0.5
        assert any(start_s - 0.1 <= first_s < last_s <= end_s + 0.1 for start_s, end_s in PROMPTS)
        assert level_db(found.audio[phrase.first : phrase.last]) > -45
        within[phrase.first : phrase.last] = True
    assert not found.audio[~within].any(), "it is silent where the recording pauses"
    assert within.sum() / RATE_HZ > 0.85 * sum(end_s - start_s for start_s, end_s in PROMPTS)


def test_it_is_as_long_at_any_rate_and_the_same_with_the_same_seed(
    rig, reference, recording, respoken
) -> None:
    odd = resample(recording, 16_000, 44_100)[:300_001]
    for output_hz, expected in ((44_100, 300_001), (8_000, round(300_001 * 8_000 / 44_100))):
        found = rig.run(rig.task(odd, 44_100, output_hz=output_hz, language="en-GB"), reference)
        assert (found.rate_hz, len(found.audio)) == (output_hz, expected)
    again = rig.run(rig.task(recording, 16_000), reference)
    assert np.array_equal(again.audio, respoken[0].audio)


def test_another_seed_is_another_voice_over_the_same_timing(rig, reference, recording, respoken) -> None:
    task = rig.task(recording, 16_000)
    heard = rig.respeaking.hear(task, (), lambda _: None, lambda: False)
    other = task.parameters.model_copy(update={"seed": 6})
    task = task.model_copy(update={"parameters": other})
    found = rig.respeaking.speak(rig.model, heard, task, reference, lambda _: None, stopped=lambda: False)
    assert not np.array_equal(found.audio, respoken[0].audio)
    assert found.phrases == respoken[0].phrases


def test_wording_is_applied_to_what_is_spoken_and_not_to_what_was_said(rig, reference, recording) -> None:
    asked: list[tuple[str, str]] = []

    def wording(text: str, language: str) -> str:
        asked.append((text, language))
        return "Short."

    task = rig.task(recording, 16_000)
    heard = rig.respeaking.hear(task, (), lambda _: None, lambda: False)
    assert heard.heard.language == "en"
    found = rig.respeaking.speak(
        rig.model, heard, task, reference, lambda _: None, stopped=lambda: False, wording=wording
    )
    assert {language for _, language in asked} == {"en"}
    assert found.phrases[0].text.startswith("Your call is now")
    assert found.spoken_text == " ".join(["Short."] * len(found.phrases))


def test_nobody_says_a_word(rig, reference) -> None:
    noise = (0.05 * np.random.default_rng(0).standard_normal(5 * 16_000)).astype(np.float32)
    assert rig.refused(rig.task(noise, 16_000), reference).reason is Reason.SPEECH_NOT_HEARD
    silence = np.zeros(16_000, np.float32)
    assert rig.refused(rig.task(silence, 16_000), reference).reason is Reason.SPEECH_NOT_HEARD


def test_what_is_too_long_is_not_even_listened_to(rig, reference) -> None:
    error = rig.refused(rig.task(np.zeros(8_000 * 301, np.float32), 8_000), reference)
    assert error.reason is Reason.AUDIO_TOO_LONG
    assert float(error.metadata["max_duration_s"]) == 300.0
    assert {event.phase for event in rig.events} == {"fetch"}


def test_a_language_that_the_weights_lack_is_refused_once_it_is_heard(rig, reference) -> None:
    clip = decode(SPEECH / "clip_ru.flac")
    error = rig.refused(rig.task(clip.samples, clip.rate_hz), reference)
    assert error.reason is Reason.UNSUPPORTED_LANGUAGE
    assert error.metadata["language"] == "ru"
    assert "speak" not in {event.phase for event in rig.events}


def test_a_voice_that_cannot_speak_so_fast_says_how_long_it_needs(rig, recording) -> None:
    clip = decode(SPEECH / "reference_en.flac")
    slow = rig.model.reference(prepare("slow", clip.samples, clip.rate_hz, "Very slow."))
    error = rig.refused(rig.task(recording, 16_000), slow)
    assert error.reason is Reason.SLOT_TOO_SHORT
    assert error.metadata["phrase"].startswith("Your call is now")
    assert float(error.metadata["min_s"]) > float(error.metadata["duration_s"]) > 5


def test_one_that_is_stopped_ends(rig, reference, recording) -> None:
    rig.stop.set()
    try:
        error = rig.refused(rig.task(recording, 16_000), reference)
    finally:
        rig.stop.clear()
    assert error.reason is Reason.CANCELLED


def test_a_recording_that_is_gone_says_so(rig, reference, recording) -> None:
    task = rig.task(recording, 16_000)
    gone = task.audio.model_copy(update={"blob": task.audio.blob.model_copy(update={"key": "teams/blue/x"})})
    error = rig.refused(task.model_copy(update={"audio": gone}), reference)
    assert error.reason is Reason.AUDIO_NOT_FOUND


def test_stretches_join_over_short_pauses_and_keep_apart_over_long_ones() -> None:
    second = 16_000
    spans = [(second, 3 * second), (4 * second, 9 * second), (20 * second, 21 * second)]
    assert stretches(spans, 30 * second) == [
        (second - 3_200, 9 * second + 3_200),
        (20 * second - 3_200, 21 * second + 3_200),
    ]
    close = [(0, 14 * second), (14 * second + 1_000, 20 * second)]
    first, following = stretches(close, 20 * second)
    assert first[1] == following[0] == 14 * second + 500
    assert first[1] - first[0] <= STRETCH_S * second
    assert following[1] == 20 * second
    assert stretches([], second) == []
