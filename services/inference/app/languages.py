"""Which languages a set of weights speaks."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import Reason, invalid
from services.inference.calls import EngineFacts


def check_language(asked: str, of_voice: Sequence[str], facts: EngineFacts) -> None:
    """Refuses a language that the loaded weights were not made for.

    Args:
        asked: in the request, or empty.
        of_voice: the voice's own; its first counts where none is asked for.
        facts: of the replica.

    Errors: UNSUPPORTED_LANGUAGE with ``language`` and ``supported_languages``.
    """
    language = asked or next(iter(of_voice), "")
    if not language or not facts.languages:
        return
    primary = {tag.partition("-")[0].lower() for tag in facts.languages}
    if language.partition("-")[0].lower() not in primary:
        supported = ", ".join(facts.languages)
        raise invalid(
            Reason.UNSUPPORTED_LANGUAGE,
            f"the weights {facts.weights.label} speak {supported}, not {language}",
            field="parameters.language",
            language=language,
            supported_languages=supported,
        )
