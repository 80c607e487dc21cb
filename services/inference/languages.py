"""Which of the bundles that a replica holds speaks a text."""

from __future__ import annotations

from collections.abc import Sequence

from services.common.errors import Reason, invalid
from services.common.jobs.tasks import F5Voice, SpeakingParameters
from services.common.licences import check_licence, is_allowed
from services.inference.calls import EngineFacts, Speaking


def language_of(parameters: SpeakingParameters, voice: F5Voice) -> str:
    """BCP-47: what a request asks for, else the voice's own first; empty where neither says."""
    return parameters.language or next(iter(voice.languages), "")


def bundle_for(language: str, facts: EngineFacts, allowed: Sequence[str] = ()) -> Speaking:
    """The first bundle that was made for a language and that the team may use.

    Args:
        language: BCP-47, of which the primary subtag counts; the default bundle where it is empty.
        facts: of the replica.
        allowed: licences that the team may use; any where there are none.

    Errors: UNSUPPORTED_LANGUAGE with ``language`` and ``supported_languages``; LICENCE_NOT_ALLOWED where what
    speaks it is under another licence.
    """
    able = speakers(language, facts)
    if not able:
        supported = ", ".join(dict.fromkeys(tag for one in facts.speaking for tag in one.languages))
        labels = ", ".join(one.weights.label for one in facts.speaking)
        broken = "".join(f"; {name} does not load: {why}" for name, why in facts.broken)
        raise invalid(
            Reason.UNSUPPORTED_LANGUAGE,
            f"the weights in use ({labels}) speak {supported}, not {language}{broken}",
            field="parameters.language",
            language=language,
            supported_languages=supported,
        )
    return first_allowed(able, allowed)


def first_allowed(bundles: Sequence[Speaking], allowed: Sequence[str]) -> Speaking:
    """The first of some bundles that a team may use. Errors: LICENCE_NOT_ALLOWED where there is none."""
    chosen = next((one for one in bundles if is_allowed(allowed, one.weights.licence)), bundles[0])
    check_licence(allowed, chosen.weights.licence, chosen.weights.name)
    return chosen


def speakers(language: str, facts: EngineFacts) -> Sequence[Speaking]:
    """The bundles that speak a language, the one to be preferred first; the default where it is empty."""
    if not language:
        return facts.speaking[:1]
    made_for = [one for one in facts.speaking if primary(language) in map(primary, one.languages)]
    # Of what nobody said which languages it is for, anything may be asked.
    return made_for or [one for one in facts.speaking if not one.languages]


def primary(tag: str) -> str:
    """The primary subtag of a BCP-47 tag (RFC 5646), in lower case: ``pt`` of ``pt-BR``."""
    return tag.partition("-")[0].lower()
