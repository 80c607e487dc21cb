from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from services.engines.f5 import model, reference, small
from services.engines.f5.model import Architecture
from services.engines.f5.packing import Budget
from services.engines.f5.planning import Reference
from services.engines.f5.synthesis import F5Model

RATE_HZ = 24_000
ALONE = Budget(segments=1)
TOGETHER = Budget(frames=1_000_000, free_frames=1_000_000)
TINY = small.SmallShape(
    Architecture(dim=32, depth=2, heads=1, ff_mult=2, text_dim=32, conv_layers=2, dim_head=32),
    vocoder_dim=32,
    vocoder_layers=1,
)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle of the smallest network that has every part of the real one."""
    directory = tmp_path_factory.mktemp("f5-tiny")
    small.build(directory, shape=TINY)
    return directory


@pytest.fixture(scope="session")
def loaded(bundle: Path) -> model.LoadedF5:
    return model.load(bundle)


@pytest.fixture(scope="session")
def alone(loaded: model.LoadedF5) -> F5Model:
    """Speaks one segment at a time."""
    return F5Model(loaded, budget=ALONE)


@pytest.fixture(scope="session")
def together(loaded: model.LoadedF5) -> F5Model:
    """Speaks whatever it is given in one batch."""
    return F5Model(loaded, budget=TOGETHER)


def babble(seconds: float, *, seed: int = 0, pauses: tuple[tuple[float, float], ...] = ()) -> np.ndarray:
    """Noise that swells like syllables at 4 Hz, with silence in the given spans."""
    at = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    noise = np.random.default_rng(seed).standard_normal(len(at))
    sound = 0.1 * noise * (0.6 + 0.4 * np.sin(2 * np.pi * 4 * at))
    for start_s, end_s in pauses:
        sound[(at >= start_s) & (at < end_s)] = 0.0
    return sound.astype(np.float32)


@pytest.fixture(scope="session")
def voice(alone: F5Model) -> Reference:
    clip = reference.prepare("voice", babble(1.5), RATE_HZ, "Some call me nature, others call.")
    return alone.reference(clip)


@pytest.fixture(scope="session")
def other_voice(alone: F5Model) -> Reference:
    clip = reference.prepare("other", babble(2.2, seed=5), RATE_HZ, "A second speaker who talks a bit more.")
    return alone.reference(clip)
