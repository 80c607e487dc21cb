"""Streams as files, from the real service: the bytes, the rate, the tags, leaving early."""

from __future__ import annotations

import numpy as np
import pytest

from services.common.media.decode import decode
from tests.integration.inference.conftest import F5_NAME, Fleet
from tests.integration.inference.test_service import TEXT, refused, speak
from tests.polling import until
from voxfleet.v1 import synthesis_pb2


def request(output: synthesis_pb2.OutputFormat, text: str = TEXT) -> synthesis_pb2.SynthesizeRequest:
    return synthesis_pb2.SynthesizeRequest(
        voice=F5_NAME,
        text=text,
        parameters=synthesis_pb2.SynthesisParameters(steps=4, seed=7),
        output=output,
    )


def file_of(fleet: Fleet, output: synthesis_pb2.OutputFormat) -> tuple[synthesis_pb2.SynthesisHeader, bytes]:
    parts = list(fleet.stub().Synthesize(request(output), metadata=fleet.headers(), timeout=120))
    assert {part.WhichOneof("part") for part in parts[1:-1]} == {"encoded"}
    assert parts[-1].summary.duration_s > 1.0
    return parts[0].header, b"".join(part.encoded for part in parts)


def test_flac_is_the_samples_of_the_same_seed(fleet: Fleet) -> None:
    header, data = file_of(fleet, synthesis_pb2.OutputFormat(format="AUDIO_FORMAT_FLAC"))
    assert header.format == synthesis_pb2.AUDIO_FORMAT_FLAC
    found = decode(data)
    np.testing.assert_array_equal(np.rint(found.samples * 32768), speak(fleet).pcm)
    tags = found.info.tags
    assert (tags["generated"], tags["voice"], tags["seed"]) == ("true", F5_NAME, "7")
    assert tags["weights"] == "f5-small-random (untrained weights)"


@pytest.mark.parametrize(("fmt", "rate_hz"), [("MP3", 44_100), ("OPUS", 48_000), ("AAC", 32_000)])
def test_a_file_comes_at_the_rate_asked_for(fleet: Fleet, fmt: str, rate_hz: int) -> None:
    header, data = file_of(
        fleet,
        synthesis_pb2.OutputFormat(format=f"AUDIO_FORMAT_{fmt}", rate_hz=rate_hz, bitrate_kbps=64),
    )
    found = decode(data)
    assert found.rate_hz == header.rate_hz == rate_hz
    assert len(found.samples) / rate_hz == pytest.approx(len(speak(fleet).pcm) / 24_000, abs=0.1)


def test_a_bit_rate_that_a_format_has_not_is_refused(fleet: Fleet) -> None:
    error = refused(fleet, request(synthesis_pb2.OutputFormat(bitrate_kbps=64)))
    assert error.reason == "INVALID_ARGUMENT"
    assert [violation.field for violation in error.violations] == ["output.bitrate_kbps"]


def test_a_listener_that_leaves_gives_the_slot_back(fleet: Fleet) -> None:
    long = " ".join(f"This is sentence number {number} of many." for number in range(40))
    asked = request(synthesis_pb2.OutputFormat(format="AUDIO_FORMAT_OPUS"), long)
    stream = fleet.stub().Synthesize(asked, metadata=fleet.headers(), timeout=120)
    assert next(stream).WhichOneof("part") == "header"
    assert next(stream).WhichOneof("part") == "encoded"
    stream.cancel()
    until(lambda: fleet.is_idle("f5"), timeout_s=60)
    header, _ = file_of(fleet, synthesis_pb2.OutputFormat(format="AUDIO_FORMAT_OPUS"))
    assert header.rate_hz == 48_000
