"""Pictures for the report: waveforms, spectrograms, curves, as PNG."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np

from services.common.media.decode import decode

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.figure import Figure


def sound(path: Path) -> str:
    """A data URL of a file's waveform above its spectrogram."""
    audio = decode(path)
    samples, rate_hz = np.asarray(audio.samples), audio.rate_hz
    seconds = np.arange(samples.shape[-1]) / rate_hz
    figure, (top, bottom) = plt.subplots(2, 1, figsize=(7.2, 2.9), sharex=True, height_ratios=(1, 1.6))
    top.plot(seconds, samples, linewidth=0.4, color="#2b6cb0")
    top.set_ylim(-1, 1)
    top.set_yticks([])
    # An inaudible floor, so that digital silence has a level.
    quiet = samples + 1e-7 * np.random.default_rng(0).standard_normal(samples.shape[-1])
    bottom.specgram(quiet, NFFT=1024, noverlap=768, Fs=rate_hz, cmap="magma", vmin=-140, vmax=-30)
    bottom.set_ylim(0, min(8000, rate_hz / 2))
    bottom.set_xlabel("seconds")
    bottom.set_ylabel("Hz")
    return _png(figure)


def curves(points: Sequence[tuple[int, Mapping[str, float]]], names: Sequence[str]) -> str:
    """A data URL of curves over steps, each scaled to its own first value."""
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    for name in names:
        line = [(step, values[name]) for step, values in points if name in values]
        if line and line[0][1]:
            axes.plot([step for step, _ in line], [value / line[0][1] for _, value in line], label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("share of first value")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    return _png(figure)


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.tight_layout()
    figure.savefig(buffer, dpi=110)
    plt.close(figure)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
