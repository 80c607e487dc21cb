"""The timeline of a recording that is spoken anew: phrases, slots and the track, as properties."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import TimedWord
from services.engines.f5 import respeaking
from services.engines.f5.respeaking import Phrase, assemble, phrases, text_of

RATE_HZ = 2_000
"""Nothing depends on it, and tracks of minutes are checked quickly."""


def said(*words: tuple[str, float, float]) -> list[TimedWord]:
    return [TimedWord(text=text, start_s=start_s, end_s=end_s) for text, start_s, end_s in words]


def letters(seconds_each: float):
    """As long as its letters at so many seconds each, and a quarter of a second at least."""
    return lambda text: round(max(0.25, seconds_each * len(text)) * RATE_HZ)


@st.composite
def recordings(draw) -> tuple[list[TimedWord], int]:
    """Words that come one after another, with pauses of any length, and the recording's samples."""
    at_s, words = draw(st.floats(0.0, 3.0)), []
    for _ in range(draw(st.integers(1, 40))):
        text = draw(
            st.sampled_from(["a", "word", "sentence.", "clause,", "long-winded", "Dr.", "你好", "«Так!»"])
        )
        lasts_s = draw(st.floats(0.0, 1.5))
        words.append(TimedWord(text=text, start_s=at_s, end_s=at_s + lasts_s))
        at_s += lasts_s + draw(st.sampled_from([0.0, 0.0, 0.01, 0.2, 0.36, 2.0]))
    return words, round((at_s + draw(st.floats(0.0, 2.0))) * RATE_HZ)


def _unless_too_short(make):
    """What is made; nothing, where the refusal says that more time is needed than there is."""
    try:
        return make()
    except VoxfleetError as error:
        reason, needed_s, has_s = error.reason, error.metadata["min_s"], error.metadata["duration_s"]
    assert reason is Reason.SLOT_TOO_SHORT
    assert float(needed_s) > float(has_s)
    return ()


@given(recordings(), st.sampled_from([0.0, 0.01, 0.03, 0.1]))
def test_phrases_have_every_word_in_order_and_slots_that_hold_them(recording, seconds_each) -> None:
    words, samples = recording
    least = letters(seconds_each)
    found = _unless_too_short(lambda: phrases(words, samples, RATE_HZ, least))
    if found:
        assert [word.text for phrase in found for word in phrase.words] == [word.text for word in words]
    before = 0
    for phrase in found:
        assert before <= phrase.first <= phrase.last <= samples
        assert phrase.samples >= least(phrase.text)
        assert phrase.first <= round(phrase.words[0].start_s * RATE_HZ)
        assert phrase.last >= min(round(phrase.words[-1].end_s * RATE_HZ), samples)
        span_s = phrase.words[-1].end_s - phrase.words[0].start_s
        assert len(phrase.words) == 1 or span_s <= respeaking.LONGEST_S
        before = phrase.last


@given(recordings())
def test_what_needs_no_more_time_keeps_its_own(recording) -> None:
    words, samples = recording
    found = phrases(words, samples, RATE_HZ, lambda _: 0)
    for phrase in found:
        assert phrase.first == min(round(phrase.words[0].start_s * RATE_HZ), samples)
        assert phrase.last == min(round(phrase.words[-1].end_s * RATE_HZ), samples)
    pauses = [after.start_s - before.end_s for before, after in itertools.pairwise(words)]
    assert len(found) > sum(pause >= respeaking.PAUSE_S + 1e-6 for pause in pauses), "each pause parts two"


@given(
    st.lists(
        st.builds(
            TimedWord,
            text=st.text(max_size=8),
            start_s=st.floats(-5.0, 30.0),
            end_s=st.floats(-5.0, 30.0),
        ),
        max_size=20,
    ),
    st.integers(0, 20 * RATE_HZ),
)
def test_whatever_a_recogniser_says_nothing_overlaps(words, samples) -> None:
    found = phrases(words, samples, RATE_HZ, lambda _: 0)
    spoken = [word.text for word in words if any(char.isalnum() for char in word.text)]
    assert [word.text for phrase in found for word in phrase.words] == spoken
    edges = [edge for phrase in found for edge in (phrase.first, phrase.last)]
    assert edges == sorted(edges)
    assert all(0 <= edge <= samples for edge in edges)


@given(recordings(), st.data())
def test_a_track_is_exactly_as_long_and_silent_between(recording, data) -> None:
    words, samples = recording
    found = phrases(words, samples, RATE_HZ, lambda _: 0)
    lengths = [data.draw(st.integers(0, phrase.samples + 50)) for phrase in found]
    parts = [(phrase, np.ones(length, np.float32)) for phrase, length in zip(found, lengths, strict=True)]
    track = assemble(parts, samples, RATE_HZ)
    assert track.shape == (samples,)
    assert track.dtype == np.float32
    within = np.zeros(samples, bool)
    for phrase, length in zip(found, lengths, strict=True):
        within[phrase.first : phrase.first + min(length, phrase.samples)] = True
    assert not track[~within].any()
    # From silence into sound and back without a click: no step is larger than the fade's own.
    fade = round(respeaking.FADE_S * RATE_HZ)
    for phrase, length in zip(found, lengths, strict=True):
        kept = min(length, phrase.samples)
        if kept > 2 * fade:
            part = np.concatenate([[0.0], track[phrase.first : phrase.first + kept], [0.0]])
            assert np.abs(np.diff(part)).max() <= 1.01 / fade
            assert part.max() == 1.0


def test_pauses_and_sentences_part_phrases() -> None:
    words = said(
        ("One", 0.5, 1.0),
        ("two,", 1.1, 1.5),
        ("three.", 1.5, 2.2),
        ("Four", 2.25, 2.6),
        ("five", 3.0, 3.5),
    )
    found = phrases(words, 5 * RATE_HZ, RATE_HZ, letters(0.01))
    assert [phrase.text for phrase in found] == ["One two, three.", "Four", "five"]
    assert [(phrase.first, phrase.last) for phrase in found] == [
        (1_000, 4_400),
        (4_500, 5_200),
        (6_000, 7_000),
    ]


def test_an_abbreviation_is_no_sentence() -> None:
    found = phrases(said(("Dr.", 0.0, 0.3), ("Who", 0.3, 0.8)), RATE_HZ, RATE_HZ, letters(0.01))
    assert [phrase.text for phrase in found] == ["Dr. Who"]


def test_a_long_phrase_is_parted_at_a_clause_near_its_middle() -> None:
    words = said(*((f"w{n}{',' if n == 17 else ''}", 0.5 * n, 0.5 * n + 0.5) for n in range(30)))
    first, second = phrases(words, 15 * RATE_HZ, RATE_HZ, letters(0.01))
    assert first.text.endswith("w17,")
    assert second.text.startswith("w18")


def test_a_phrase_borrows_of_the_pause_after_it_then_of_the_one_before() -> None:
    words = said(("one", 1.0, 1.5), ("two", 3.0, 3.5))

    def slots(least: dict[str, float], samples: int = 5 * RATE_HZ) -> list[tuple[float, float]]:
        found = phrases(words, samples, RATE_HZ, lambda text: round(least[text] * RATE_HZ))
        return [(phrase.first / RATE_HZ, phrase.last / RATE_HZ) for phrase in found]

    assert slots({"one": 1.5, "two": 0.4}) == [(1.0, 2.5), (3.0, 3.5)]
    assert slots({"one": 2.5, "two": 0.4}) == [(0.5, 3.0), (3.0, 3.5)]
    assert slots({"one": 0.5, "two": 1.6}, 4 * RATE_HZ) == [(1.0, 1.5), (2.4, 4.0)]
    assert slots({"one": 3.2, "two": 0.4, "one two": 3.5}) == [(1.0, 4.5)], "spoken with one that has time"


def test_what_cannot_be_said_so_fast_says_what_and_how_long_it_takes() -> None:
    words = said(("Impossible.", 10.0, 10.2), ("Slow", 14.0, 18.0))
    with pytest.raises(VoxfleetError) as caught:
        phrases(words, 19 * RATE_HZ, RATE_HZ, lambda text: 20 * RATE_HZ if "Imp" in text else 0)
    error = caught.value
    assert error.reason is Reason.SLOT_TOO_SHORT
    assert error.metadata["phrase"].startswith("Impossible.")
    assert (error.metadata["min_s"], error.metadata["max_s"]) == ("20.0", "300.0")
    assert float(error.metadata["duration_s"]) < 20


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["re", "-entered", "it"], "re-entered it"),
        (["secondo", "l", "'ordine"], "secondo l'ordine"),
        (["你", "好", "Bob", "吗"], "你好 Bob 吗"),
        (["안녕", "하세요"], "안녕 하세요"),
        (["  one ", "two."], "one two."),
    ],
)
def test_words_are_joined_as_their_script_has_it(words: list[str], text: str) -> None:
    assert text_of(said(*((word, 0.0, 1.0) for word in words))) == text


def test_audio_that_overruns_its_slot_is_cut() -> None:
    phrase = Phrase((), "x", 100, 1100)
    track = assemble([(phrase, np.ones(5000, np.float32))], 2000, RATE_HZ)
    assert not track[1100:].any()
    assert track[600] == 1.0


def test_nothing_said_is_no_phrase() -> None:
    assert phrases([], RATE_HZ, RATE_HZ, letters(0.1)) == ()
    assert phrases(said(("…", 0.1, 0.2)), RATE_HZ, RATE_HZ, letters(0.1)) == ()
