"""What the audio service knows of a recording: its measures, its grade, and what each purpose asks of it."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field


class Grade(enum.Enum):
    """How good a recording is for speech, best first."""

    A_PLUS = "A+"
    A = "A"
    B_PLUS = "B+"
    B = "B"
    C = "C"
    D = "D"

    def lowered(self, steps: int) -> Grade:
        """The grade so many steps worse, D at the worst."""
        order = list(Grade)
        return order[min(len(order) - 1, order.index(self) + steps)]

    def at_best(self, limit: Grade) -> Grade:
        """The worse of the two."""
        order = list(Grade)
        return order[max(order.index(self), order.index(limit))]


class Purpose(enum.StrEnum):
    """What an upload is for; each has its limits."""

    TRAINING = "training"
    CONVERSION = "conversion"
    REFERENCE = "reference"
    VOICE_FILE = "voice file"
    """Not audio: it is neither decoded nor measured."""


@dataclass(frozen=True, slots=True)
class Measures:
    """Everything measured of one recording.

    Levels are in dB relative to full scale, -120 for silence; ``integrated_lufs`` is -70 where nothing
    passes the loudness gate. ``snr_db`` is None where nobody speaks; ``snr_is_floor`` says that there was
    too little silence to hear the noise by itself, so that the true figure may be higher.
    ``noise_floor_dbfs`` is the typical level of the pauses, ``background_dbfs`` what one in twenty passes.
    ``clipping_ratio``, the two voice activity ratios and ``dc_offset`` are shares of 1.
    """

    duration_s: float
    codec: str
    container: str
    rate_hz: int
    channels: int
    bit_depth: int | None
    size_bytes: int
    peak_dbfs: float
    true_peak_dbtp: float
    integrated_lufs: float
    rms_dbfs: float
    snr_db: float | None
    snr_is_floor: bool
    noise_floor_dbfs: float
    background_dbfs: float
    clipping_ratio: float
    dc_offset: float
    voice_activity_ratio: float
    voice_activity_ratio_webrtc: float
    speech_segments: tuple[tuple[float, float], ...]
    bandwidth_hz: float

    @property
    def speech_s(self) -> float:
        """Seconds of speech, by Silero's segments."""
        return sum(end - start for start, end in self.speech_segments)


@dataclass(frozen=True, slots=True)
class Assessment:
    """A verdict on one recording, in words.

    ``trainable`` speaks of quality alone: a clip of three seconds may be trained on among others. Length
    is judged over a whole training set, by ``services.audio.grade.check_training_set``.
    """

    grade: Grade
    reasons: tuple[str, ...]
    recommendations: tuple[str, ...]
    trainable: bool


@dataclass(frozen=True, slots=True)
class Judged:
    """What was measured of a recording, and the verdict on it."""

    measures: Measures
    assessment: Assessment


@dataclass(frozen=True, slots=True)
class GradeThresholds:
    """Where the grades lie. Calibrated for speech: 28.5 dB is a good home recording, a B+."""

    snr_db: tuple[tuple[Grade, float], ...] = (
        (Grade.A_PLUS, 40.0),
        (Grade.A, 30.0),
        (Grade.B_PLUS, 25.0),
        (Grade.B, 20.0),
        (Grade.C, 15.0),
    )
    """The least SNR for each grade, best first; below the last one it is a D."""
    trainable_snr_db: float = 15.0
    clipping_audible: float = 0.0005
    """One grade down: about a clipped word in a minute."""
    clipping_severe: float = 0.01
    """C at best."""
    voice_sparse: float = 0.3
    """One grade down: most of the recording is not the voice."""
    voice_absent: float = 0.02
    """D: there is nothing to learn."""
    background_unsteady_db: float = 10.0
    """Background this far above the noise floor is something that happens, not hiss …"""
    background_margin_db: float = 20.0
    """… and costs one grade where the voice stands less than this above it."""
    sound_without_speech: float = 0.4
    """One grade down: WebRTC's detector hears so much more than Silero, music or other sound plays along."""
    quiet_lufs: float = -36.0
    narrow_hz: float = 5_000.0
    """A telephone ends at 3.4 kHz."""
    hot_peak_dbtp: float = 0.0
    dc_offset: float = 0.01


@dataclass(frozen=True, slots=True)
class PurposeLimits:
    """What one purpose accepts in one file."""

    max_size_bytes: int
    max_duration_s: float
    min_duration_s: float = 0.0
    max_channels: int = 2


MIB = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits of each purpose, and of a training set as a whole."""

    training: PurposeLimits = field(
        default_factory=lambda: PurposeLimits(max_size_bytes=100 * MIB, max_duration_s=600.0)
    )
    conversion: PurposeLimits = field(
        default_factory=lambda: PurposeLimits(max_size_bytes=300 * MIB, max_duration_s=1800.0)
    )
    reference: PurposeLimits = field(
        default_factory=lambda: PurposeLimits(
            max_size_bytes=100 * MIB, max_duration_s=30.0, min_duration_s=10.0
        )
    )
    voice_file: PurposeLimits = field(
        default_factory=lambda: PurposeLimits(max_size_bytes=1024 * MIB, max_duration_s=0.0)
    )
    min_training_s: float = 10.0
    """Least length of a training set, all its files together."""
    best_training_s: tuple[float, float] = (300.0, 600.0)
    """Where training is at its best, all files together."""
    max_f5_conversion_s: float = 300.0
    """Conversion with the ``f5`` engine takes shorter files than with ``rvc``."""

    def of(self, purpose: Purpose) -> PurposeLimits:
        """The limits of one file for a purpose."""
        return {
            Purpose.TRAINING: self.training,
            Purpose.CONVERSION: self.conversion,
            Purpose.REFERENCE: self.reference,
            Purpose.VOICE_FILE: self.voice_file,
        }[purpose]
