"""How to speak, and how audio is to come: judged and understood in one place, for streams and for batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from services.common import limits
from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError
from services.common.jobs import tasks
from voxfleet.v1 import synthesis_pb2

_FORMATS: Final = {
    synthesis_pb2.AUDIO_FORMAT_UNSPECIFIED: "wav",
    synthesis_pb2.AUDIO_FORMAT_WAV: "wav",
    synthesis_pb2.AUDIO_FORMAT_FLAC: "flac",
    synthesis_pb2.AUDIO_FORMAT_MP3: "mp3",
    synthesis_pb2.AUDIO_FORMAT_OPUS: "opus",
    synthesis_pb2.AUDIO_FORMAT_AAC: "aac",
}
_KBPS: Final = {"mp3": (16, 320), "opus": (16, 256), "aac": (16, 320)}
"""What each encoder can write of one channel."""


def faults(p: synthesis_pb2.SynthesisParameters, field: str) -> Iterator[FieldViolation]:
    """What is wrong with the parameters of a request, by the path of each field."""
    if p.preset and p.preset not in limits.PRESETS:
        yield FieldViolation(
            f"{field}.preset", f"must be one of fast, balanced, quality, not {p.preset[:40]!r}"
        )
    if p.steps:
        yield from _within(f"{field}.steps", p.steps, limits.STEPS)
    if p.speed:
        yield from _within(f"{field}.speed", p.speed, limits.SPEED)
    yield from _within(f"{field}.cfg_strength", p.cfg_strength, limits.CFG_STRENGTH)
    yield from _within(f"{field}.duration_s", p.duration_s, limits.DURATION_S)
    yield from _within(f"{field}.seed", p.seed, (0, limits.MAX_SEED))
    yield from _within(f"{field}.pitch_shift", p.pitch_shift, limits.PITCH_SHIFT)
    if p.HasField("loudness_lufs"):
        yield from _within(f"{field}.loudness_lufs", p.loudness_lufs, limits.LOUDNESS_LUFS)
    for name, text in (("style", p.style), ("language", p.language)):
        if len(text) > limits.MAX_WORD:
            yield FieldViolation(f"{field}.{name}", f"has at most {limits.MAX_WORD} characters")
    if p.HasField("quality"):
        yield from _gate_faults(p.quality, f"{field}.quality")
    yield from _lexicon_faults(p.lexicons, f"{field}.lexicons")


def spoken_faults(p: synthesis_pb2.SynthesisParameters, field: str) -> Iterator[FieldViolation]:
    """The same of a text that may be in a trained voice: with what is wrong with its conversion."""
    yield from faults(p, field)
    if p.HasField("conversion"):
        inner = f"{field}.conversion"
        yield from conversion_faults(p.conversion, inner)
        if p.conversion.HasField("speaking"):
            yield FieldViolation(f"{inner}.speaking", f"stands in {field}: leave it out")
        if p.conversion.HasField("preprocessing"):
            yield FieldViolation(f"{inner}.preprocessing", "is of recordings: leave it out")
        low, high = limits.CONVERSION_PITCH
        if not low <= p.pitch_shift + p.conversion.pitch_shift <= high:
            yield FieldViolation(
                f"{inner}.pitch_shift", f"and {field}.pitch_shift are together from {low:g} to {high:g}"
            )


def conversion_faults(p: synthesis_pb2.ConversionParameters, field: str) -> Iterator[FieldViolation]:
    """What is wrong with how a recording is to be turned into a trained voice."""
    ranged: tuple[tuple[str, float, tuple[float, float]], ...] = (
        ("pitch_shift", p.pitch_shift, limits.CONVERSION_PITCH),
        ("index_rate", p.index_rate, limits.INDEX_RATE),
        ("filter_radius", p.filter_radius, limits.FILTER_RADIUS),
        ("rms_mix_rate", p.rms_mix_rate, limits.RMS_MIX_RATE),
        ("protect", p.protect, limits.PROTECT),
        ("seed", p.seed, (0, limits.MAX_SEED)),
    )
    for name, value, within in ranged:
        yield from _within(f"{field}.{name}", value, within)
    if p.f0_method not in limits.F0_METHODS:
        known = ", ".join(limits.F0_METHODS[1:])
        yield FieldViolation(f"{field}.f0_method", f"must be one of {known}, not {p.f0_method[:40]!r}")


def output_faults(output: synthesis_pb2.OutputFormat, field: str) -> Iterator[FieldViolation]:
    """What is wrong with how the audio is to come."""
    fmt = _FORMATS.get(output.format)
    if fmt is None:
        yield FieldViolation(f"{field}.format", "is not a known format")
        return
    if output.rate_hz:
        yield from _within(f"{field}.rate_hz", output.rate_hz, limits.RATE_HZ)
    if output.bitrate_kbps and fmt not in _KBPS:
        yield FieldViolation(
            f"{field}.bitrate_kbps", f"is of {', '.join(_KBPS)}; {fmt} has none: leave it out"
        )
    elif output.bitrate_kbps:
        yield from _within(f"{field}.bitrate_kbps", output.bitrate_kbps, _KBPS[fmt])


def refuse(found: Iterable[FieldViolation]) -> None:
    """Raises INVALID_ARGUMENT with all that is wrong, where anything is."""
    violations = list(found)
    if violations:
        raise VoxfleetError(
            Reason.INVALID_ARGUMENT,
            "; ".join(f"{violation.field}: {violation.description}" for violation in violations),
            kind=Kind.INVALID,
            violations=violations,
        )


def speaking_parameters(p: synthesis_pb2.SynthesisParameters) -> tasks.SpeakingParameters:
    """How to speak, with defaults filled in. Style and lexicons are names, which others resolve."""
    gate = p.quality
    return tasks.SpeakingParameters(
        steps=p.steps or limits.PRESETS.get(p.preset, limits.PRESETS[limits.DEFAULT_PRESET]),
        speed=p.speed or 1.0,
        seed=p.seed,
        cfg_strength=p.cfg_strength or 2.0,
        duration_s=p.duration_s,
        language=p.language,
        pitch_shift=p.pitch_shift,
        loudness_lufs=p.loudness_lufs if p.HasField("loudness_lufs") else None,
        verbatim=p.verbatim,
        word_timestamps=p.word_timestamps,
        quality=tasks.QualityGate(
            max_word_error_rate=gate.max_word_error_rate,
            min_similarity=gate.min_similarity,
            **({"tries": gate.tries} if gate.tries else {}),
        )
        if p.HasField("quality")
        else None,
    )


def conversion_parameters(p: synthesis_pb2.ConversionParameters) -> tasks.ConversionParameters:
    """How to convert, with defaults filled in."""
    given = {
        name: getattr(p, name)
        for name in ("pitch_shift", "index_rate", "filter_radius", "rms_mix_rate", "protect")
        if p.HasField(name)
    }
    return tasks.ConversionParameters(f0_method=p.f0_method, seed=p.seed, auto_pitch=p.auto_pitch, **given)


def conversion_of_speech(p: synthesis_pb2.SynthesisParameters) -> tasks.ConversionParameters:
    """How a text that was spoken is converted: the pitch that was asked of its speech is moved then."""
    found = conversion_parameters(p.conversion)
    return found.model_copy(update={"pitch_shift": found.pitch_shift + p.pitch_shift})


def output_of(output: synthesis_pb2.OutputFormat) -> tasks.Output:
    """How the audio is to come; an unknown format, which :func:`output_faults` names, is WAV."""
    return tasks.Output.model_validate(
        {
            "format": _FORMATS.get(output.format, "wav"),
            "rate_hz": output.rate_hz,
            "bitrate_kbps": output.bitrate_kbps,
        }
    )


def format_of(name: str) -> synthesis_pb2.AudioFormat.ValueType:
    """A format on the wire, by the name that :func:`output_of` gives it."""
    return next(number for number, known in _FORMATS.items() if known == name and number)


def _within(field: str, value: float, limits: tuple[float, float]) -> Iterator[FieldViolation]:
    low, high = limits
    # So written, it refuses what is not a number too.
    if not low <= value <= high:
        yield FieldViolation(field, f"must be from {low:g} to {high:g}, not {value:g}")


def _gate_faults(gate: synthesis_pb2.QualityGate, field: str) -> Iterator[FieldViolation]:
    yield from _within(f"{field}.max_word_error_rate", gate.max_word_error_rate, (0.0, 1.0))
    yield from _within(f"{field}.min_similarity", gate.min_similarity, (0.0, 1.0))
    if gate.tries:
        yield from _within(f"{field}.tries", gate.tries, limits.TRIES)


def _lexicon_faults(lexicons: Sequence[str], field: str) -> Iterator[FieldViolation]:
    # Their names are judged where they are resolved: one that is wrong fails its item alone.
    if len(lexicons) > limits.MAX_LEXICONS:
        yield FieldViolation(field, f"has at most {limits.MAX_LEXICONS} lexicons, not {len(lexicons)}")
    if len(set(lexicons)) < len(lexicons):
        yield FieldViolation(field, "names a lexicon twice")
