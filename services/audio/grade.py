"""From measures to a verdict in words, and what each purpose refuses."""

from __future__ import annotations

from collections.abc import Sequence

from services.audio.model import (
    Assessment,
    Grade,
    GradeThresholds,
    Limits,
    Measures,
    Purpose,
    PurposeLimits,
)
from services.common.errors import Reason, VoxfleetError, invalid, precondition


def assess(
    measures: Measures,
    purpose: Purpose = Purpose.TRAINING,
    *,
    thresholds: GradeThresholds | None = None,
    limits: Limits | None = None,
) -> Assessment:
    """Grade a recording, say why, and what to do about it.

    The grade starts from the signal-to-noise ratio; clipping, little voice, a loud background and sound
    that is no speech lower it.

    Args:
        measures: what was measured.
        purpose: what the recording is for; the grade is the same, the closing recommendation is not.
        thresholds: where the grades lie.
        limits: lengths that the closing recommendation names.
    """
    bar = thresholds or GradeThresholds()
    grade, reasons, advice = _by_snr(measures, bar)
    steps = 0
    for lowered_by, cap, reason, recommendation in _findings(measures, bar):
        steps += lowered_by
        grade = grade.at_best(cap) if cap is not None else grade
        reasons.append(reason)
        advice.append(recommendation)
    grade = grade.lowered(steps)
    trainable = is_trainable(measures, bar)
    if trainable and grade is Grade.D:
        # Above the SNR that training asks for, lesser faults make a recording poor but not useless.
        grade = Grade.C
    advice.append(_closing(measures, purpose, grade, trainable, limits or Limits()))
    return Assessment(grade, tuple(reasons), tuple(advice), trainable)


def is_trainable(measures: Measures, thresholds: GradeThresholds | None = None) -> bool:
    """Whether a recording is good enough to train on, among others of its voice."""
    bar = thresholds or GradeThresholds()
    return (
        measures.snr_db is not None
        and measures.snr_db >= bar.trainable_snr_db
        and measures.voice_activity_ratio >= bar.voice_absent
    )


def _by_snr(measures: Measures, bar: GradeThresholds) -> tuple[Grade, list[str], list[str]]:
    if measures.snr_db is None or measures.voice_activity_ratio < bar.voice_absent:
        reason = "nobody speaks in it: no voice was found"
        return Grade.D, [reason], ["Record a voice: check the microphone's input and its level."]
    grade = next((name for name, least in bar.snr_db if measures.snr_db >= least), Grade.D)
    level = f"the voice stands {measures.snr_db:.1f} dB above the noise"
    if measures.snr_is_floor:
        level += " or more (it leaves hardly a pause to hear the noise in)"
    advice = []
    if grade in (Grade.C, Grade.D):
        advice.append(
            "Record closer to the microphone in a quieter room, or remove the noise with CleanAudio."
        )
    elif grade in (Grade.B, Grade.B_PLUS):
        advice.append("Some noise is audible; CleanAudio may raise the grade.")
    return grade, [level], advice


_Finding = tuple[int, Grade | None, str, str]


def _findings(measures: Measures, bar: GradeThresholds) -> list[_Finding]:
    """(grades lost, best grade still possible, reason, recommendation) for each fault found."""
    found: list[_Finding] = []
    if measures.clipping_ratio >= bar.clipping_severe:
        share = f"{measures.clipping_ratio:.1%} of the samples are clipped: the distortion is plain"
        found.append((1, Grade.C, share, "Record again with the input level 6 to 12 dB lower."))
    elif measures.clipping_ratio >= bar.clipping_audible:
        share = f"{measures.clipping_ratio:.2%} of the samples are clipped"
        found.append((1, None, share, "Lower the input level by about 6 dB."))
    if measures.snr_db is not None:
        found.extend(_voice_findings(measures, bar))
    if 0 < measures.bandwidth_hz < bar.narrow_hz:
        reason = f"nothing is heard above {measures.bandwidth_hz / 1000:.1f} kHz, as on a telephone"
        found.append(
            (1, None, reason, "Use the original recording: a voice learnt from this sounds muffled.")
        )
    if measures.true_peak_dbtp > bar.hot_peak_dbtp and measures.clipping_ratio < bar.clipping_audible:
        reason = f"its peaks pass full scale between the samples ({measures.true_peak_dbtp:+.1f} dBTP)"
        found.append((0, None, reason, "Leave 1 dB of headroom when exporting."))
    if abs(measures.dc_offset) > bar.dc_offset:
        reason = f"it is shifted off zero by {abs(measures.dc_offset):.1%} of full scale"
        found.append((0, None, reason, "A high-pass at 20 Hz takes the offset out; CleanAudio does it."))
    return found


def _voice_findings(measures: Measures, bar: GradeThresholds) -> list[_Finding]:
    found: list[_Finding] = []
    ratio = measures.voice_activity_ratio
    if bar.voice_absent <= ratio < bar.voice_sparse:
        reason = f"only {ratio:.0%} of it is speech"
        found.append((1, None, reason, "Cut out the long pauses, or upload more speech."))
    if measures.voice_activity_ratio_webrtc - ratio > bar.sound_without_speech:
        reason = "much of it is sound without speech: music, or other noises"
        found.append((1, None, reason, "Isolate the voice with CleanAudio."))
    elif _background_disturbs(measures, bar):
        reason = f"the background is not steady: parts of it reach {measures.background_dbfs:.0f} dBFS"
        found.append((1, None, reason, "Cut out the noises between the sentences, or isolate the voice."))
    if measures.integrated_lufs < bar.quiet_lufs:
        reason = f"it is very quiet ({measures.integrated_lufs:.0f} LUFS)"
        found.append((0, None, reason, "Raise the level at the microphone, not afterwards."))
    return found


def _background_disturbs(measures: Measures, bar: GradeThresholds) -> bool:
    above_floor_db = measures.background_dbfs - measures.noise_floor_dbfs
    margin_db = (measures.snr_db or 0.0) - above_floor_db
    return above_floor_db > bar.background_unsteady_db and margin_db < bar.background_margin_db


def _closing(measures: Measures, purpose: Purpose, grade: Grade, trainable: bool, limits: Limits) -> str:
    if purpose is Purpose.TRAINING:
        return _closing_for_training(measures, grade, trainable, limits)
    if measures.snr_db is None:
        return f"Not usable for {purpose}: there is no voice in it."
    if purpose is Purpose.REFERENCE:
        bounds = limits.reference
        if not bounds.min_duration_s <= measures.duration_s <= bounds.max_duration_s:
            return (
                f"As a reference clip it should last {bounds.min_duration_s:g} to "
                f"{bounds.max_duration_s:g} s; it lasts {measures.duration_s:.1f} s."
            )
        if grade in (Grade.C, Grade.D):
            return "As a reference clip its noise would be cloned with the voice: use a cleaner one."
        return "Good as a reference clip: give its exact text with it."
    if grade in (Grade.C, Grade.D):
        return "It can be converted, but its noise may turn into voice-like sounds: clean it first."
    return "Ready to be converted."


def _closing_for_training(measures: Measures, grade: Grade, trainable: bool, limits: Limits) -> str:
    if not trainable:
        return "Not to be trained on as it is."
    best_s = limits.best_training_s[0]
    if measures.speech_s < limits.min_training_s:
        return (
            f"Good enough to train on, together with others: it has {measures.speech_s:.1f} s of speech, "
            f"and training needs {limits.min_training_s:g} s of audio in all."
        )
    if measures.duration_s < best_s:
        return (
            f"It can be trained on; {best_s / 60:g} to {limits.best_training_s[1] / 60:g} minutes in all "
            f"would be best, and this is {measures.duration_s / 60:.1f}."
        )
    if grade is Grade.C:
        return "It can be trained on, but the noise will be heard in the voice: clean it first."
    return "Ready to be trained on."


def check_file(
    purpose: Purpose, *, size_bytes: int, duration_s: float | None, limits: Limits | None = None
) -> None:
    """Refuse a file that is too large, too long or too short for its purpose.

    Args:
        purpose: what it is for.
        size_bytes: its size.
        duration_s: its length; None where it is not known yet, which only the size is judged by.
        limits: the limits.

    Raises:
        VoxfleetError: FILE_TOO_LARGE (``max_size_mb``, ``size_mb``), AUDIO_TOO_LONG
            (``max_duration_s``, ``duration_s``), AUDIO_TOO_SHORT (``min_duration_s``, ``duration_s``).
    """
    bounds: PurposeLimits = (limits or Limits()).of(purpose)
    if size_bytes > bounds.max_size_bytes:
        advice = "" if purpose is Purpose.VOICE_FILE else ": split it, or send FLAC in place of WAV"
        raise invalid(
            Reason.FILE_TOO_LARGE,
            f"a file for {purpose} may have {bounds.max_size_bytes / 2**20:g} MB; "
            f"this one has {size_bytes / 2**20:.1f} MB{advice}",
            max_size_mb=f"{bounds.max_size_bytes / 2**20:g}",
            size_mb=f"{size_bytes / 2**20:.1f}",
        )
    if duration_s is None:
        return
    if duration_s > bounds.max_duration_s:
        raise invalid(
            Reason.AUDIO_TOO_LONG,
            f"a file for {purpose} may last {bounds.max_duration_s:g} s; this one lasts {duration_s:.1f} s",
            max_duration_s=f"{bounds.max_duration_s:g}",
            duration_s=f"{duration_s:.1f}",
        )
    if duration_s < bounds.min_duration_s:
        raise _too_short(f"a file for {purpose}", bounds.min_duration_s, duration_s)


def check_training_set(
    files: Sequence[Measures], *, thresholds: GradeThresholds | None = None, limits: Limits | None = None
) -> None:
    """Refuse a set of recordings that no voice can be trained on.

    Raises:
        VoxfleetError: AUDIO_SILENT (``index``), QUALITY_TOO_LOW (``index``, ``min_snr_db``,
            ``actual_snr_db``) for the first file that is not good enough; AUDIO_TOO_SHORT
            (``min_duration_s``, ``duration_s``) where all together are too short.
    """
    bar, bounds = thresholds or GradeThresholds(), limits or Limits()
    for index, measures in enumerate(files):
        if measures.snr_db is None or measures.voice_activity_ratio < bar.voice_absent:
            raise precondition(
                Reason.AUDIO_SILENT, f"no voice was found in recording {index + 1}: leave it out", index=index
            )
        if not is_trainable(measures, bar):
            raise precondition(
                Reason.QUALITY_TOO_LOW,
                f"in recording {index + 1} the voice stands {measures.snr_db:.1f} dB above the noise; "
                f"training needs {bar.trainable_snr_db:g} dB: clean it with CleanAudio or record it again",
                index=index,
                min_snr_db=f"{bar.trainable_snr_db:g}",
                actual_snr_db=f"{measures.snr_db:.1f}",
            )
    total_s = sum(measures.duration_s for measures in files)
    if total_s < bounds.min_training_s:
        raise _too_short("a training set", bounds.min_training_s, total_s)


def _too_short(what: str, min_duration_s: float, duration_s: float) -> VoxfleetError:
    return invalid(
        Reason.AUDIO_TOO_SHORT,
        f"{what} lasts at least {min_duration_s:g} s; this lasts {duration_s:.1f} s: add more",
        min_duration_s=f"{min_duration_s:g}",
        duration_s=f"{duration_s:.1f}",
    )
