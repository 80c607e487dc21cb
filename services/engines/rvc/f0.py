"""Pitch: a table of methods behind one protocol, and the coarse bins the model embeds."""

from __future__ import annotations

import contextlib
import functools
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from scipy import signal

from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.engines.rvc.audio import CONTENT_RATE_HZ, Floats

F0_MIN_HZ = 50.0
F0_MAX_HZ = 1100.0
HOP_SAMPLES = 160
"""Samples of 16 kHz audio a frame: 100 frames a second."""
HOP_MS = 10.0
DEFAULT_METHOD = "fcpe"
_SWIFT_VOICED = 0.5


class F0Method(Protocol):
    """Estimates pitch."""

    name: str

    def track(self, samples: Floats, frames: int) -> Floats:
        """F0 in Hz, ``[frames]``, one each 10 ms of 16 kHz audio; 0 where unvoiced."""


class Fcpe:
    """FCPE, its weights inside ``torchfcpe`` (MIT): 0.6 cent on a sweep, 50 times real time on a core."""

    name = "fcpe"

    def __init__(self, device: str) -> None:
        from services.engines import torchaudio_shim

        torchaudio_shim.install()
        import torchfcpe

        # It prints its settings while loading.
        with contextlib.redirect_stdout(io.StringIO()):
            self._model: Any = torchfcpe.spawn_bundled_infer_model(device=device)

    def track(self, samples: Floats, frames: int) -> Floats:
        """See :class:`F0Method`."""
        import torch

        wave = torch.from_numpy(_at_least(samples, 1024)).clamp(-1.0, 1.0)
        found = self._model.infer(
            wave[None, :, None], sr=CONTENT_RATE_HZ, decoder_mode="local_argmax", threshold=0.006
        )
        return _voiced_only(_fit(found[0, :, 0].cpu().numpy(), frames))


class Swift:
    """SwiftF0 (MIT): 200 times real time; steps of 16 ms, brought to 10 by interpolation."""

    name = "swift"

    def __init__(self) -> None:
        import swift_f0

        self._model = swift_f0.SwiftF0(threads=1, spin=False)
        self._frame_s = swift_f0.FRAME_PERIOD

    def track(self, samples: Floats, frames: int) -> Floats:
        """See :class:`F0Method`."""
        found = self._model.detect(_at_least(samples, 1024), CONTENT_RATE_HZ, F0_MIN_HZ, F0_MAX_HZ)
        voiced = found.confidence >= _SWIFT_VOICED
        if not voiced.any():
            return np.zeros(frames, np.float32)
        times = np.arange(frames) * (HOP_MS / 1000)
        nearest = np.clip(np.rint(times / self._frame_s), 0, len(voiced) - 1).astype(np.int64)
        log_pitch = np.interp(times, found.timestamps[voiced], np.log(found.pitch_hz[voiced]))
        return _voiced_only(np.where(voiced[nearest], np.exp(log_pitch), 0.0))


class World:
    """DIO or Harvest of WORLD (Morise 2016), refined by StoneMask, as upstream refines them."""

    def __init__(self, name: str) -> None:
        import pyworld

        self.name = name
        self._pyworld = pyworld

    def track(self, samples: Floats, frames: int) -> Floats:
        """See :class:`F0Method`."""
        wave = samples.astype(np.float64)
        estimate = self._pyworld.harvest if self.name == "harvest" else self._pyworld.dio
        found, times = estimate(
            wave, CONTENT_RATE_HZ, f0_floor=F0_MIN_HZ, f0_ceil=F0_MAX_HZ, frame_period=HOP_MS
        )
        refined = self._pyworld.stonemask(wave, found, times, CONTENT_RATE_HZ)
        # Refined, a frame at the lower limit may lie a little below it, and is voiced none the less.
        return np.asarray(np.nan_to_num(_fit(refined, frames)), dtype=np.float32)


class Praat:
    """Praat's autocorrelation (Boersma 1993)."""

    name = "pm"

    def __init__(self) -> None:
        import parselmouth

        self._parselmouth = parselmouth

    def track(self, samples: Floats, frames: int) -> Floats:
        """See :class:`F0Method`."""
        # Praat leaves out frames whose window overhangs the sound: pad by the window of 3 periods.
        margin = 3 * CONTENT_RATE_HZ // int(F0_MIN_HZ)
        sound = self._parselmouth.Sound(np.pad(samples, margin).astype(np.float64), CONTENT_RATE_HZ)
        found = sound.to_pitch_ac(
            time_step=HOP_MS / 1000,
            voicing_threshold=0.6,
            pitch_floor=F0_MIN_HZ,
            pitch_ceiling=F0_MAX_HZ,
        )
        times = np.arange(frames) * (HOP_MS / 1000) + margin / CONTENT_RATE_HZ
        index = np.rint((times - found.xs()[0]) / (HOP_MS / 1000)).astype(np.int64)
        track = found.selected_array["frequency"]
        return _voiced_only(track[np.clip(index, 0, len(track) - 1)])


class Crepe:
    """CREPE's full network (Kim et al. 2018): accurate, and three times slower than real time on a core."""

    name = "crepe"

    def __init__(self, device: str) -> None:
        from services.engines import torchaudio_shim

        torchaudio_shim.install()
        import torchcrepe

        self._torchcrepe = torchcrepe
        self._device = device

    def track(self, samples: Floats, frames: int) -> Floats:
        """See :class:`F0Method`."""
        import torch

        found, periodicity = self._torchcrepe.predict(
            torch.from_numpy(_at_least(samples, 1024))[None],
            CONTENT_RATE_HZ,
            HOP_SAMPLES,
            F0_MIN_HZ,
            F0_MAX_HZ,
            "full",
            batch_size=512,
            device=self._device,
            return_periodicity=True,
        )
        smooth = self._torchcrepe.filter.median(periodicity, 3)
        pitch = self._torchcrepe.filter.mean(found, 3)
        pitch[smooth < 0.1] = 0.0
        return _voiced_only(_fit(pitch[0].cpu().numpy(), frames))


@dataclass(frozen=True, slots=True)
class _Entry:
    modules: tuple[str, ...]
    packages: str
    build: Callable[[str], F0Method]


METHODS = MappingProxyType(
    {
        "fcpe": _Entry(("torchfcpe",), "torchfcpe", Fcpe),
        "swift": _Entry(("swift_f0",), "swift-f0", lambda _device: Swift()),
        "harvest": _Entry(("pyworld",), "pyworld-prebuilt", lambda _device: World("harvest")),
        "dio": _Entry(("pyworld",), "pyworld-prebuilt", lambda _device: World("dio")),
        "pm": _Entry(("parselmouth",), "praat-parselmouth", lambda _device: Praat()),
        "crepe": _Entry(("torchcrepe", "resampy"), "--no-deps torchcrepe resampy", Crepe),
    }
)


def f0_method(name: str, *, device: str = "cpu") -> F0Method:
    """A method by name; a process loads each one once.

    Raises:
        VoxfleetError: ``UNSUPPORTED_ENGINE`` for ``rmvpe`` and unknown names, ``MODEL_NOT_FOUND``
            where the method's package is not installed.
    """
    if name == "rmvpe":
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            "RMVPE is not offered: its weights come without a clear licence; use fcpe, which is as exact",
            field="f0_method",
            f0_method=name,
        )
    entry = METHODS.get(name)
    if entry is None:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"F0 method {name!r} is unknown; use one of: {', '.join(METHODS)}",
            field="f0_method",
            f0_method=name,
        )
    if not all(importlib.util.find_spec(module) for module in entry.modules):
        raise VoxfleetError(
            Reason.MODEL_NOT_FOUND,
            f"F0 method {name!r} needs a package; install it with: pip install {entry.packages}",
            kind=Kind.NOT_FOUND,
            metadata={"f0_method": name, "packages": entry.packages},
        )
    return _loaded(name, device)


@functools.lru_cache(maxsize=4)
def _loaded(name: str, device: str) -> F0Method:
    return METHODS[name].build(device)


def coarse(f0_hz: Floats) -> NDArray[np.int64]:
    """Pitch bins 1..255, equal steps in mel from 50 to 1100 Hz; unvoiced is 1 (upstream ``get_f0``)."""
    mel = 1127.0 * np.log1p(f0_hz.astype(np.float64) / 700.0)
    low, high = (1127.0 * np.log1p(edge / 700.0) for edge in (F0_MIN_HZ, F0_MAX_HZ))
    bins = np.where(mel > 0, (mel - low) * 254.0 / (high - low) + 1.0, 1.0)
    return np.asarray(np.rint(np.clip(bins, 1.0, 255.0)), dtype=np.int64)


def shift(f0_hz: Floats, semitones: float) -> Floats:
    """Pitch moved by semitones; unvoiced stays 0."""
    return np.asarray(f0_hz * 2.0 ** (semitones / 12.0), dtype=np.float32)


def smooth(f0_hz: Floats, radius: int) -> Floats:
    """A median filter over ``radius`` frames (made odd); below 3 nothing happens, as upstream has it."""
    if radius < 3 or len(f0_hz) == 0:
        return f0_hz
    return np.asarray(signal.medfilt(f0_hz, radius | 1), dtype=np.float32)


def _fit(values: NDArray[np.floating], frames: int) -> NDArray[np.floating]:
    """Cut, or repeat the last value, to ``frames``: methods differ by a frame at the end."""
    if len(values) == 0:
        return np.zeros(frames, np.float32)
    return np.pad(values[:frames], (0, max(frames - len(values), 0)), mode="edge")


def _voiced_only(values: NDArray[np.floating]) -> Floats:
    clean = np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0)
    return np.where((clean >= F0_MIN_HZ) & (clean <= F0_MAX_HZ), clean, 0.0).astype(np.float32)


def _at_least(samples: Floats, wanted: int) -> Floats:
    return np.pad(samples, (0, max(wanted - len(samples), 0)))
