"""Which of a replica's bundles speaks what."""

import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import SpeakingParameters
from services.inference.calls import EngineFacts, Speaking, Weights
from services.inference.languages import bundle_for, language_of
from services.inference.model import Role
from tests.unit.inference.fakes import VOICE


def speaking(name: str, *languages: str, licence: str = "MIT") -> Speaking:
    return Speaking(Weights(name, trained=True, licence=licence), languages)


def holding(*bundles: Speaking, broken: tuple[tuple[str, str], ...] = ()) -> EngineFacts:
    return EngineFacts(Role.F5, bundles[0].weights, "cpu", 1, "n", 1, bundles, broken)


BASE = speaking("base", "en", "zh", licence="CC-BY-NC-4.0")
GERMAN = speaking("german", "de", "en")
FREE = speaking("free", "en-GB", "pt-BR")
UNTOLD = speaking("untold")


@pytest.mark.parametrize(
    ("language", "allowed", "chosen"),
    [
        ("", (), BASE),
        ("en", (), BASE),
        ("en-US", (), BASE),
        ("ZH", (), BASE),
        ("de-AT", (), GERMAN),
        ("pt", (), FREE),
        ("en", ("MIT",), GERMAN),
    ],
)
def test_the_first_that_has_the_language_and_is_allowed_speaks(language, allowed, chosen):
    assert bundle_for(language, holding(BASE, GERMAN, FREE), allowed) is chosen


@pytest.mark.parametrize(("language", "chosen"), [("ru", UNTOLD), ("en", BASE), ("", BASE)])
def test_what_nobody_said_the_languages_of_speaks_what_no_other_does(language, chosen):
    assert bundle_for(language, holding(BASE, UNTOLD)) is chosen


def test_another_language_is_refused_with_all_that_are_spoken():
    with pytest.raises(VoxfleetError) as caught:
        bundle_for("ru", holding(BASE, GERMAN, broken=(("f5-russian", "vocab.txt is torn"),)))
    assert caught.value.reason is Reason.UNSUPPORTED_LANGUAGE
    assert caught.value.metadata["supported_languages"] == "en, zh, de"
    assert "f5-russian does not load: vocab.txt is torn" in caught.value.message


@pytest.mark.parametrize(("language", "named"), [("zh", "base"), ("de", "german"), ("", "base")])
def test_a_licence_that_is_not_allowed_is_refused_by_name(language, named):
    with pytest.raises(VoxfleetError) as caught:
        bundle_for(language, holding(BASE, GERMAN), ("Apache-2.0",))
    assert caught.value.reason is Reason.LICENCE_NOT_ALLOWED
    assert caught.value.metadata["weights"] == named


@pytest.mark.parametrize(
    ("asked", "of_voice", "language"), [("de", ("en",), "de"), ("", ("en", "de"), "en"), ("", (), "")]
)
def test_a_request_goes_before_its_voice(asked, of_voice, language):
    voice = VOICE.model_copy(update={"languages": of_voice})
    assert language_of(SpeakingParameters(language=asked), voice) == language
