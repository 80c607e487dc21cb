"""Seeds of requests that name none."""

from __future__ import annotations

import secrets

from services.common.jobs.tasks import SpeakingParameters
from services.common.limits import MAX_SEED


def seeded(parameters: SpeakingParameters) -> SpeakingParameters:
    """The same, with a seed that is not 0: chosen here, so that a second try elsewhere says the same."""
    if parameters.seed:
        return parameters
    return parameters.model_copy(update={"seed": secrets.randbelow(MAX_SEED) + 1})
