"""Whose the names in a request are: those of another team are answered as if they did not exist."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Final

from google.protobuf import message

from services.common import names
from services.common.errors import Reason, not_found
from services.common.rpc.caller import Caller

_NOT_FOUND: Final = {
    "audios": Reason.AUDIO_NOT_FOUND,
    "uploads": Reason.UPLOAD_NOT_FOUND,
    "voices": Reason.VOICE_NOT_FOUND,
    "lexicons": Reason.LEXICON_NOT_FOUND,
    "jobs": Reason.JOB_NOT_FOUND,
    "quota": Reason.TEAM_NOT_FOUND,
}

NAMES: Final[dict[str, dict[str, str]]] = {
    "ResumeUpload": {"upload": "uploads"},
    "GetUploadRequest": {"name": "uploads"},
    "GetAudioRequest": {"name": "audios"},
    "AnalyzeAudioRequest": {"name": "audios"},
    "DownloadAudioRequest": {"name": "audios"},
    "GetDownloadUrlRequest": {"name": "audios"},
    "DeleteAudioRequest": {"name": "audios"},
    "CreateVoiceRequest": {"voice.references[].audio": "audios"},
    "TrainVoiceRequest": {"audios[]": "audios", "depends_on[]": "jobs"},
    "ImportVoiceRequest": {"model_file": "audios", "index_file?": "audios"},
    "ExportVoiceRequest": {"name": "voices"},
    "GetVoiceRequest": {"name": "voices"},
    "UpdateVoiceRequest": {"voice.name": "voices"},
    "DeleteVoiceRequest": {"name": "voices"},
    "UndeleteVoiceRequest": {"name": "voices"},
    "ListCheckpointsRequest": {"parent": "voices"},
    "SynthesizeRequest": {
        "voice": "voices",
        "parameters.speaker?": "voices",
        "parameters.lexicons[]": "lexicons",
    },
    "ConvertAudioRequest": {
        "audios[]": "audios",
        "voice": "voices",
        "depends_on[]": "jobs",
        "parameters.speaking.lexicons[]": "lexicons",
    },
    "BatchSynthesizeRequest": {
        "depends_on[]": "jobs",
        "parameters.speaker?": "voices",
        "parameters.lexicons[]": "lexicons",
    },
    "GetLexiconRequest": {"name": "lexicons"},
    "UpdateLexiconRequest": {"lexicon.name": "lexicons"},
    "DeleteLexiconRequest": {"name": "lexicons"},
    "GetJobRequest": {"name": "jobs"},
    "WatchJobRequest": {"name": "jobs"},
    "CancelJobRequest": {"name": "jobs"},
    "PauseJobRequest": {"name": "jobs"},
    "ResumeJobRequest": {"name": "jobs"},
    "RetryJobRequest": {"name": "jobs"},
    "UpdateJobRequest": {"job.name": "jobs"},
    "ExplainJobRequest": {"name": "jobs"},
    "DeleteWebhookRequest": {"name": "webhooks"},
    "GetQuotaRequest": {"name": "quota"},
    "UpdateQuotaRequest": {"quota.name": "quota"},
    "DrainNodeRequest": {"name": "nodes"},
    "ResumeNodeRequest": {"name": "nodes"},
    "RevokeApiKeyRequest": {"name": "apiKeys"},
    "VerifyProvenanceRequest": {"audio": "audios"},
}
"""Which fields of which request hold which names: a dot goes into a message, [] over a list, and what ends
in ? may be empty."""

# An operator works for every team in these.
_OPERATOR_REQUESTS: Final = frozenset(
    {
        "CreateApiKeyRequest",
        "ListApiKeysRequest",
        "RevokeApiKeyRequest",
        "GetQuotaRequest",
        "UpdateQuotaRequest",
        "GetUsageRequest",
    }
)


def check_names(request: message.Message, caller: Caller) -> None:
    """Refuses names that are none, or another team's.

    Errors: INVALID_ARGUMENT; the NOT_FOUND reason of what is named.
    """
    kind = request.DESCRIPTOR.name
    any_team = caller.operator and kind in _OPERATOR_REQUESTS
    fields = NAMES.get(kind, {})
    for path, collection in fields.items():
        for field, value in _values(request, path):
            team = _team_of(value, collection, field)
            if team is not None and team != caller.team and not any_team:
                raise not_found(_NOT_FOUND.get(collection, Reason.INVALID_ARGUMENT), value)
    if "parent" in request.DESCRIPTOR.fields_by_name and "parent" not in fields:
        parent = str(getattr(request, "parent"))  # noqa: B009 - the descriptor says that it is there
        if names.parse_team(parent) != caller.team and not any_team:
            raise not_found(Reason.TEAM_NOT_FOUND, parent)


def _team_of(value: str, collection: str, field: str) -> str | None:
    """Whose a name is; None for a node, which is nobody's. Errors: INVALID_ARGUMENT."""
    match collection:
        case "quota":
            return names.parse_quota(value, field=field)
        case "nodes":
            names.parse_node(value, field=field)
            return None
        case _:
            return names.parse(value, collection, field=field).team


def _values(found: Any, path: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    head, _, rest = path.partition(".")
    field = head.removesuffix("[]").removesuffix("?")
    value = getattr(found, field)
    if head.endswith("?") and not value:
        return
    parts = enumerate(value) if head.endswith("[]") else ((None, value),)
    for number, part in parts:
        label = f"{prefix}{field}" if number is None else f"{prefix}{field}[{number}]"
        if rest:
            yield from _values(part, rest, f"{label}.")
        else:
            yield label, part
