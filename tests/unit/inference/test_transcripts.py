import pytest

from services.common.errors import Reason, VoxfleetError
from services.inference.app.transcripts import check_transcript
from services.inference.calls import EngineFacts, Weights
from services.inference.model import Role

FACTS = EngineFacts(
    Role.F5, Weights("w", trained=True, licence="MIT"), ("en",), "cpu", 1, "n", 1, frozenset(" abc.,'é")
)


@pytest.mark.parametrize("text", ["abc.", "a; b", "a ’ b", "a\u200bb", "ce\u0301b", "中文 a"])
def test_what_the_weights_can_read_is_let_through(text):
    check_transcript(text, FACTS, field="t")


def test_unknown_characters_are_listed_each_once():
    with pytest.raises(VoxfleetError) as caught:
        check_transcript("a☃b☃ж", FACTS, field="voice.references[0].text")
    assert caught.value.reason is Reason.UNSUPPORTED_CHARACTERS
    assert caught.value.metadata == {"characters": "☃ ж", "count": "2"}
    assert caught.value.violations[0].field == "voice.references[0].text"


def test_nothing_is_judged_before_weights_are_loaded():
    check_transcript("☃", None, field="t")
