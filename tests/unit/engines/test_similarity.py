"""How alike two voices are, on real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from services.common.errors import Reason, VoxfleetError
from services.common.media.resample import resample
from services.engines import similarity
from services.engines.similarity import SpeakerEncoder, likeness

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"


def sound(name: str) -> np.ndarray:
    return soundfile.read(SPEECH / name, dtype="float32")[0]


@pytest.fixture(scope="module")
def encoder() -> SpeakerEncoder:
    return SpeakerEncoder()


def test_one_voice_is_more_like_itself_than_like_another(encoder: SpeakerEncoder) -> None:
    reference = encoder.embed(sound("reference_en.flac"), 16_000)
    same = [encoder.embed(sound(f"clip_en_{n}.flac"), 16_000) for n in range(1, 6)]
    others = [encoder.embed(sound(f"clip_{language}.flac"), 16_000) for language in ("fr", "it", "ru")]
    spanish = encoder.embed(sound("clip_es.flac"), 16_000)
    assert min(likeness(reference, voice) for voice in same) > 0.8
    assert likeness(reference, spanish) > 0.72, "the same speaker, in another language"
    assert max(likeness(reference, voice) for voice in others) < 0.72
    assert likeness(reference, reference) == pytest.approx(1.0)


def test_rate_and_channels_do_not_matter(encoder: SpeakerEncoder) -> None:
    clip = sound("clip_en_1.flac")
    plain = encoder.embed(clip, 16_000)
    stereo = encoder.embed(resample(clip, 16_000, 24_000)[None].repeat(2, 0), 24_000)
    assert plain is not None
    assert plain.shape == (similarity.WIDTH,)
    assert likeness(plain, stereo) > 0.98


@pytest.mark.parametrize("samples", [np.zeros(0), np.zeros(16_000), np.full(400, 0.1)])
def test_what_has_no_voice_is_like_none(encoder: SpeakerEncoder, samples: np.ndarray) -> None:
    voice = encoder.embed(samples.astype(np.float32), 16_000)
    assert voice is None
    assert likeness(voice, voice) == 0.0


def test_without_its_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(similarity, "available", lambda: False)
    with pytest.raises(VoxfleetError) as caught:
        SpeakerEncoder()
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert "pip install --no-deps resemblyzer" in caught.value.message
