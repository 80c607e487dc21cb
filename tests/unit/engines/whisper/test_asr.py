"""Speech recognition and its error rate."""

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.common.errors import Reason, VoxfleetError
from services.engines.whisper.asr import Recogniser, normalise, word_error_rate

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


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("Please hold, and don't hang up.", "please hold and dont hang up", 0.0),
        ("one two three four", "one three four", 0.25),
        ("one two three four", "one two too three for", 0.5),
        ("one", "two three four", 3.0),
        ("", "", 0.0),
        ("", "two words", 2.0),
        ("words", "", 1.0),
    ],
)
def test_word_error_rate(reference, hypothesis, rate):
    assert word_error_rate(reference, hypothesis) == rate


def test_normalising_keeps_letters_of_any_script():
    assert normalise("¿Qué TAL?  Ёлка—ель_2") == "qué tal ёлка ель 2"
