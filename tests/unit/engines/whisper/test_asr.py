"""Speech recognition."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.common.errors import Reason, VoxfleetError
from services.engines.whisper.asr import Recogniser
from services.engines.whisper.scoring import word_error_rate

SPEECH = Path(__file__).parents[3] / "fixtures" / "speech"


@pytest.fixture(scope="module")
def recogniser(whisper_dir):
    return Recogniser(whisper_dir)


@pytest.fixture(scope="module")
def manifest():
    return {entry["file"]: entry for entry in json.loads((SPEECH / "manifest.json").read_text())["files"]}


def test_real_speech_is_understood(recogniser, manifest):
    samples, _ = soundfile.read(SPEECH / "clip_en_1.flac", dtype="float32")
    found = recogniser.transcribe(samples)
    assert found.language == "en"
    assert word_error_rate(manifest["clip_en_1.flac"]["text"], found.text) <= 0.35
    assert found.segments[-1].end_s <= len(samples) / 16_000 + 0.5
    assert all(part.start_s < part.end_s for part in found.segments)


def test_the_language_is_heard(recogniser):
    samples, _ = soundfile.read(SPEECH / "clip_es.flac", dtype="float32")
    assert recogniser.transcribe(samples[: 4 * 16_000]).language == "es"


def test_no_audio_is_no_text(recogniser):
    assert recogniser.transcribe(np.zeros(0, np.float32)).text == ""


def test_an_unknown_language_is_refused(recogniser):
    with pytest.raises(VoxfleetError) as caught:
        recogniser.transcribe(np.zeros(16_000, np.float32), language="klingon")
    assert caught.value.reason is Reason.UNSUPPORTED_LANGUAGE


def test_speech_is_told_from_noise(recogniser):
    samples, _ = soundfile.read(SPEECH / "clip_en_1.flac", dtype="float32")
    assert recogniser.voiced_s(samples) == pytest.approx(len(samples) / 16_000, rel=0.15)
    noise = np.random.default_rng(1).standard_normal(3 * 16_000).astype(np.float32) * 0.1
    assert recogniser.voiced_s(noise) < 0.3
    hum = np.sin(np.arange(3 * 16_000) * 0.05).astype(np.float32) * 0.3
    assert recogniser.transcribe(hum, "en").text, "it reads words into anything"
    assert recogniser.hear(hum, "en").text == recogniser.hear(noise, "en").text == ""
    assert recogniser.hear(samples, "en").text == recogniser.transcribe(samples, "en").text
    assert recogniser.voiced_s(np.zeros(0, np.float32)) == 0.0
