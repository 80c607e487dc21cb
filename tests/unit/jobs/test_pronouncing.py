"""How lexicons are matched: whole words, capitals, the longest, the first."""

import time
import unicodedata

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.jobs.tasks import Pronunciation
from services.common.pronouncing import MAX_BYTES, Pronouncer, faults


def entries(*pairs: tuple[str, str]) -> list[Pronunciation]:
    return [Pronunciation(grapheme=grapheme, alias=alias) for grapheme, alias in pairs]


def said(text: str, *pairs: tuple[str, str]) -> str:
    return "".join(piece for piece, _ in Pronouncer(entries(*pairs)).split(text))


@pytest.mark.parametrize(
    ("text", "pairs", "heard"),
    [
        ("A nasal voice, nas.", [("nas", "en a es")], "A nasal voice, en a es."),
        ("Voxfleet VOXFLEET voxfleet", [("voxfleet", "vox fleet")], "vox fleet vox fleet vox fleet"),
        ("Polish polish", [("Polish", "poh lish")], "poh lish poh lish"),
        ("IT it It", [("IT", "eye tee")], "eye tee it It"),
        ("iOS ios", [("iOS", "eye o s")], "eye o s ios"),
        (
            "New York, New Yorker, new",
            [("New", "nyoo"), ("New York", "big apple")],
            "big apple, nyoo Yorker, nyoo",
        ),
        (
            "C++ and C and C#",
            [("C++", "see plus plus"), ("C#", "see sharp")],
            "see plus plus and C and see sharp",
        ),
        (".NET on x.NET", [(".NET", "dot net")], "dot net on xdot net"),
        ("1 of 1.5, 11 and 1", [("1", "won")], "won of 1.5, 11 and won"),
        ("don't do it", [("do", "doo")], "don't doo it"),
        ("Ωmega ώmega", [("ώmega", "x")], "Ωmega x"),
        ("cafe\u0301 café", [("café", "caffay")], "caffay caffay"),
        ("a_b b", [("b", "bee")], "a_b bee"),
        ("नमस्ते नम", [("नम", "x")], "नमस्ते x"),
        ("İstanbul api", [("api", "a pee eye")], "İstanbul a pee eye"),
        ("api", [("api", "first"), ("API", "second")], "first"),
        ("API", [("api", "first"), ("API", "second")], "first"),
        ("API", [("API", "second"), ("api", "first")], "second"),
        ("word", [("word", "one"), ("word", "two")], "one"),
        ("nothing", [], "nothing"),
    ],
)
def test_matching(text, pairs, heard):
    assert said(text, *pairs) == heard


def test_what_an_alias_says_is_not_matched_again():
    assert said("a b", ("a", "b"), ("b", "a")) == "b a"


@settings(max_examples=200, deadline=None)
@given(
    words=st.lists(st.sampled_from(["api", "API", "New", "New York", "x", "York", "1", "C++"]), max_size=8),
    pairs=st.lists(
        st.tuples(
            st.sampled_from(["api", "API", "New", "new york", "York", "1", "C++"]), st.text("ab ", min_size=1)
        ),
        max_size=6,
    ),
)
def test_the_entries_that_a_text_needs_are_enough(words, pairs):
    text = " ".join(["and", *words])
    full = Pronouncer(entries(*pairs))
    needed = full.needed(text)
    assert list(Pronouncer(needed).split(text)) == list(full.split(text))
    assert len(needed) <= len(words) + 1


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=60))
def test_without_a_match_nothing_changes(text):
    assert said(text) == text
    # Compared in composed form, which is the same text.
    assert said(text, ("zzzzzzzz", "y")) == unicodedata.normalize("NFC", text)


def test_a_large_lexicon_is_quick():
    words = entries(*((f"word{n} of many", f"w {n}") for n in range(10_000)))
    pronouncer = Pronouncer(words)
    text = "Some words of a line that are in no lexicon, as most are. " * 4
    one = min(_seconds(lambda: list(Pronouncer(words[:10]).split(text))) for _ in range(3))
    assert min(_seconds(lambda: list(pronouncer.split(text))) for _ in range(3)) < 20 * one + 0.01


def _seconds(run) -> float:
    began = time.process_time()
    run()
    return time.process_time() - began


@pytest.mark.parametrize(
    ("pairs", "field", "words"),
    [
        ([("", "x")], "e[0].grapheme", "is empty"),
        ([("x", " ")], "e[0].alias", "is empty"),
        ([("x" * 201, "x")], "e[0].grapheme", "at most 200 characters, not 201"),
        ([("x", "y" * 201)], "e[0].alias", "at most 200 characters, not 201"),
        ([(" x", "y")], "e[0].grapheme", "begins or ends with a space"),
        ([("x", "y\x00")], "e[0].alias", "control character"),
        ([("Word", "a"), ("x", "y"), ("word", "b")], "e[2].grapheme", "there already, at 0"),
        ([("a", "b")] * 10_001, "e", "at most 10000 words, not 10001"),
        ([(f"{n} {'é' * 190}", "é" * 200) for n in range(5000)], "e", f"at most {MAX_BYTES} bytes"),
    ],
)
def test_faults_are_named(pairs, field, words):
    found = faults(pairs, field="e")
    assert found[0].field == field
    assert words in found[0].description


def test_capitals_that_count_make_two_words():
    assert faults([("IT", "eye tee"), ("it", "it"), ("iT", "x")], field="e") == []
    assert len(faults([("a", "")] * 9, field="e")) == 17


def test_no_more_than_twenty_faults_are_said():
    assert len(faults([("", "")] * 100, field="e")) == 20
