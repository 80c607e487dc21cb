"""What files say of themselves, read back with PyAV, and whether their sound is marked."""

from __future__ import annotations

import io
from pathlib import Path

import av
import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.jobs.tasks import Output
from services.common.media.decode import decode
from services.common.media.encode import Format
from services.common.media.tags import unpack
from services.engines.watermark import detect
from services.inference.calls import Made, Weights
from services.inference.engine.blobs import keep_audio
from services.inference.engine.marking import UNMARKED, Marking
from services.inference.tags import provenance_tags

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
RATE_HZ = 24_000
KEY = "k"


@pytest.fixture(scope="module")
def samples() -> np.ndarray:
    return decode(SPEECH / "clip_en_4.flac", rate_hz=RATE_HZ).samples


def kept(
    store: MemoryArtifactStore, samples: np.ndarray, marking: Marking, output: Output, rate_hz: int = RATE_HZ
) -> Made:
    return keep_audio(
        store,
        "blue",
        samples,
        rate_hz,
        output,
        tags=provenance_tags("f5", "teams/blue/voices/anna", "teams/blue/jobs/one"),
        weights=Weights("f5-v1-base", trained=True, licence="CC-BY-NC-4.0"),
        seed=7,
        work_s=0.1,
        advance=lambda _phase, _share: None,
        marking=marking,
    )


@pytest.mark.parametrize("fmt", list(Format))
@pytest.mark.parametrize("rate_hz", [0, 16_000, 44_100])
def test_every_format_says_how_it_was_made_and_carries_the_mark(
    samples: np.ndarray, fmt: Format, rate_hz: int
) -> None:
    store = MemoryArtifactStore()
    made = kept(store, samples, Marking(enabled=True, key=KEY), Output(format=fmt.value, rate_hz=rate_hz))
    data = store.get_bytes(made.blob.key)
    with av.open(io.BytesIO(data)) as container:
        # Ogg keeps its tags with the stream.
        found = unpack({**container.metadata, **container.streams.audio[0].metadata})
    wanted = {
        "generated": "true",
        "engine": "f5",
        "voice": "teams/blue/voices/anna",
        "job": "teams/blue/jobs/one",
        "weights": "f5-v1-base",
        "licence": "CC-BY-NC-4.0",
        "seed": "7",
        "watermarked": "true",
    }
    assert {key: found.get(key) for key in wanted} == wanted
    assert made.watermarked
    assert made.duration_s == samples.size / RATE_HZ
    back = decode(data)
    assert back.duration_s == pytest.approx(made.duration_s, abs=2e-4)
    assert detect(back.samples, back.rate_hz, KEY).present


@pytest.mark.parametrize("engine_hz", [32_000, 40_000, 48_000])
def test_what_conversion_makes_is_marked_at_its_own_rates(engine_hz: int) -> None:
    store = MemoryArtifactStore()
    samples = decode(SPEECH / "source_fr.flac", rate_hz=engine_hz).samples
    made = kept(store, samples, Marking(enabled=True, key=KEY), Output(format="mp3"), engine_hz)
    back = decode(store.get_bytes(made.blob.key))
    assert detect(back.samples, back.rate_hz, KEY).present


def test_where_the_setting_is_off_nothing_is_marked_and_nothing_says_so(samples: np.ndarray) -> None:
    store = MemoryArtifactStore()
    made = kept(store, samples, UNMARKED, Output(format="wav"))
    assert not made.watermarked
    back = decode(store.get_bytes(made.blob.key))
    assert np.abs(back.samples - samples).max() < 1e-4
    assert back.info.tags["watermarked"] == "false"
    assert UNMARKED.stream(RATE_HZ) is None


def test_the_key_is_not_shown() -> None:
    assert "secret" not in repr(Marking(enabled=True, key="secret"))
