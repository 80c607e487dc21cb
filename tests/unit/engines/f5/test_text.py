from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from services.common.errors import Reason, VoxfleetError
from services.engines.f5 import text, upstream
from services.engines.f5.text import Vocabulary


@pytest.fixture(scope="module")
def vocabulary(bundle):
    return Vocabulary.from_file(bundle / "vocab.txt")


def test_cleaning_keeps_words_and_drops_what_is_invisible():
    assert text.clean("  Hello\t\n wor\u200bld\u00a0! \x07") == "Hello world !"
    assert text.clean("cafe\u0301") == "café"


@pytest.mark.parametrize("empty", ["", "   \n", "... — !", "\u200b"])
def test_text_without_a_letter_is_empty(empty):
    with pytest.raises(VoxfleetError) as caught:
        text.checked(empty)
    assert caught.value.reason is Reason.TEXT_EMPTY


def test_the_limit_of_length_is_a_parameter():
    assert text.checked("a" * 5000) == "a" * 5000
    with pytest.raises(VoxfleetError) as caught:
        text.checked("a" * 5001)
    assert caught.value.reason is Reason.TEXT_TOO_LONG
    assert caught.value.metadata == {"characters": "5001", "max_characters": "5000"}
    assert text.checked("a" * 5001, max_characters=6000)


def test_the_official_vocabulary_reads_alike_with_either_line_ending(bundle, tmp_path, vocabulary):
    (tmp_path / "vocab.txt").write_bytes((bundle / "vocab.txt").read_bytes().replace(b"\n", b"\r\n"))
    assert Vocabulary.from_file(tmp_path / "vocab.txt") == vocabulary
    assert len(vocabulary) == 2545
    assert vocabulary.indices[" "] == 0


def test_a_vocabulary_that_does_not_begin_with_the_space_is_corrupt(tmp_path):
    (tmp_path / "vocab.txt").write_text("a\nb\n")
    with pytest.raises(VoxfleetError) as caught:
        Vocabulary.from_file(tmp_path / "vocab.txt")
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_unknown_characters_are_listed_and_not_mapped_to_the_space(vocabulary):
    tokens = text.tokens("Ref. ", "Party 🎉 with 👩 and 🎉!")
    with pytest.raises(VoxfleetError) as caught:
        vocabulary.encode(tokens)
    assert caught.value.reason is Reason.UNSUPPORTED_CHARACTERS
    assert caught.value.metadata == {"characters": "🎉 👩", "count": "2"}
    assert text.unknown_characters(vocabulary, "Party 🎉 👩") == ("🎉", "👩")
    assert text.unknown_characters(vocabulary, "“Quite” fine; naïve café, 你好，world.") == ()


def test_tokens_are_those_of_f5(vocabulary):
    assert text.tokens("", "你好 hi") == [" ", "ni2", " ", "hao3", " ", "h", "i"]
    assert vocabulary.encode(["a", " "]) == [vocabulary.indices["a"], 0]


def test_a_transcript_ends_as_f5_wants():
    assert text.reference_text("Hello") == "Hello. "
    assert text.reference_text("Hello.") == "Hello. "
    assert text.reference_text("你好。") == "你好。"


SENTENCES = "One is here. Two, with a clause; and more! Is three? “Four,” he said. 五在这里。六也在！"


def test_chunks_end_where_sentences_end():
    assert text.chunks("First one here. Second one here. Third.", 20) == [
        "First one here.",
        "Second one here.",
        "Third.",
    ]
    assert text.chunks('He said "no." Then he left the room.', 24) == [
        'He said "no."',
        "Then he left the room.",
    ]
    assert text.chunks("一二三四。五六七八。", 16) == ["一二三四。", "五六七八。"]


def test_chunks_fall_back_to_clauses_words_and_characters():
    assert text.chunks("alpha beta, gamma delta", 12) == ["alpha beta,", "gamma delta"]
    assert text.chunks("alpha beta gamma", 10) == ["alpha beta", "gamma"]
    assert text.chunks("abcdefghij", 4) == ["abcd", "efgh", "ij"]
    assert text.chunks("ééé", 4) == ["éé", "é"]


def test_chunks_are_of_like_size():
    sizes = [len(chunk) for chunk in text.chunks("Ten chars. " * 11, 100)]
    assert len(sizes) == 2
    assert min(sizes) > 40


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.text(max_size=200),
        st.lists(st.sampled_from(SENTENCES.split(" ")), max_size=60).map(" ".join),
        st.text(alphabet="ab .,!?\n“”。，é", max_size=200),
    ),
    st.integers(4, 120),
)
def test_chunking_loses_nothing_and_keeps_to_the_limit(words, max_bytes):
    chunks = text.chunks(words, max_bytes)
    assert "".join("".join(chunks).split()) == "".join(words.split())
    assert all(chunk and text.size_of(chunk) <= max_bytes for chunk in chunks)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=60))
def test_any_text_can_be_tokenised(words):
    assert isinstance(upstream.tokens_of([text.clean(words)])[0], list)


# ---- chunks of a stream

SENTENCE = "This is one sentence of a few words."


def test_a_streams_chunks_grow_and_end_with_sentences():
    said = " ".join([SENTENCE] * 12)
    chunks = text.growing_chunks(said, [40, 80, 160], 24)
    assert " ".join(chunks) == said
    assert [chunk.count("sentence") for chunk in chunks] == [1, 2, 4, 4, 1]


def test_a_long_first_sentence_is_cut_at_a_clause_and_a_later_one_is_not():
    long = "When the bell had rung for the second time, all of them rose from their chairs and left the room."
    chunks = text.growing_chunks(f"{long} {long}", [60, 200], 24)
    assert chunks == [long.split(" all ", maxsplit=1)[0], f"all {long.split(' all ')[1]} {long}"]
    unbroken = long.replace(",", "")
    assert text.growing_chunks(f"{unbroken} {SENTENCE}", [60, 120], 24)[0] == unbroken


def test_no_chunk_of_a_stream_is_a_remnant():
    assert text.growing_chunks(f"Hello. {SENTENCE} Bye.", [40, 80], 24) == [f"Hello. {SENTENCE} Bye."]
    assert text.growing_chunks("Hi.", [40], 24) == ["Hi."]


@given(
    st.lists(st.sampled_from(["Hello.", SENTENCE, "a, b,", "one two three;", "x" * 90, "Why?"]), min_size=1),
    st.integers(30, 80),
    st.integers(1, 3),
)
def test_a_streams_chunks_lose_nothing(pieces, first, growth):
    said = " ".join(pieces)
    limits = [first, first * growth, first * growth * growth]
    chunks = text.growing_chunks(said, limits, 24)
    assert "".join("".join(chunks).split()) == "".join(said.split())
    assert all(text.size_of(chunk) <= limits[-1] + 24 + first for chunk in chunks)
    assert all(text.size_of(chunk) >= min(24, text.size_of(said)) for chunk in chunks)
