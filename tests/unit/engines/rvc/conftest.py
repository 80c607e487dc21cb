"""A model small enough to train in a test, and deterministic stand-ins for what listens to speech."""

import dataclasses

import numpy as np
import pytest
import torch

from services.engines.rvc.config import TINY_40K
from services.engines.rvc.features import FeatureSet, SliceFeatures
from services.engines.rvc.state import TrainParams

# Models this small spend their time waiting for threads, and a busy machine makes that a hundredfold.
torch.set_num_threads(1)

NANO = dataclasses.replace(
    TINY_40K,
    spec_channels=65,
    segment_frames=16,
    inter_channels=8,
    hidden_channels=8,
    filter_channels=8,
    upsample_rates=(8, 10),
    upsample_kernel_sizes=(16, 20),
    upsample_initial_channels=16,
    speaker_channels=4,
    rate_hz=8000,
    content_width=6,
    discriminator_divisor=64,
)


class BandEncoder:
    """Six log band energies of every 20 ms: content enough for a toy voice."""

    name = "whisper-base"
    width = 6

    def encode(self, samples):
        frames = -(-len(samples) // 320)
        blocks = np.pad(samples, (0, frames * 320 - len(samples))).reshape(frames, 320)
        power = np.abs(np.fft.rfft(blocks, axis=1))[:, :150].reshape(frames, 6, 25).mean(axis=2)
        return np.log1p(power).astype(np.float32)


class LoudnessF0:
    """150 Hz where there is sound."""

    name = "fcpe"

    def track(self, samples, frames):
        blocks = np.pad(samples, (0, max(frames * 160 - len(samples), 0)))[: frames * 160]
        loud = np.abs(blocks.reshape(frames, 160)).max(axis=1) > 0.01
        return np.where(loud, 150.0, 0.0).astype(np.float32)


def voiced_tone(seconds, rate_hz, hz=150.0, seed=0):
    """Harmonics of one pitch whose loudness sways, over a little noise."""
    time_s = np.arange(round(seconds * rate_hz)) / rate_hz
    tone = sum(np.sin(2 * np.pi * hz * k * time_s) / k for k in range(1, 6))
    sway = 0.6 + 0.4 * np.sin(2 * np.pi * 3 * time_s)
    noise = np.random.default_rng(seed).standard_normal(len(time_s)) * 0.01
    return (0.3 * tone * sway + noise).astype(np.float32)


@pytest.fixture
def nano():
    return NANO


@pytest.fixture
def features():
    """Five slices of different lengths: with batches of two, an epoch is three steps."""
    encoder, tracker = BandEncoder(), LoudnessF0()
    slices = []
    for number, frames in enumerate((40, 51, 33, 60, 47)):
        wave_16k = voiced_tone(frames / 100, 16_000, seed=number)
        content = encoder.encode(wave_16k)[: (frames + 1) // 2]
        samples = voiced_tone(frames / 100, NANO.rate_hz, seed=number)
        slices.append(SliceFeatures(content, tracker.track(wave_16k, frames), samples))
    return FeatureSet(tuple(slices), "whisper-base", "fcpe", NANO.rate_hz)


@pytest.fixture
def params():
    return TrainParams(epochs=3, batch_size=2, learning_rate=1e-3, seed=7, progress_s=0)


@pytest.fixture
def encoder():
    return BandEncoder()


@pytest.fixture
def tracker():
    return LoudnessF0()
