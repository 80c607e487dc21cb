"""What bench.f5 is made of, and that it runs."""

from __future__ import annotations

import json
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import f5
from bench.speech.clips import clip_of, recording_of
from bench.speech.texts import subtitle_lengths, subtitle_texts, text_of


@given(st.integers(4, 300), st.integers(0, 50))
def test_a_text_is_as_long_as_it_was_asked_to_be(size_bytes, start):
    text = text_of(size_bytes, start)
    assert len(text.encode()) == size_bytes
    assert text.endswith(".")
    assert not text.startswith(" ")


def test_texts_have_the_lengths_of_subtitles_and_are_the_same_with_the_same_seed():
    lengths = subtitle_lengths(2000, seed=1)
    assert 35 < sum(lengths) / len(lengths) < 50
    assert min(lengths) < 10
    assert max(lengths) > 150
    texts = subtitle_texts(200, seed=1)
    assert texts == subtitle_texts(200, seed=1)
    assert [len(text) for text in texts] == [max(length, 4) for length in lengths[:200]]


def test_clips_are_speech_of_the_length_asked_for():
    assert clip_of(5.0).duration_s == pytest.approx(5.0, abs=0.6)
    data, text = recording_of(5.0)
    assert data[:4] == b"RIFF"
    assert text.startswith("Goodbye.")


def test_it_ends_with_one_line_of_figures(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["bench.f5", "--quick", "--parts", "padding"])
    assert f5.main() == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0.9 <= figures["padding_efficiency"] <= 1.0


def test_what_cannot_be_measured_is_a_failure(monkeypatch, capsys):
    async def broken(_):
        raise f5.UnmeasurableError("no engine")

    monkeypatch.setitem(f5.PARTS, "padding", broken)
    monkeypatch.setattr(sys, "argv", ["bench.f5", "--quick", "--parts", "padding"])
    assert f5.main() == 1
    assert capsys.readouterr().out == ""
