"""Which service answers which public method. A method that is not here is not built yet."""

from __future__ import annotations

import enum
from typing import Final


class Backend(enum.Enum):
    """A service behind the gateway."""

    METADATA = "metadata"
    AUDIO = "audio"
    INFERENCE = "inference"


SERVICES: Final = (
    "AudioService",
    "VoiceService",
    "SynthesisService",
    "LexiconService",
    "DubbingService",
    "JobService",
    "FleetService",
    "TrustService",
)
"""Every public service; all are registered, so that reflection shows them all."""

ROUTES: Final[dict[str, dict[str, Backend]]] = {
    "AudioService": {
        "UploadAudio": Backend.AUDIO,
        "GetUpload": Backend.AUDIO,
        "AnalyzeAudio": Backend.AUDIO,
        "DownloadAudio": Backend.AUDIO,
        "GetDownloadUrl": Backend.AUDIO,
        "GetAudio": Backend.METADATA,
        "ListAudios": Backend.METADATA,
        "DeleteAudio": Backend.METADATA,
    },
    "VoiceService": {
        # Inference knows what its engine can read of a transcript; it hands on to metadata.
        "CreateVoice": Backend.INFERENCE,
        "TrainVoice": Backend.METADATA,
        "ImportVoice": Backend.METADATA,
        "ExportVoice": Backend.METADATA,
        "GetVoice": Backend.METADATA,
        "ListVoices": Backend.METADATA,
        "UpdateVoice": Backend.METADATA,
        "DeleteVoice": Backend.METADATA,
        "UndeleteVoice": Backend.METADATA,
        "ListCheckpoints": Backend.METADATA,
    },
    "SynthesisService": {
        "Synthesize": Backend.INFERENCE,
        "ListEngines": Backend.INFERENCE,
        "ListBundles": Backend.INFERENCE,
        "ImportBundle": Backend.INFERENCE,
        "BatchSynthesize": Backend.METADATA,
        "ConvertAudio": Backend.METADATA,
        "PullBundle": Backend.METADATA,
    },
    "LexiconService": {
        "CreateLexicon": Backend.METADATA,
        "GetLexicon": Backend.METADATA,
        "ListLexicons": Backend.METADATA,
        "UpdateLexicon": Backend.METADATA,
        "DeleteLexicon": Backend.METADATA,
    },
    "JobService": {
        "GetJob": Backend.METADATA,
        "ListJobs": Backend.METADATA,
        "WatchJob": Backend.METADATA,
        "CancelJob": Backend.METADATA,
        "PauseJob": Backend.METADATA,
        "ResumeJob": Backend.METADATA,
        "RetryJob": Backend.METADATA,
        "UpdateJob": Backend.METADATA,
        "CreateWebhook": Backend.METADATA,
        "ListWebhooks": Backend.METADATA,
        "DeleteWebhook": Backend.METADATA,
        "ExplainJob": Backend.METADATA,
    },
    "FleetService": {
        "GetFleet": Backend.METADATA,
        "ListQueues": Backend.METADATA,
        "GetQuota": Backend.METADATA,
        "UpdateQuota": Backend.METADATA,
        "GetUsage": Backend.METADATA,
        "DrainNode": Backend.METADATA,
        "ResumeNode": Backend.METADATA,
        "PlanRetention": Backend.METADATA,
    },
    "TrustService": {
        "CreateTeam": Backend.METADATA,
        "UpdateTeam": Backend.METADATA,
        "ListTeams": Backend.METADATA,
        "CreateApiKey": Backend.METADATA,
        "ListApiKeys": Backend.METADATA,
        "RevokeApiKey": Backend.METADATA,
        # Inference knows the mark that it makes.
        "VerifyProvenance": Backend.INFERENCE,
    },
}
