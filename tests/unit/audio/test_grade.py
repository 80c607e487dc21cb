"""Grades, their words, and what each purpose refuses."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.audio.grade import assess, check_file, check_training_set
from services.audio.model import Grade, Limits, Measures, Purpose
from services.common.errors import Kind, Reason, VoxfleetError

GOOD = Measures(
    duration_s=400.0,
    codec="flac",
    container="flac",
    rate_hz=48_000,
    channels=1,
    bit_depth=24,
    size_bytes=30_000_000,
    peak_dbfs=-3.0,
    true_peak_dbtp=-2.8,
    integrated_lufs=-20.0,
    rms_dbfs=-23.0,
    snr_db=45.0,
    snr_is_floor=False,
    noise_floor_dbfs=-68.0,
    background_dbfs=-66.0,
    clipping_ratio=0.0,
    dc_offset=0.0,
    voice_activity_ratio=0.8,
    voice_activity_ratio_webrtc=0.85,
    speech_segments=((0.0, 320.0),),
    bandwidth_hz=16_000.0,
)


@pytest.mark.parametrize(
    ("snr_db", "grade"),
    [
        (60.0, Grade.A_PLUS),
        (40.0, Grade.A_PLUS),
        (39.9, Grade.A),
        (30.0, Grade.A),
        (28.5, Grade.B_PLUS),
        (25.0, Grade.B_PLUS),
        (24.9, Grade.B),
        (20.0, Grade.B),
        (19.9, Grade.C),
        (15.0, Grade.C),
        (14.9, Grade.D),
        (-3.0, Grade.D),
    ],
)
def test_grade_follows_the_signal_to_noise_ratio(snr_db: float, grade: Grade) -> None:
    found = assess(replace(GOOD, snr_db=snr_db))
    assert found.grade is grade
    assert found.trainable is (snr_db >= 15.0)
    assert f"{snr_db:.1f} dB" in found.reasons[0]
    assert found.recommendations


@pytest.mark.parametrize(
    ("fault", "grade", "words"),
    [
        ({"clipping_ratio": 0.001}, Grade.A, "clipped"),
        ({"clipping_ratio": 0.03}, Grade.C, "clipped"),
        (
            {"voice_activity_ratio": 0.2, "voice_activity_ratio_webrtc": 0.3},
            Grade.A,
            "only 20% of it is speech",
        ),
        (
            {"voice_activity_ratio": 0.35, "voice_activity_ratio_webrtc": 0.99},
            Grade.A,
            "sound without speech",
        ),
        ({"background_dbfs": -40.0}, Grade.A, "not steady"),
        ({"bandwidth_hz": 3400.0}, Grade.A, "telephone"),
        ({"true_peak_dbtp": 0.7}, Grade.A_PLUS, "full scale"),
        ({"dc_offset": -0.03}, Grade.A_PLUS, "3.0%"),
        ({"integrated_lufs": -45.0}, Grade.A_PLUS, "quiet"),
        ({"snr_is_floor": True}, Grade.A_PLUS, "or more"),
    ],
)
def test_faults_lower_the_grade_and_are_named(fault: dict[str, float], grade: Grade, words: str) -> None:
    found = assess(replace(GOOD, **fault))
    assert found.grade is grade
    assert any(words in reason for reason in found.reasons)
    assert found.trainable


def test_a_good_recording_has_one_reason_and_one_recommendation() -> None:
    found = assess(GOOD)
    assert (found.grade, len(found.reasons)) == (Grade.A_PLUS, 1)
    assert found.recommendations == ("Ready to be trained on.",)


def test_many_faults_do_not_make_a_trainable_recording_a_d() -> None:
    found = assess(replace(GOOD, snr_db=16.0, clipping_ratio=0.05, bandwidth_hz=3000.0))
    assert (found.grade, found.trainable) == (Grade.C, True)
    assert len(found.reasons) == 3


def test_nobody_speaks() -> None:
    found = assess(replace(GOOD, snr_db=None, voice_activity_ratio=0.0, speech_segments=()))
    assert (found.grade, found.trainable) == (Grade.D, False)
    assert "nobody speaks" in found.reasons[0]


@pytest.mark.parametrize(
    ("purpose", "change", "words"),
    [
        (Purpose.TRAINING, {"duration_s": 60.0}, "5 to 10 minutes"),
        (Purpose.TRAINING, {"duration_s": 4.0, "speech_segments": ((0.0, 3.0),)}, "together with others"),
        (Purpose.TRAINING, {"snr_db": 9.0}, "Not to be trained on"),
        (Purpose.REFERENCE, {}, "should last 10 to 30 s"),
        (Purpose.REFERENCE, {"duration_s": 12.0}, "exact text"),
        (Purpose.REFERENCE, {"duration_s": 12.0, "snr_db": 16.0}, "noise would be cloned"),
        (Purpose.CONVERSION, {}, "Ready to be converted"),
        (Purpose.CONVERSION, {"snr_db": 12.0}, "clean it first"),
        (Purpose.CONVERSION, {"snr_db": None}, "no voice"),
    ],
)
def test_last_recommendation_speaks_to_the_purpose(
    purpose: Purpose, change: dict[str, object], words: str
) -> None:
    assert words in assess(replace(GOOD, **change), purpose).recommendations[-1]


MIB = 2**20


@pytest.mark.parametrize(
    ("purpose", "size_bytes", "duration_s", "reason", "metadata"),
    [
        (Purpose.TRAINING, 100 * MIB, 600.0, None, {}),
        (Purpose.TRAINING, 100 * MIB + 1, 5.0, Reason.FILE_TOO_LARGE, {"max_size_mb": "100"}),
        (
            Purpose.TRAINING,
            MIB,
            600.1,
            Reason.AUDIO_TOO_LONG,
            {"max_duration_s": "600", "duration_s": "600.1"},
        ),
        (Purpose.TRAINING, MIB, 0.5, None, {}),
        (Purpose.CONVERSION, 300 * MIB, 1800.0, None, {}),
        (Purpose.CONVERSION, 301 * MIB, None, Reason.FILE_TOO_LARGE, {"size_mb": "301.0"}),
        (Purpose.CONVERSION, MIB, 1801.0, Reason.AUDIO_TOO_LONG, {}),
        (Purpose.REFERENCE, MIB, 10.0, None, {}),
        (Purpose.REFERENCE, MIB, 30.0, None, {}),
        (Purpose.REFERENCE, MIB, 9.9, Reason.AUDIO_TOO_SHORT, {"min_duration_s": "10", "duration_s": "9.9"}),
        (Purpose.REFERENCE, MIB, 30.1, Reason.AUDIO_TOO_LONG, {}),
    ],
)
def test_limits_of_each_purpose(
    purpose: Purpose,
    size_bytes: int,
    duration_s: float | None,
    reason: Reason | None,
    metadata: dict[str, str],
) -> None:
    if reason is None:
        check_file(purpose, size_bytes=size_bytes, duration_s=duration_s)
        return
    with pytest.raises(VoxfleetError) as caught:
        check_file(purpose, size_bytes=size_bytes, duration_s=duration_s)
    assert (caught.value.reason, caught.value.kind) == (reason, Kind.INVALID)
    assert metadata.items() <= caught.value.metadata.items()


def test_every_purpose_has_limits() -> None:
    assert all(Limits().of(purpose).max_size_bytes for purpose in Purpose)


def test_training_set_is_judged_file_by_file_and_then_as_a_whole() -> None:
    short = replace(GOOD, duration_s=4.0)
    check_training_set([short, short, short])
    with pytest.raises(VoxfleetError) as caught:
        check_training_set([short, short])
    assert caught.value.reason is Reason.AUDIO_TOO_SHORT
    assert caught.value.metadata == {"min_duration_s": "10", "duration_s": "8.0"}
    with pytest.raises(VoxfleetError) as caught:
        check_training_set([GOOD, replace(GOOD, snr_db=11.25)])
    assert caught.value.reason is Reason.QUALITY_TOO_LOW
    assert caught.value.metadata == {"index": "1", "min_snr_db": "15", "actual_snr_db": "11.2"}
    with pytest.raises(VoxfleetError) as caught:
        check_training_set([replace(GOOD, snr_db=None), GOOD])
    assert caught.value.reason is Reason.AUDIO_SILENT
    with pytest.raises(VoxfleetError):
        check_training_set([])
