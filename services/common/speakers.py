"""Who speaks a text that is wanted in a trained voice: what is wrong with what a request says of it."""

from __future__ import annotations

from services.common.errors import Reason, VoxfleetError, invalid

SPEAKER_FIELD = "parameters.speaker"


def check_unconverted(voice: str, speaker: str, *, has_conversion: bool) -> None:
    """Refuses, for a zero-shot voice, what only trained ones heed: it would be passed over in silence.

    Args:
        voice: its name.
        speaker: the request's.
        has_conversion: whether the request says how to convert.

    Errors: INVALID_ARGUMENT.
    """
    for field, given in ((SPEAKER_FIELD, bool(speaker)), ("parameters.conversion", has_conversion)):
        if given:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"{voice} speaks by itself: {field} is of texts in a trained voice; leave it out",
                field=field,
            )


def check_own(voice: str, style: str, *, has_recording: bool) -> None:
    """Whether a trained voice can be spoken from its own recordings.

    Args:
        voice: its name.
        style: the request's; recordings have none.
        has_recording: whether one that it was trained on is still there.

    Errors: INVALID_ARGUMENT.
    """
    if style:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"{voice} is a trained voice and has no styles: name a zero-shot voice in {SPEAKER_FIELD}, or "
            "leave the style out",
            field="parameters.style",
        )
    if not has_recording:
        raise no_speaker(voice, "has no recording left that it was trained on")


def no_speaker(voice: str, why: str) -> VoxfleetError:
    """The error of a trained voice that nobody can speak for."""
    return invalid(
        Reason.INVALID_ARGUMENT,
        f"{voice} {why}: name a zero-shot voice that is to speak for it in {SPEAKER_FIELD}",
        field=SPEAKER_FIELD,
    )
