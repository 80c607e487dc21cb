"""What a replica hears in reference clips: Whisper base on real speech."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import ctranslate2
import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import Blob
from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from services.common.media.resample import resample
from services.engines.f5.reference import prepare
from services.engines.whisper.scoring import word_error_rate
from services.inference.calls import Heard, Listen
from services.inference.engine.listening import Ear, listen

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
RATE_HZ = 16_000
TEXTS = {
    entry["file"]: entry.get("text", "")
    for entry in json.loads((SPEECH / "manifest.json").read_text())["files"]
}
LIMIT = 0.6


@pytest.fixture(scope="module")
def store() -> MemoryArtifactStore:
    return MemoryArtifactStore()


@pytest.fixture(scope="module")
def ear(tmp_path_factory: pytest.TempPathFactory) -> Ear:
    return Ear(tmp_path_factory.mktemp("cache"))


def samples_of(name: str) -> np.ndarray:
    return decode((SPEECH / name).read_bytes()).samples


def put(store: MemoryArtifactStore, samples: np.ndarray) -> Blob:
    data = encode(samples, RATE_HZ, Format.FLAC)
    sha256 = hashlib.sha256(data).hexdigest()
    key = content_key("blue", sha256)
    store.put_bytes(key, data)
    return Blob(key=key, sha256=sha256, size_bytes=len(data))


def hear(store: MemoryArtifactStore, ear: Ear, samples: np.ndarray, text: str = "", **how: object) -> Heard:
    return listen(store, ear, Listen(put(store, samples), text, **how))  # type: ignore[arg-type]


def test_a_clip_without_a_text_gets_one(store: MemoryArtifactStore, ear: Ear) -> None:
    samples = samples_of("reference_en.flac")
    heard = hear(store, ear, samples)
    assert heard.language == "en"
    assert word_error_rate(TEXTS["reference_en.flac"], heard.text) <= 0.15
    assert " ".join(word.text for word in heard.words) == heard.text
    assert heard.word_error_rate == 0.0
    assert heard.words[-1].end_s <= len(samples) / RATE_HZ


def test_a_given_text_that_fits_is_kept_and_timed(store: MemoryArtifactStore, ear: Ear) -> None:
    text = TEXTS["clip_en_4.flac"]
    heard = hear(store, ear, samples_of("clip_en_4.flac"), text, language="en", max_word_error_rate=LIMIT)
    assert heard.text == text
    assert [word.text for word in heard.words] == text.split()
    assert heard.word_error_rate <= 0.3


@pytest.mark.parametrize("other", ["clip_en_1.flac", "clip_en_5.flac"])
def test_another_clips_text_is_refused(store: MemoryArtifactStore, ear: Ear, other: str) -> None:
    with pytest.raises(VoxfleetError) as caught:
        hear(store, ear, samples_of("clip_en_2.flac"), TEXTS[other], max_word_error_rate=LIMIT)
    assert caught.value.reason is Reason.TRANSCRIPT_MISMATCH
    assert caught.value.violations[0].field == "reference_text"
    assert word_error_rate(TEXTS["clip_en_2.flac"], caught.value.metadata["heard"]) <= 0.3
    assert float(caught.value.metadata["word_error_rate"]) > LIMIT


def test_words_that_are_nearly_right_are_no_other_text(store: MemoryArtifactStore, ear: Ear) -> None:
    """As a recogniser hears a language that it hardly knows: every word wrong, most letters right."""
    text = " ".join(word[:-1] + "q" for word in TEXTS["clip_en_2.flac"].split())
    heard = hear(store, ear, samples_of("clip_en_2.flac"), text, max_word_error_rate=LIMIT)
    assert heard.word_error_rate > LIMIT
    assert heard.words[-1].text == text.split()[-1]


def test_the_check_can_be_turned_off(store: MemoryArtifactStore, ear: Ear) -> None:
    text = TEXTS["clip_en_1.flac"]
    assert hear(store, ear, samples_of("clip_en_2.flac"), text).text == text


def test_half_a_text_is_no_other_text(store: MemoryArtifactStore, ear: Ear) -> None:
    """Sloppy, and it will be heard, but it is not plainly wrong."""
    text = "To leave a message, please"
    assert hear(store, ear, samples_of("clip_en_2.flac"), text, max_word_error_rate=1.0).text == text


@pytest.mark.parametrize(
    ("samples", "reason"),
    [
        (np.zeros(4 * RATE_HZ, np.float32), Reason.AUDIO_SILENT),
        (
            np.random.default_rng(3).standard_normal(4 * RATE_HZ).astype(np.float32) * 0.1,
            Reason.SPEECH_NOT_HEARD,
        ),
        (
            np.sin(2 * np.pi * 440 * np.arange(4 * RATE_HZ) / RATE_HZ).astype(np.float32) * 0.3,
            Reason.SPEECH_NOT_HEARD,
        ),
        (samples_of("clip_en_1.flac")[: RATE_HZ // 2], Reason.AUDIO_TOO_SHORT),
    ],
    ids=["silence", "noise", "a tone", "half a second"],
)
def test_clips_that_are_no_speech_are_refused(
    store: MemoryArtifactStore, ear: Ear, samples: np.ndarray, reason: Reason
) -> None:
    with pytest.raises(VoxfleetError) as caught:
        hear(store, ear, samples)
    assert caught.value.reason is reason
    assert caught.value.violations[0].field == "reference_audio"


def test_a_text_over_noise_is_refused(store: MemoryArtifactStore, ear: Ear) -> None:
    noise = np.random.default_rng(3).standard_normal(4 * RATE_HZ).astype(np.float32) * 0.1
    with pytest.raises(VoxfleetError) as caught:
        hear(store, ear, noise, "Nobody says this.", max_word_error_rate=LIMIT)
    assert caught.value.reason is Reason.TRANSCRIPT_MISMATCH
    assert caught.value.metadata["heard"] == ""


def test_numbers_are_compared_as_they_are_spoken(store: MemoryArtifactStore, ear: Ear) -> None:
    text = TEXTS["clip_en_1.flac"].replace("one", "1")
    heard = hear(store, ear, samples_of("clip_en_1.flac"), text)
    assert heard.word_error_rate == 0.0
    assert heard.text == text, "a given text stays as it was given"
    assert heard.words[3].text == "1"


@pytest.mark.skipif(
    ctranslate2.get_cuda_device_count() > 0,
    reason="the fall-back to a CPU can only be seen where CUDA does not work",
)
def test_without_the_gpus_libraries_the_cpu_listens(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    recogniser = Ear(tmp_path, device="cuda").recogniser()
    assert "takes the CPU" in caplog.text
    found = recogniser.transcribe(samples_of("clip_en_1.flac"), "en")
    assert word_error_rate(TEXTS["clip_en_1.flac"], found.text) <= 0.2


def test_a_long_clip_is_cut_where_a_word_ends(store: MemoryArtifactStore, ear: Ear) -> None:
    """Twenty seconds of speech without a fitting pause in its transcript's punctuation."""
    samples = samples_of("target_en.flac")[: round(22.9 * RATE_HZ)]
    heard = hear(store, ear, samples)
    clip = prepare("clip", samples, RATE_HZ, heard.text, words=heard.words)
    assert clip.cut
    assert 6.0 <= clip.duration_s <= 12.1
    again = ear.recogniser().transcribe(resample(clip.audio, 24_000, RATE_HZ), "en").text
    assert word_error_rate(clip.text, again) <= 0.15
