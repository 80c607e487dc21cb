"""Which stretch of a recording is spoken from."""

import pytest

from services.common.jobs.tasks import TimedWord
from services.engines.whisper.excerpts import best_stretch


def said(text, start_s=0.0, word_s=0.5, gap_s=0.1):
    words = []
    for word in text.split():
        words.append(TimedWord(text=word, start_s=start_s, end_s=start_s + word_s))
        start_s += word_s + gap_s
    return words


def test_whole_sentences_are_preferred():
    words = [*said("so it ends. " + "word " * 11 + "done.", 0.0), *said("and then some more of it", 9.5)]
    found = best_stretch(words, 14.0)
    assert found.text.endswith("done.")
    assert found.end_s - found.start_s <= 11.5


def test_a_long_silence_parts_stretches():
    words = [*said("one two three four five six."), *said("seven eight", 30.0)]
    found = best_stretch(words, 40.0)
    assert found.text == "one two three four five six."
    assert 0.0 <= found.start_s < found.end_s < 5.0


def test_a_breath_around_it_is_never_the_next_word():
    words = [*said("a b c d e f g h."), *said("next", 4.75)]
    found = best_stretch(words, 6.0)
    last = found.words[-1]
    following = words[words.index(last) + 1 :]
    assert all(found.end_s <= word.start_s for word in following)


@pytest.mark.parametrize("words", [[], said("hi there"), [*said("a"), *said("b", 5.0), *said("c", 10.0)]])
def test_too_little_is_none(words):
    assert best_stretch(words, 20.0) is None


def test_it_is_never_longer_than_f5_takes():
    found = best_stretch(said("word " * 200), 130.0)
    assert 8.0 <= found.words[-1].end_s - found.words[0].start_s <= 11.0
