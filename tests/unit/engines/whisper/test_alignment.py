"""When each word of a known text is said."""

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.jobs.tasks import TimedWord
from services.common.media.resample import resample
from services.engines.whisper.alignment import silences, split, timed, words_of
from services.engines.whisper.asr import Recogniser, whisper_language

SPEECH = Path(__file__).parents[3] / "fixtures" / "speech"
RATE_HZ = 16_000


def said(*words: tuple[str, float, float]) -> list[TimedWord]:
    return [TimedWord(text=text, start_s=start_s, end_s=end_s) for text, start_s, end_s in words]


def times(text: str, heard: list[TimedWord], duration_s: float = 10.0) -> list[tuple[str, float, float]]:
    return [(word.text, word.start_s, word.end_s) for word in timed(text, heard, duration_s)]


def test_what_was_heard_well_keeps_its_times():
    heard = said(("please", 0.5, 0.9), ("hold", 1.0, 1.4))
    assert times("Please, hold!", heard) == [("Please,", 0.5, 0.9), ("hold!", 1.0, 1.4)]


def test_words_may_be_split_and_joined_in_the_ear():
    heard = said(("re", 0.0, 0.4), ("entered", 0.4, 1.0), ("PBX", 2.0, 2.9), ("nowhere", 3.0, 3.7))
    found = times("re-entered P.B.X. now here", heard)
    assert found[0] == ("re-entered", 0.0, 1.0)
    assert found[1] == ("P.B.X.", 2.0, 2.9)
    assert found[2] == ("now", 3.0, pytest.approx(3.3))
    assert found[3] == ("here", pytest.approx(3.3), 3.7)


def test_a_word_that_was_misheard_has_the_time_of_what_was_heard_for_it():
    heard = said(("call", 0.0, 0.5), ("fifteen", 1.0, 1.8), ("people", 2.0, 2.5))
    assert times("Call 15 people", heard)[1] == ("15", 1.0, 1.8)


def test_what_was_not_heard_shares_the_time_between_its_neighbours():
    heard = said(("before", 0.0, 1.0), ("after", 3.0, 4.0))
    assert times("before quiet words after", heard) == [
        ("before", 0.0, 1.0),
        ("quiet", 1.0, 2.0),
        ("words", 2.0, 3.0),
        ("after", 3.0, 4.0),
    ]


def test_what_nobody_said_is_passed_over():
    heard = said(("thank", 0.0, 0.3), ("you", 0.3, 0.5), ("hello", 1.0, 1.5), ("bye", 2.0, 2.5))
    assert times("Hello", heard) == [("Hello", 1.0, 1.5)]


def test_without_a_word_heard_the_text_fills_the_audio():
    assert times("two four", [], 2.0) == [
        ("two", 0.0, pytest.approx(0.857)),
        ("four", pytest.approx(0.857), 2.0),
    ]
    assert timed("", said(("you", 0.0, 0.5)), 2.0) == ()


def test_a_word_does_not_begin_in_silence_nor_run_through_it():
    heard = said(("again", 0.0, 0.6), ("You", 0.6, 1.9), ("may", 1.9, 2.2))
    words = timed("again. You may", heard, 3.0, [(0.8, 1.6), (2.5, 3.0)])
    assert [(word.start_s, word.end_s) for word in words] == [(0.0, 0.8), (1.6, 1.9), (1.9, 2.5)]


def test_texts_are_cut_into_words_as_they_are_written():
    assert split("“Hello” – said he, twice… 2×") == ["“Hello”", "said", "he,", "twice…", "2×"]
    assert split("他说：“你好。”ok") == ["他", "说：“", "你", "好。”", "ok"]


@settings(max_examples=150, deadline=None)
@given(
    text=st.text(alphabet="ab cd.é你", max_size=40),
    heard=st.lists(st.text(alphabet="abcdé你", min_size=1, max_size=4), max_size=12),
    edges=st.lists(st.floats(0, 9), min_size=24, max_size=24),
    quiet=st.lists(st.floats(0, 9), max_size=6),
)
def test_words_are_in_order_and_within_the_audio(text, heard, edges, quiet):
    edges.sort()
    words = said(*((word, edges[2 * n], edges[2 * n + 1]) for n, word in enumerate(heard)))
    quiet.sort()
    found = timed(text, words, 8.0, list(zip(quiet[::2], quiet[1::2], strict=False)))
    assert [word.text for word in found] == split(text)
    marks = [at for word in found for at in (word.start_s, word.end_s)]
    assert marks == sorted(marks)
    assert all(0.0 <= at <= 8.0 for at in marks)


# ---- on real speech


@pytest.fixture(scope="module")
def recogniser(whisper_dir):
    return Recogniser(whisper_dir)


@pytest.fixture(scope="module")
def manifest():
    return {entry["file"]: entry for entry in json.loads((SPEECH / "manifest.json").read_text())["files"]}


def sound(name: str) -> np.ndarray:
    samples, rate_hz = soundfile.read(SPEECH / name, dtype="float32")
    assert rate_hz == RATE_HZ
    return samples


def onset_s(samples: np.ndarray) -> float:
    """Where a clip that begins with silence begins to sound."""
    first = next(iter(silences(samples, RATE_HZ)), (1.0, 0.0))
    return first[1] if first[0] == 0.0 else 0.0


def test_known_joins_are_found(recogniser, manifest):
    """Ten recordings with a known gap between them: each one's first word begins where its sound does."""
    entry = manifest["target_en.flac"]
    samples = sound(entry["file"])
    words = words_of(recogniser, samples, RATE_HZ, entry["text"], "en-GB")
    assert [word.text for word in words] == entry["text"].split()
    assert words[-1].end_s <= len(samples) / RATE_HZ
    number, errors_s = 0, []
    for prompt in entry["prompts"]:
        own = samples[round(prompt["start_s"] * RATE_HZ) : round(prompt["end_s"] * RATE_HZ)]
        begins_s = prompt["start_s"] + onset_s(own)
        errors_s.append(abs(words[number].start_s - begins_s))
        number += len(prompt["text"].split())
        assert words[number - 1].end_s == pytest.approx(prompt["end_s"], abs=0.5)
    assert max(errors_s) <= 0.1
    assert max(abs(a.end_s - b.start_s) for a, b in itertools.pairwise(words)) < 2.0


@pytest.mark.parametrize("rate_hz", [16_000, 24_000])
def test_a_second_clip_begins_after_the_gap(recogniser, manifest, rate_hz):
    """The text says something else than Whisper hears: "Weasels", which it takes for other words."""
    first, second = manifest["clip_en_2.flac"], manifest["clip_en_3.flac"]
    one, two = sound(first["file"]), sound(second["file"])
    gap = np.zeros(round(0.7 * RATE_HZ), np.float32)
    joined = resample(np.concatenate([one, gap, two]), RATE_HZ, rate_hz)
    words = words_of(recogniser, joined[None].repeat(2, 0), rate_hz, f"{first['text']} {second['text']}")
    begins_s = (len(one) + len(gap)) / RATE_HZ + onset_s(two)
    weasels = next(word for word in words if word.text == "Weasels")
    assert weasels.start_s == pytest.approx(begins_s, abs=0.25)


def test_languages_that_whisper_does_not_know_are_left_to_it(recogniser):
    assert whisper_language(recogniser, "en-US") == "en"
    assert whisper_language(recogniser, "PT_br") == "pt"
    assert whisper_language(recogniser, "tlh") is None
    assert whisper_language(recogniser, "") is None
