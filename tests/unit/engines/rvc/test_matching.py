"""Pitch moved to where a voice speaks."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest

from services.common.media.decode import decode
from services.engines.rvc import matching
from services.engines.rvc.matching import PitchRange, match, pitch_range, source_range, voice_range

from .conftest import voiced_tone
from .test_conversion import voice  # noqa: F401 - fixture

SPEECH = Path(__file__).parents[3] / "fixtures" / "speech"


def at(median):
    return PitchRange(median / 1.3, median, median * 1.3)


@pytest.mark.parametrize(
    ("source_hz", "voice_hz", "semitones"),
    [
        (110.0, 220.0, 12.0),
        (220.0, 110.0, -12.0),
        (200.0, 200.0, 0.0),
        (200.0, 204.0, 0.0),
        (150.0, 200.0, 5.0),
        (80.0, 400.0, 12.0),
        (400.0, 80.0, -12.0),
    ],
)
def test_whole_semitones_between_the_medians_and_an_octave_at_most(source_hz, voice_hz, semitones):
    found = match(at(source_hz), at(voice_hz))
    assert (found.semitones, found.source_hz, found.voice_hz) == (semitones, source_hz, voice_hz)


def test_with_what_is_asked_besides_it_is_two_octaves_at_most():
    assert match(at(100), at(200), beside=20.0).semitones == 4.0
    assert match(at(200), at(100), beside=-24.0).semitones == 0.0


@pytest.mark.parametrize(("source", "target"), [(None, at(200)), (at(200), None), (None, None)])
def test_what_is_not_known_moves_nothing_and_says_so(source, target):
    found = match(source, target)
    assert found.semitones == 0.0
    assert 0.0 in (found.source_hz, found.voice_hz)


def test_the_range_is_that_of_what_is_voiced():
    track = np.concatenate([np.zeros(500), np.linspace(100, 300, 401)]).astype(np.float32)
    found = pitch_range([track, np.zeros(10, np.float32)])
    assert (found.low, found.median, found.high) == (110.0, 200.0, 290.0)
    assert pitch_range([np.zeros(1000, np.float32)]) is None
    assert pitch_range([]) is None


@pytest.mark.parametrize(
    "said",
    [
        {},
        {"f0_hz": None},
        {"f0_hz": {"low": 1}},
        {"f0_hz": {"low": 3, "median": 2, "high": 1}},
        {"f0_hz": "x"},
    ],
)
def test_a_voice_that_does_not_know_its_range(voice, said):  # noqa: F811
    facts = dataclasses.replace(voice.facts, training=said)
    assert voice_range(dataclasses.replace(voice, facts=facts)) is None


def test_a_trained_voice_knows_its_range(voice):  # noqa: F811
    # The stand-in of the tests hears 150 Hz wherever there is sound.
    found = voice_range(voice)
    assert (found.low, found.median, found.high) == (150.0, 150.0, 150.0)


def test_a_source_is_heard_in_parts_where_it_is_long(voice, monkeypatch):  # noqa: F811
    heard = []

    class Tracker:
        def track(self, samples, frames):
            heard.append(len(samples) / 16_000)
            return np.full(frames, 120.0, np.float32)

    monkeypatch.setattr(matching.pitch, "f0_method", lambda name, device: Tracker())
    long = voiced_tone(90, 8_000)
    assert source_range(voice, long, 8_000).median == 120.0
    assert heard == [10.0] * 6
    heard.clear()
    source_range(voice, np.stack([long, long])[:, :160_000], 8_000)
    assert heard == [20.0]


@pytest.mark.parametrize("file", ["target_en.flac", "source_it.flac"])
def test_real_speech_has_a_plausible_pitch(voice, file):  # noqa: F811
    audio = decode(SPEECH / file)
    found = source_range(voice, audio.samples, audio.rate_hz, "swift")
    assert 70 < found.low < found.median < found.high < 500
    assert math.log2(found.high / found.low) < 2.5
