"""Why a file is not taken: the errors of decoding, with the metadata that each reason documents."""

from __future__ import annotations

from services.common.errors import Reason, VoxfleetError, invalid
from services.common.media.formats import SUPPORTED_FORMATS


def invalid_format(detail: str) -> VoxfleetError:
    """INVALID_FORMAT that says what is wrong with the file and what would be taken."""
    return invalid(
        Reason.INVALID_FORMAT,
        f"the audio file cannot be used: {detail}. Supported formats: {SUPPORTED_FORMATS}",
        user_message="This audio file cannot be read. Please export it again, for example as WAV or FLAC.",
        supported_formats=SUPPORTED_FORMATS,
        detail=detail,
    )


def too_long(duration_s: float, max_duration_s: float) -> VoxfleetError:
    """AUDIO_TOO_LONG, found in the header or while decoding."""
    return invalid(
        Reason.AUDIO_TOO_LONG,
        f"the audio lasts at least {duration_s:.1f} s; at most {max_duration_s:g} s are taken: split it",
        max_duration_s=f"{max_duration_s:g}",
        duration_s=f"{duration_s:.1f}",
    )


def empty(detail: str) -> VoxfleetError:
    """AUDIO_EMPTY: a file without a single sample."""
    return invalid(Reason.AUDIO_EMPTY, f"there is no audio in the file: {detail}", detail=detail)


def too_large(size_bytes: int, max_size_bytes: int) -> VoxfleetError:
    """FILE_TOO_LARGE, before the file is opened."""
    return invalid(
        Reason.FILE_TOO_LARGE,
        f"the file has {size_bytes / 2**20:.1f} MB; at most {max_size_bytes / 2**20:g} MB are taken",
        max_size_mb=f"{max_size_bytes / 2**20:g}",
        size_mb=f"{size_bytes / 2**20:.1f}",
    )
