"""The words that people use for the API's enumerations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Final

from voxfleet.client.errors import InvalidArgument
from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2, trust_pb2, voice_pb2


def _words(items: Iterable[tuple[str, int]], prefix: str) -> dict[str, int]:
    return {name.removeprefix(prefix).lower(): number for name, number in items if number}


AUDIO_PURPOSES: Final = _words(audio_pb2.AudioPurpose.items(), "AUDIO_PURPOSE_")
AUDIO_FORMATS: Final = _words(synthesis_pb2.AudioFormat.items(), "AUDIO_FORMAT_")
VOICE_EXPORT_FORMATS: Final = _words(voice_pb2.VoiceExportFormat.items(), "VOICE_EXPORT_FORMAT_")
ROLES: Final = _words(trust_pb2.Role.items(), "ROLE_")

FINAL_STATES: Final = frozenset(
    {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_CANCELLED}
)


def enum_value(words: Mapping[str, int], word: str, field: str) -> int:
    """The number of a word; raises InvalidArgument for one that is none of them."""
    try:
        return words[word.lower()]
    except KeyError:
        raise InvalidArgument(
            f"{field} must be one of {', '.join(words)}, not {word!r}", reason="INVALID_ARGUMENT"
        ) from None
