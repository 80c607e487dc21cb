"""What a replica answers when it is asked whether it can still work, and how large it is."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.errors import Reason, VoxfleetError
from services.inference.calls import EngineSpec, Probe
from services.inference.engine import conversion
from services.inference.engine.conversion import ConversionBody, ConversionLimits
from services.inference.engine.speech import SpeechBody, SpeechLimits
from services.inference.engine.vitals import own_vitals
from services.inference.model import Role
from tests.unit.inference.test_engine_bodies import Content, convert_task, events_of, packed_voice


@pytest.fixture
def store() -> MemoryArtifactStore:
    return MemoryArtifactStore()


def test_f5_speaks_a_word(store: MemoryArtifactStore, tmp_path: Path) -> None:
    body = SpeechBody(EngineSpec(Role.F5), store, tmp_path, SpeechLimits())
    assert events_of(body, Probe()) == []
    for parameter in next(iter(body._bundles.values())).model._loaded.transformer.parameters():
        parameter.data.fill_(float("nan"))
    with pytest.raises(VoxfleetError, match="NaN"):
        events_of(body, Probe())


def test_rvc_converts_a_moment_into_the_voice_used_last(
    store: MemoryArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ConversionBody(EngineSpec(Role.RVC), store, tmp_path / "cache", ConversionLimits())
    used: list[object] = []
    real, load = conversion.convert, conversion.load_voice

    def spy(voice, samples, *given, **named):
        used.append((voice, len(samples)))
        return real(voice, samples, *given, **named)

    monkeypatch.setattr(conversion, "convert", spy)
    light = functools.partial(load, encoder=Content())
    monkeypatch.setattr(conversion, "load_voice", light)
    assert events_of(body, Probe()) == []
    assert not used, "without a voice the device computes"
    for seed in (1, 2):
        events_of(body, convert_task(store, packed_voice(tmp_path, store, seed)))
    assert events_of(body, Probe()) == []
    assert used[-1] == (list(body._voices.values())[-1], 8000)


def test_a_broken_device_fails_the_probe(
    store: MemoryArtifactStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body = ConversionBody(EngineSpec(Role.RVC), store, tmp_path, ConversionLimits())
    monkeypatch.setattr(conversion, "exercise", lambda _: False)
    with pytest.raises(VoxfleetError) as caught:
        events_of(body, Probe())
    assert caught.value.reason is Reason.INTERNAL


def test_a_replica_knows_how_large_it_is() -> None:
    before = own_vitals()
    assert before.rss_bytes > 1 << 20
    held = np.ones(100 << 20, np.uint8)
    grown = own_vitals().rss_bytes - before.rss_bytes
    assert 90 << 20 < grown < 130 << 20
    del held
