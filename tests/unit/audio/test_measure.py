"""Measures against signals whose truth is known."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyloudnorm
import pytest

from services.audio.measure import defects, noise, voice
from services.audio.measure.whole import measure
from services.common.media import loudness
from services.common.media.decode import Audio, decode
from services.common.media.encode import Format, encode
from services.common.media.levels import SILENCE_DBFS
from services.common.media.resample import resample

SPEECH = Path(__file__).resolve().parents[2] / "fixtures" / "speech"
RATE_HZ = voice.VOICE_RATE_HZ
MANIFEST = {entry["file"]: entry for entry in json.loads((SPEECH / "manifest.json").read_text())["files"]}


def sine(hz: float, dbfs: float, seconds: float, rate_hz: int = 48_000) -> np.ndarray:
    t = np.arange(round(seconds * rate_hz)) / rate_hz
    return (10 ** (dbfs / 20) * np.sin(2 * np.pi * hz * t)).astype(np.float32)


def white(size: int, rng: np.random.Generator) -> np.ndarray:
    return unit(rng.standard_normal(size))


def pink(size: int, rng: np.random.Generator) -> np.ndarray:
    """Power falling 3 dB an octave, from 20 Hz on."""
    spectrum = np.fft.rfft(rng.standard_normal(size))
    spectrum /= np.sqrt(np.maximum(np.fft.rfftfreq(size, 1 / RATE_HZ), 20.0))
    return unit(np.fft.irfft(spectrum, size))


def unit(samples: np.ndarray) -> np.ndarray:
    return samples / np.sqrt(np.mean(np.square(samples)))


def mixed(name: str, kind: str, snr_db: float, pause_s: float) -> np.ndarray:
    """Fixture speech with noise under its mean power while it speaks, and a pause of noise around it."""
    speech = decode(SPEECH / name).samples.astype(np.float64)
    spans = [
        speech[round(prompt["start_s"] * RATE_HZ) : round(prompt["end_s"] * RATE_HZ)]
        for prompt in MANIFEST[name]["prompts"]
    ]
    power = np.mean(np.square(np.concatenate(spans)))
    padded = np.pad(speech, round(pause_s * RATE_HZ))
    rng = np.random.default_rng(17)
    noise_ = {"white": white, "pink": pink}[kind](padded.size, rng)
    return (padded + noise_ * np.sqrt(power / 10 ** (snr_db / 10))).astype(np.float32)


def snr_of(samples: np.ndarray) -> noise.NoiseMeasure:
    return noise.measure_noise(samples, voice.voice_probabilities(samples))


@pytest.mark.parametrize("snr_db", [10, 15, 20, 25, 30])
@pytest.mark.parametrize("kind", ["white", "pink"])
@pytest.mark.parametrize("name", ["heldout_en.flac", "source_it.flac", "clip_es.flac", "clip_ru.flac"])
def test_snr_of_a_mixture_with_pauses(name: str, kind: str, snr_db: float) -> None:
    found = snr_of(mixed(name, kind, snr_db, pause_s=1.0))
    assert not found.is_floor
    assert found.snr_db == pytest.approx(snr_db, abs=1.5)


@pytest.mark.parametrize("snr_db", [10, 15, 20, 25, 30])
@pytest.mark.parametrize("kind", ["white", "pink"])
@pytest.mark.parametrize("name", ["reference_en.flac", "clip_en_2.flac", "source_fr.flac", "clip_it.flac"])
def test_snr_of_a_tight_cut_falls_back_and_stays_near(name: str, kind: str, snr_db: float) -> None:
    found = snr_of(mixed(name, kind, snr_db, pause_s=0.0))
    assert found.is_floor
    assert found.snr_db == pytest.approx(snr_db, abs=3.0)


def test_digital_silence_between_sentences_is_not_taken_for_a_quiet_room() -> None:
    """Gating a noisy recording must not make it clean."""
    noisy = mixed("heldout_en.flac", "white", 15, pause_s=0.0)
    quiet = voice.voice_probabilities(noisy).repeat(voice.FRAME_SAMPLES)[: noisy.size] < 0.1
    gated = np.where(quiet, np.float32(0), noisy)
    found = snr_of(gated)
    assert found.snr_db == pytest.approx(15, abs=4.0)


def test_noise_without_speech_has_no_ratio_and_silence_no_floor() -> None:
    rng = np.random.default_rng(2)
    hiss = (0.01 * white(5 * RATE_HZ, rng)).astype(np.float32)
    found = snr_of(hiss)
    assert found.snr_db is None
    assert found.noise_floor_dbfs == pytest.approx(-40.0, abs=0.5)
    silent = snr_of(np.zeros(5 * RATE_HZ, np.float32))
    assert (silent.snr_db, silent.noise_floor_dbfs) == (None, SILENCE_DBFS)


def test_bangs_between_sentences_raise_the_background_not_the_floor() -> None:
    steady = mixed("heldout_en.flac", "white", 35, pause_s=4.0)
    rng = np.random.default_rng(4)
    bangs = steady.copy()
    for start_s in (0.6, 1.2, 1.8, 2.4, 3.0):
        at = round(start_s * RATE_HZ)
        bangs[at : at + 3200] += (0.1 * white(3200, rng)).astype(np.float32)
    calm, upset = snr_of(steady), snr_of(bangs)
    assert calm.background_dbfs - calm.noise_floor_dbfs < 2.0
    assert upset.background_dbfs - upset.noise_floor_dbfs > 20.0
    assert upset.noise_floor_dbfs == pytest.approx(calm.noise_floor_dbfs, abs=1.0)


# --------------------------------------------------------------------------------------------- loudness


@pytest.mark.parametrize("rate_hz", [16_000, 44_100, 48_000])
@pytest.mark.parametrize("level", [-23.0, -33.0])
def test_stereo_sine_reads_its_level(rate_hz: int, level: float) -> None:
    """EBU Tech 3341, cases 1 and 2: 1 kHz in both channels, ±0.1 LU."""
    tone = sine(1000, level, 20, rate_hz)
    found = loudness.integrated_lufs(np.stack([tone, tone]), rate_hz)
    assert found == pytest.approx(level, abs=0.1)
    # One channel of the two is 3 dB less.
    assert loudness.integrated_lufs(sine(997, level, 3, rate_hz), rate_hz) == pytest.approx(
        level - 3.01, abs=0.1
    )


def test_gate_drops_the_quiet_parts() -> None:
    """EBU Tech 3341, case 3: -36 for 10 s, -23 for 60 s, -36 for 10 s reads -23."""
    parts = [sine(1000, -36, 10), sine(1000, -23, 60), sine(1000, -36, 10)]
    whole = np.concatenate(parts)
    assert loudness.integrated_lufs(np.stack([whole, whole]), 48_000) == pytest.approx(-23.0, abs=0.1)


def test_loudness_of_speech_is_pyloudnorms() -> None:
    speech = decode(SPEECH / "heldout_en.flac").samples
    meter = pyloudnorm.Meter(RATE_HZ, filter_class="DeMan")
    want = meter.integrated_loudness(speech.astype(np.float64))
    assert loudness.integrated_lufs(speech, RATE_HZ) == pytest.approx(want, abs=0.02)


def test_filters_run_on_across_chunks() -> None:
    """A filter begun anew every ten seconds would answer an offset with a thump each time."""
    shifted = sine(1000, -50, 35, 8000) + np.float32(0.5)
    want = pyloudnorm.Meter(8000, filter_class="DeMan").integrated_loudness(shifted.astype(np.float64))
    assert loudness.integrated_lufs(shifted, 8000) == pytest.approx(want, abs=0.05)


def test_short_and_silent_clips_have_a_loudness() -> None:
    short = sine(1000, -20, 0.2)
    assert loudness.integrated_lufs(short, 48_000) == pytest.approx(-23.0, abs=0.5)
    assert loudness.integrated_lufs(np.zeros(48_000, np.float32), 48_000) == loudness.SILENCE_LUFS
    assert loudness.integrated_lufs(np.zeros(10, np.float32), 48_000) == loudness.SILENCE_LUFS


def test_true_peak_between_samples() -> None:
    """EBU Tech 3341, case 15 and on: a quarter of the rate, at 45 degrees, peaks 3 dB above its samples."""
    n = np.arange(48_000)
    tone = (0.5 * np.sin(2 * np.pi * n / 4 + np.pi / 4)).astype(np.float32)
    assert 20 * np.log10(np.abs(tone).max()) == pytest.approx(-9.03, abs=0.01)
    assert loudness.true_peak_dbtp(tone[100:-100]) == pytest.approx(-6.02, abs=0.4)


def test_true_peak_skips_windows_without_missing_the_peak() -> None:
    rng = np.random.default_rng(8)
    samples = (0.1 * rng.standard_normal((2, 60_000))).astype(np.float32)
    samples[1, 40_958:40_963] = [0.9, -0.9, 0.9, 0.9, -0.9]
    found = loudness.true_peak_dbtp(samples)
    around = resample(samples[1, 39_000:43_000], 1, 8)
    assert found == pytest.approx(20 * np.log10(np.abs(around).max()), abs=0.5)
    assert found >= 20 * np.log10(0.9)


# --------------------------------------------------------------------------------- clipping, offset, band


@pytest.mark.parametrize("then_gain", [1.0, 0.5, 0.1])
def test_injected_clipping_is_found_even_after_turning_down(then_gain: float) -> None:
    speech = decode(SPEECH / "heldout_en.flac").samples
    driven = speech * np.float32(1.0 / np.abs(speech).max() * 10 ** (12 / 20))
    cut = np.clip(driven, -1, 1) * np.float32(then_gain)
    truth = np.mean(np.abs(driven) >= 1.0)
    assert truth > 0.002
    found = defects.clipping_ratio(cut)
    # Peaks one or two samples wide are cut as well, and no detector can tell.
    assert 0.5 * truth < found <= 1.05 * truth


def test_clean_audio_is_not_called_clipped() -> None:
    rng = np.random.default_rng(6)
    for entry in MANIFEST.values():
        assert defects.clipping_ratio(decode(SPEECH / entry["file"]).samples) == 0.0
    assert defects.clipping_ratio(sine(440, 0, 1) * np.float32(0.5)) == 0.0
    assert defects.clipping_ratio(np.zeros(1000, np.float32)) == 0.0
    assert defects.clipping_ratio(rng.uniform(-0.5, 0.5, 50_000).astype(np.float32)) == 0.0


def test_clipping_on_one_side_of_one_channel() -> None:
    clean = sine(440, -6, 1)
    cut = np.minimum(sine(440, 6, 1), 1.0).astype(np.float32) * np.float32(0.4) - np.float32(0.1)
    assert defects.clipping_ratio(np.stack([clean, clean])) == 0.0
    assert defects.clipping_ratio(np.stack([clean, cut])) == pytest.approx(1 / 6, abs=0.03)


def test_dc_offset_keeps_its_sign_and_channel() -> None:
    tone = sine(100, -20, 1)
    assert defects.dc_offset(np.stack([tone, tone - 0.05])) == pytest.approx(-0.05, abs=1e-4)
    assert defects.dc_offset(tone) == pytest.approx(0.0, abs=1e-4)


@pytest.mark.parametrize("edge_hz", [3400, 8000, 16_000])
def test_bandwidth_of_filtered_noise(edge_hz: int) -> None:
    rng = np.random.default_rng(9)
    spectrum = np.fft.rfft(rng.standard_normal(48_000 * 2))
    spectrum[np.fft.rfftfreq(48_000 * 2, 1 / 48_000) > edge_hz] = 0
    samples = (0.05 * unit(np.fft.irfft(spectrum))).astype(np.float32)
    assert noise.bandwidth_hz(samples, 48_000) == pytest.approx(edge_hz, abs=150)


def test_bandwidth_of_speech_raised_to_a_rate_that_it_does_not_fill() -> None:
    raised = decode(SPEECH / "clip_en_1.flac", rate_hz=48_000).samples
    assert 6_500 < noise.bandwidth_hz(raised, 48_000) < 8_500
    assert noise.bandwidth_hz(np.zeros(48_000, np.float32), 48_000) == 0.0
    assert noise.bandwidth_hz(np.zeros(10, np.float32), 48_000) == 0.0


# ------------------------------------------------------------------------------------------------- voice


def test_speech_is_found_where_it_was_put() -> None:
    clip = decode(SPEECH / "clip_en_3.flac").samples
    rng = np.random.default_rng(10)
    bed = (0.0005 * white(16 * RATE_HZ, rng)).astype(np.float32)
    places_s = (2.0, 9.5)
    for start_s in places_s:
        at = round(start_s * RATE_HZ)
        bed[at : at + clip.size] += clip
    segments = voice.speech_segments(voice.voice_probabilities(bed), bed.size / RATE_HZ)
    assert len(segments) == len(places_s)
    for (start_s, end_s), placed_s in zip(segments, places_s, strict=True):
        assert start_s == pytest.approx(placed_s, abs=0.15)
        assert end_s == pytest.approx(placed_s + clip.size / RATE_HZ, abs=0.25)


def test_noise_and_tones_are_no_speech_to_silero_though_webrtc_thinks_so() -> None:
    rng = np.random.default_rng(12)
    hiss = (0.05 * pink(6 * RATE_HZ, rng)).astype(np.float32)
    for samples in (hiss, sine(440, -12, 6, RATE_HZ), np.zeros(6 * RATE_HZ, np.float32)):
        assert voice.speech_segments(voice.voice_probabilities(samples), 6.0) == ()
    assert voice.webrtc_ratio(hiss, aggressiveness=0) > 0.5
    assert voice.webrtc_ratio(np.zeros(6 * RATE_HZ, np.float32)) == 0.0


def test_probabilities_do_not_depend_on_where_blocks_end(monkeypatch: pytest.MonkeyPatch) -> None:
    """512 frames go to the network at once; its state must pass from one block to the next."""
    speech = decode(SPEECH / "target_en.flac").samples[: 20 * RATE_HZ]
    whole = voice.voice_probabilities(speech)
    assert whole.size == -(-speech.size // voice.FRAME_SAMPLES) > voice._BLOCK_FRAMES
    monkeypatch.setattr(voice, "_BLOCK_FRAMES", 37)
    np.testing.assert_allclose(voice.voice_probabilities(speech), whole, atol=1e-4)


def test_segments_follow_the_thresholds() -> None:
    frame_s = voice.FRAME_SAMPLES / RATE_HZ
    quiet, loud, between = 0.0, 0.9, 0.4
    rows = [quiet] * 10 + [loud] * 20 + [between] * 5 + [loud] * 5 + [quiet] * 10 + [loud] * 3 + [quiet] * 10
    probabilities = np.array(rows, np.float32)
    segments = voice.speech_segments(probabilities, len(rows) * frame_s)
    # The dip between the thresholds does not part it; three frames are too short to be speech.
    assert segments == (pytest.approx((10 * frame_s - 0.03, 40 * frame_s + 0.03)),)
    assert voice.speech_segments(np.zeros(0, np.float32), 0.0) == ()


# ------------------------------------------------------------------------------------------- all at once


def test_measure_of_a_stereo_file() -> None:
    speech = decode(SPEECH / "reference_en.flac", rate_hz=48_000).samples
    data = encode(np.stack([speech, 0.5 * speech]), 48_000, Format.WAV, bit_depth=24)
    found = measure(decode(data, mono=False))
    assert (found.codec, found.container, found.rate_hz, found.channels) == ("pcm_s24le", "wav", 48_000, 2)
    assert (found.bit_depth, found.size_bytes) == (24, len(data))
    assert found.duration_s == pytest.approx(MANIFEST["reference_en.flac"]["duration_s"], abs=0.001)
    assert found.peak_dbfs <= found.true_peak_dbtp < 0
    assert found.rms_dbfs < found.peak_dbfs
    assert found.voice_activity_ratio > 0.85
    assert found.speech_s == pytest.approx(found.voice_activity_ratio * found.duration_s)
    assert found.bandwidth_hz < 9_000


@pytest.mark.parametrize("size", [1, 100, 3000])
def test_measure_of_next_to_nothing(size: int) -> None:
    header = decode(SPEECH / "clip_en_1.flac").info
    found = measure(Audio(np.zeros((2, size), np.float32), 48_000, header))
    assert found.snr_db is None
    assert found.speech_segments == ()
    assert found.peak_dbfs == SILENCE_DBFS


def test_measuring_loads_no_torch() -> None:
    """The audio service starts in a container without it."""
    script = (
        "import sys, numpy as np\n"
        "from services.audio.measure.voice import voice_probabilities\n"
        "import services.audio.measure.whole, services.audio.grade, services.common.media.encode\n"
        "voice_probabilities(np.zeros(16000, np.float32))\n"
        "sys.exit('torch' in sys.modules)\n"
    )
    root = Path(__file__).resolve().parents[3]
    assert subprocess.run([sys.executable, "-c", script], cwd=root, check=False).returncode == 0
