import pytest

from services.common.errors import Reason, VoxfleetError
from services.inference.app.transcripts import check_transcript
from services.inference.calls import EngineFacts, Speaking, Weights
from services.inference.model import Role

ENGLISH = Weights("w", trained=True, licence="MIT")
RUSSIAN = Weights("r", trained=True, licence="MIT")
FACTS = EngineFacts(
    *(Role.F5, ENGLISH, "cpu", 1, "n", 1),
    speaking=(
        Speaking(ENGLISH, ("en",), frozenset(" abc.,'é")),
        Speaking(RUSSIAN, ("ru",), frozenset(" ж")),
    ),
)


@pytest.mark.parametrize("text", ["abc.", "a; b", "a ’ b", "a\u200bb", "ce\u0301b", "中文 a"])
def test_what_the_weights_can_read_is_let_through(text):
    check_transcript(text, "", FACTS, field="t")


def test_unknown_characters_are_listed_each_once():
    with pytest.raises(VoxfleetError) as caught:
        check_transcript("a☃b☃ж", "en", FACTS, field="voice.references[0].text")
    assert caught.value.reason is Reason.UNSUPPORTED_CHARACTERS
    assert caught.value.metadata == {"characters": "☃ ж", "count": "2"}
    assert caught.value.violations[0].field == "voice.references[0].text"


def test_nothing_is_judged_before_weights_are_loaded():
    check_transcript("☃", "en", None, field="t")


def test_a_transcript_is_read_by_the_weights_of_its_language():
    check_transcript("ж", "ru-RU", FACTS, field="t")
    with pytest.raises(VoxfleetError, match="the weights r do not know"):
        check_transcript("a", "ru", FACTS, field="t")
    # A voice of another language may still speak one that is spoken; its clip is then read by the default.
    with pytest.raises(VoxfleetError, match="the weights w do not know"):
        check_transcript("ж", "cs", FACTS, field="t")
