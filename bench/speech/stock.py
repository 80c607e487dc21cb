"""``infer_process`` of f5-tts, one text after another, as its own command line runs it.

Stock settings: attention without a mask (there is no padding in a batch of one), no seed. What it prints
is thrown away, and the clip is read by soundfile, both in its favour.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import soundfile
import torch

from services.engines import torchaudio_shim
from services.engines.f5 import upstream
from services.engines.f5.model import LoadedF5


class Stock:
    """f5-tts's own inference over the same weights.

    Args:
        loaded: the weights.
        reference: a WAV file, 24 kHz mono.
        text: what is said in it.
    """

    def __init__(self, loaded: LoadedF5, reference: Path, text: str) -> None:
        torchaudio_shim.install()
        upstream.prepare()
        self._infer: Any = importlib.import_module("f5_tts.infer.utils_infer")
        self._infer.torchaudio.load = _load
        cfm: Any = importlib.import_module("f5_tts.model.cfm").CFM
        self._model = cfm(transformer=loaded.transformer, vocab_char_map=loaded.vocabulary.indices).eval()
        self._vocoder = loaded.vocoder
        self._device = str(loaded.device)
        self._reference, self._text = str(reference), text

    def speak(self, text: str, *, steps: int) -> float:
        """Seconds of audio of one text."""
        with contextlib.redirect_stdout(io.StringIO()):
            wave, rate_hz, _ = self._infer.infer_process(
                self._reference,
                self._text,
                text,
                self._model,
                self._vocoder,
                mel_spec_type="vocos",
                show_info=_silent,
                progress=None,
                nfe_step=steps,
                device=self._device,
            )
        return len(wave) / float(rate_hz)

    def speak_all(self, texts: Sequence[str], *, steps: int) -> tuple[float, float]:
        """(seconds of audio, seconds that it took)."""
        began_s = time.perf_counter()
        seconds = sum(self.speak(text, steps=steps) for text in texts)
        return seconds, time.perf_counter() - began_s


def _load(path: str) -> tuple[torch.Tensor, int]:
    """``torchaudio.load`` without the FFmpeg that it would look for on the system."""
    samples, rate_hz = soundfile.read(path, dtype="float32", always_2d=True)
    return torch.from_numpy(samples.T), int(rate_hz)


def _silent(*_: object) -> None:
    return None
