"""The quality gate: the loop apart from models, the measures on real speech."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.tasks import QualityGate
from services.common.limits import TRIES
from services.inference.engine.listening import Ear
from services.inference.engine.quality import (
    Judge,
    Judgement,
    Reference,
    best_of,
    judges,
    seed_of_try,
    shortfall,
)

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
TEXTS = {
    entry["file"]: entry.get("text", "")
    for entry in json.loads((SPEECH / "manifest.json").read_text())["files"]
}
GATE = QualityGate(max_word_error_rate=0.2, min_similarity=0.7, tries=3)

judgements = st.builds(Judgement, st.floats(0, 2), st.floats(-1, 1), st.text(max_size=3))
gates = st.builds(
    QualityGate,
    max_word_error_rate=st.floats(0, 1),
    min_similarity=st.floats(0, 1),
    tries=st.integers(0, 9),
)


def run(gate: QualityGate, outcomes: list[Judgement], seed: int = 7) -> tuple[list[int], object]:
    seeds: list[int] = []

    def speak(with_seed: int) -> int:
        seeds.append(with_seed)
        return len(seeds) - 1

    return seeds, best_of(speak, outcomes.__getitem__, gate, seed)


def test_what_is_good_at_once_is_spoken_once() -> None:
    seeds, kept = run(GATE, [Judgement(0.1, 0.8, "hello")])
    assert seeds == [7]
    assert (kept.spoken, kept.seed) == (0, 7)
    assert (kept.quality.passed, kept.quality.tries, kept.quality.heard) == (True, 1, "hello")


def test_another_seed_may_do_better() -> None:
    seeds, kept = run(GATE, [Judgement(0.5, 0.8), Judgement(0.2, 0.7), Judgement(0.0, 0.9)])
    assert len(seeds) == 2
    assert kept.seed == seeds[1] == seed_of_try(7, 2)
    assert kept.quality.passed
    assert kept.quality.tries == 2


def test_the_best_is_kept_where_none_is_good_enough() -> None:
    seeds, kept = run(GATE, [Judgement(0.9, 0.8), Judgement(0.3, 0.65), Judgement(0.2, 0.2)])
    assert (kept.spoken, kept.seed) == (1, seeds[1])
    assert (kept.quality.passed, kept.quality.tries) == (False, 3)
    assert kept.quality.word_error_rate == 0.3


@given(gate=gates, outcomes=st.lists(judgements, min_size=TRIES[1], max_size=TRIES[1]), seed=st.integers(1))
def test_the_loop(gate: QualityGate, outcomes: list[Judgement], seed: int) -> None:
    seeds, kept = run(gate, outcomes, seed)
    most = min(max(gate.tries, 1), TRIES[1])
    lacks = [shortfall(outcome, gate) for outcome in outcomes[: len(seeds)]]
    assert 1 <= len(seeds) <= most
    assert kept.quality.tries == len(seeds) == len(set(seeds))
    assert kept.seed == seeds[kept.spoken]
    assert lacks[kept.spoken] == min(lacks), "nothing better was spoken"
    assert kept.quality.passed == (lacks[kept.spoken] == 0.0)
    assert all(lack > 0 for lack in lacks[:-1]), "it ends with the first that is good enough"
    assert kept.quality.passed or len(seeds) == most, "or when no try is left"
    assert run(gate, outcomes, seed)[0] == seeds, "the same request takes the same seeds"


@given(st.integers(1, 2**31 - 1))
def test_seeds_of_tries_are_seeds(seed: int) -> None:
    tries = [seed_of_try(seed, number) for number in range(1, TRIES[1] + 1)]
    assert tries[0] == seed
    assert all(1 <= each < 2**31 for each in tries)


def test_what_speaking_raises_is_not_swallowed() -> None:
    def speak(_seed: int) -> int:
        raise invalid(Reason.TEXT_EMPTY, "nothing")

    with pytest.raises(VoxfleetError):
        best_of(speak, lambda _: Judgement(), GATE, 1)


def test_a_gate_that_asks_nothing_judges_nothing() -> None:
    assert not judges(None)
    assert not judges(QualityGate())
    assert judges(QualityGate(min_similarity=0.5))


# ---- on real speech


def sound(name: str) -> np.ndarray:
    return soundfile.read(SPEECH / name, dtype="float32")[0]


@pytest.fixture(scope="module")
def judge(tmp_path_factory: pytest.TempPathFactory) -> Judge:
    return Judge(Ear(tmp_path_factory.mktemp("cache")))


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference("allison", sound("reference_en.flac"), 16_000)


WORDS_ONLY = QualityGate(max_word_error_rate=0.2)


def test_words_are_judged(judge: Judge, reference: Reference) -> None:
    good = judge.judge(
        sound("clip_en_1.flac"),
        16_000,
        TEXTS["clip_en_1.flac"].replace("one", "1"),
        WORDS_ONLY,
        reference=reference,
    )
    assert shortfall(good, WORDS_ONLY) == 0.0
    assert "participant" in good.heard
    assert good.similarity == 0.0, "nobody asked"
    bad = judge.judge(
        sound("clip_en_1.flac"),
        16_000,
        TEXTS["clip_en_2.flac"],
        WORDS_ONLY,
        reference=reference,
        language="en",
    )
    assert bad.word_error_rate > 0.6
    hum = np.sin(np.arange(48_000) * 0.05).astype(np.float32)
    nothing = judge.judge(hum, 16_000, "Some words.", WORDS_ONLY, reference=reference, language="en")
    assert (nothing.word_error_rate, nothing.heard) == (1.0, "")
    assert shortfall(bad, WORDS_ONLY) > 0.4


def test_the_first_real_voice_that_passes_is_kept(judge: Judge, reference: Reference) -> None:
    """Each try is another speaker's recording; the gate is about the voice alone."""
    tries = {1: "clip_ru.flac", seed_of_try(1, 2): "clip_it.flac", seed_of_try(1, 3): "clip_en_3.flac"}
    gate = QualityGate(min_similarity=0.72, tries=5)
    kept = best_of(
        lambda seed: tries[seed],
        lambda name: judge.judge(sound(name), 16_000, "unheard", gate, reference=reference),
        gate,
        1,
    )
    assert kept.spoken == "clip_en_3.flac"
    assert kept.quality.passed
    assert kept.quality.tries == 3
    assert (kept.quality.word_error_rate, kept.quality.heard) == (0.0, "")
