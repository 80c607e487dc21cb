"""How far apart two texts are."""

import pytest

from services.engines.whisper.scoring import character_error_rate, normalise, word_error_rate, words_in


@pytest.mark.parametrize(
    ("reference", "hypothesis", "rate"),
    [
        ("Please hold, and don't hang up.", "please hold and dont hang up", 0.0),
        ("one two three four", "one three four", 0.25),
        ("one two three four", "one two too three for", 0.5),
        ("one", "two three four", 3.0),
        ("", "", 0.0),
        ("", "two words", 2.0),
        ("words", "", 1.0),
        ("今天天气好。", "今天天气很好", 0.2),
    ],
)
def test_word_error_rate(reference, hypothesis, rate):
    assert word_error_rate(reference, hypothesis) == pytest.approx(rate)


def test_normalising_keeps_letters_of_any_script():
    assert normalise("¿Qué TAL?  Ёлка—ель_2") == "qué tal ёлка ель 2"
    assert normalise("नमस्ते, दुनिया!") == "नमस्ते दुनिया", "vowel signs belong to their letters"


def test_characters_of_unspaced_scripts_are_words():
    assert words_in("Ok, 你好。カタ") == ["ok", "你", "好", "カ", "タ"]


def test_a_word_that_is_nearly_right_is_nearly_right():
    assert character_error_rate("over there", "overt here") == 0.0, "spaces are no letters"
    assert character_error_rate("the black cat", "the blask cat") == pytest.approx(1 / 11)
    assert word_error_rate("the black cat", "the blask cat") == pytest.approx(1 / 3)
