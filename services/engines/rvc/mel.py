"""Linear and mel spectrograms in plain torch, with upstream's settings (``train/mel_processing.py``)."""

from __future__ import annotations

import functools

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from services.engines.rvc.config import ModelConfig

_POWER_FLOOR = 1e-6
_MEL_FLOOR = 1e-5


def linear_spectrogram(wave: Tensor, config: ModelConfig) -> Tensor:
    """Magnitudes ``[batch, spec_channels, samples // hop]`` of ``[batch, samples]``; a Hann window.

    Frame i is centred at sample ``i * hop + hop / 2``.
    """
    size, hop = config.fft_size, config.hop
    edge = (size - hop) // 2
    padded = functional.pad(wave.unsqueeze(1), (edge, size - hop - edge), mode="reflect").squeeze(1)
    window = _hann(size, wave.device, wave.dtype)
    spectrum = torch.stft(padded, size, hop, size, window, center=False, return_complex=True)
    return torch.sqrt(spectrum.real.square() + spectrum.imag.square() + _POWER_FLOOR)


def log_mel(spectrogram: Tensor, config: ModelConfig) -> Tensor:
    """Natural-log mel magnitudes ``[batch, mel_bands, frames]`` of a linear spectrogram."""
    filters = _filters(config.rate_hz, config.fft_size, config.mel_bands, spectrogram.device)
    return torch.log((filters.to(spectrogram.dtype) @ spectrogram).clamp(min=_MEL_FLOOR))


@functools.lru_cache(maxsize=16)
def _hann(size: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.hann_window(size, device=device, dtype=dtype)


@functools.lru_cache(maxsize=16)
def _filters(rate_hz: int, fft_size: int, bands: int, device: torch.device) -> Tensor:
    return torch.from_numpy(mel_filters(rate_hz, fft_size, bands)).to(device)


def mel_filters(rate_hz: int, fft_size: int, bands: int) -> NDArray[np.float32]:
    """Triangular filters ``[bands, fft_size // 2 + 1]`` of equal area on Slaney's mel scale, 0 to Nyquist.

    Slaney's Auditory Toolbox (1998): linear to 1 kHz at 200/3 Hz a mel, then 27 steps to 6.4 times.
    """
    edges = _mel_to_hz(np.linspace(0.0, _hz_to_mel(rate_hz / 2), bands + 2))
    bins = np.linspace(0.0, rate_hz / 2, fft_size // 2 + 1)
    rising = (bins[None, :] - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - bins[None, :]) / np.diff(edges)[1:, None]
    triangles = np.clip(np.minimum(rising, falling), 0.0, None)
    result: NDArray[np.float32] = (triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None]).astype(np.float32)
    return result


_BREAK_HZ = 1000.0
_BREAK_MEL = 15.0
_LOG_STEP = np.log(6.4) / 27.0


def _hz_to_mel(hz: float) -> float:
    if hz < _BREAK_HZ:
        return hz * 3 / 200
    return float(_BREAK_MEL + np.log(hz / _BREAK_HZ) / _LOG_STEP)


def _mel_to_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    linear = mel * 200 / 3
    logarithmic = _BREAK_HZ * np.exp(_LOG_STEP * (np.maximum(mel, _BREAK_MEL) - _BREAK_MEL))
    return np.where(mel < _BREAK_MEL, linear, logarithmic)
