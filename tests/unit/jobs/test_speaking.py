"""How to speak: what is refused, by which path, and what a worker is told."""

from __future__ import annotations

import math

import pytest

from services.common import speaking
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import Output, QualityGate, SpeakingParameters
from services.common.media.encode import Format
from voxfleet.v1 import synthesis_pb2

Parameters = synthesis_pb2.SynthesisParameters
Gate = synthesis_pb2.QualityGate
OutputFormat = synthesis_pb2.OutputFormat


def test_zero_means_the_default() -> None:
    assert speaking.speaking_parameters(Parameters()) == SpeakingParameters()
    assert speaking.speaking_parameters(Parameters(preset="fast")).steps == 7
    assert speaking.speaking_parameters(Parameters(preset="fast", steps=12)).steps == 12
    assert not list(speaking.faults(Parameters(), "parameters"))


def test_all_that_is_asked_reaches_the_worker() -> None:
    asked = Parameters(
        steps=9,
        speed=1.25,
        seed=5,
        cfg_strength=1.5,
        duration_s=3.5,
        language="de",
        pitch_shift=-3.5,
        loudness_lufs=-16,
        verbatim=True,
        word_timestamps=True,
        quality=Gate(max_word_error_rate=0.1, min_similarity=0.7, tries=2),
    )
    found = speaking.speaking_parameters(asked)
    assert found == SpeakingParameters(
        steps=9,
        speed=1.25,
        seed=5,
        cfg_strength=1.5,
        duration_s=3.5,
        language="de",
        pitch_shift=-3.5,
        loudness_lufs=-16,
        verbatim=True,
        word_timestamps=True,
        quality=QualityGate(max_word_error_rate=0.1, min_similarity=0.7, tries=2),
    )
    # A field that the API has and a task has too is mapped: none keeps its default above.
    changed = {name for name in SpeakingParameters.model_fields if getattr(found, name) is not None}
    assert changed == set(SpeakingParameters.model_fields)
    default = SpeakingParameters()
    assert all(getattr(found, name) != getattr(default, name) for name in SpeakingParameters.model_fields)


def test_a_gate_without_tries_has_three() -> None:
    assert speaking.speaking_parameters(Parameters(quality=Gate(min_similarity=0.5))).quality == QualityGate(
        min_similarity=0.5, tries=3
    )


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        (Parameters(preset="best"), "preset"),
        (Parameters(steps=3), "steps"),
        (Parameters(steps=65), "steps"),
        (Parameters(speed=0.4), "speed"),
        (Parameters(speed=math.nan), "speed"),
        (Parameters(cfg_strength=5.1), "cfg_strength"),
        (Parameters(duration_s=-1), "duration_s"),
        (Parameters(duration_s=301), "duration_s"),
        (Parameters(seed=-1), "seed"),
        (Parameters(seed=2**31), "seed"),
        (Parameters(pitch_shift=12.5), "pitch_shift"),
        (Parameters(pitch_shift=-13), "pitch_shift"),
        (Parameters(pitch_shift=math.nan), "pitch_shift"),
        (Parameters(loudness_lufs=0), "loudness_lufs"),
        (Parameters(loudness_lufs=-4.9), "loudness_lufs"),
        (Parameters(loudness_lufs=-41), "loudness_lufs"),
        (Parameters(loudness_lufs=math.inf), "loudness_lufs"),
        (Parameters(language="x" * 65), "language"),
        (Parameters(style="x" * 65), "style"),
        (Parameters(quality=Gate(max_word_error_rate=1.1)), "quality.max_word_error_rate"),
        (Parameters(quality=Gate(min_similarity=-0.1)), "quality.min_similarity"),
        (Parameters(quality=Gate(tries=6)), "quality.tries"),
        (Parameters(lexicons=[f"teams/alpha/lexicons/words-{n}" for n in range(9)]), "lexicons"),
        (Parameters(lexicons=["teams/alpha/lexicons/words"] * 2), "lexicons"),
    ],
)
def test_what_is_out_of_range_is_named(asked: Parameters, path: str) -> None:
    found = list(speaking.faults(asked, "items[3].parameters"))
    assert [violation.field for violation in found] == [f"items[3].parameters.{path}"]
    with pytest.raises(VoxfleetError) as caught:
        speaking.refuse(found)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert list(caught.value.violations) == found


@pytest.mark.parametrize("lufs", [-40.0, -5.0])
@pytest.mark.parametrize("semitones", [-12.0, 12.0])
def test_the_ends_of_ranges_are_taken(lufs: float, semitones: float) -> None:
    assert not list(speaking.faults(Parameters(loudness_lufs=lufs, pitch_shift=semitones), "p"))


@pytest.mark.parametrize(
    ("asked", "path"),
    [
        (OutputFormat(format=9), "format"),  # type: ignore[arg-type]
        (OutputFormat(rate_hz=96_000), "rate_hz"),
        (OutputFormat(rate_hz=-1), "rate_hz"),
        (OutputFormat(bitrate_kbps=128), "bitrate_kbps"),
        (OutputFormat(format="AUDIO_FORMAT_FLAC", bitrate_kbps=128), "bitrate_kbps"),
        (OutputFormat(format="AUDIO_FORMAT_MP3", bitrate_kbps=321), "bitrate_kbps"),
        (OutputFormat(format="AUDIO_FORMAT_OPUS", bitrate_kbps=257), "bitrate_kbps"),
        (OutputFormat(format="AUDIO_FORMAT_AAC", bitrate_kbps=8), "bitrate_kbps"),
        (OutputFormat(format="AUDIO_FORMAT_AAC", bitrate_kbps=-8), "bitrate_kbps"),
    ],
)
def test_outputs_that_cannot_be_are_named(asked: OutputFormat, path: str) -> None:
    assert [violation.field for violation in speaking.output_faults(asked, "output")] == [f"output.{path}"]


@pytest.mark.parametrize("number", list(synthesis_pb2.AudioFormat.values()))
def test_every_format_is_one_that_is_written(number: synthesis_pb2.AudioFormat.ValueType) -> None:
    output = speaking.output_of(OutputFormat(format=number, rate_hz=44_100))
    assert Format(output.format)
    assert output.rate_hz == 44_100
    assert speaking.format_of(output.format) == (number or synthesis_pb2.AUDIO_FORMAT_WAV)


def test_a_bit_rate_is_kept() -> None:
    asked = OutputFormat(format="AUDIO_FORMAT_OPUS", bitrate_kbps=48)
    assert not list(speaking.output_faults(asked, "output"))
    assert speaking.output_of(asked) == Output(format="opus", bitrate_kbps=48)
