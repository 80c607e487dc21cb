"""ContentVec (Qian et al. 2022), a HuBERT fine-tuned to drop the speaker: what community voices expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.engines import torchaudio_shim
from services.engines.rvc.audio import Floats, fit_length
from services.engines.rvc.content import FRAME_SAMPLES

_WINDOW_FRAMES = 1400
_MARGIN_FRAMES = 50
_RECEPTIVE_SAMPLES = 400
_V1_LAYER = 9
_HIDDEN = 768
_V1_WIDTH = 256


class ContentVec:
    """Features at 50 Hz: layer 12, 768 wide (v2), or layer 9 projected to 256 (v1).

    Frame i hears samples ``320 * i`` to ``320 * i + 400``, as upstream's does: weights that were trained
    there expect each feature 12.5 ms after the sample it is counted from. Audio is taken in windows of
    28 s with a second of context on either side. A last frame that would hear beyond the end repeats the
    one before: zeros there would bear on every frame, through norms over time.

    Args:
        folder: the model as ``transformers`` saves it (``config.json`` and its weights).
        device: ``cpu`` or ``cuda``.
        version: of RVC, 1 or 2.

    Raises:
        VoxfleetError: ``MODEL_CORRUPT`` where the folder is no such model.
    """

    def __init__(self, folder: Path, device: str, *, version: int = 2) -> None:
        # transformers imports torchaudio where it is installed, whether or not it loads.
        torchaudio_shim.install()
        from transformers import HubertModel

        self.name = "contentvec" if version == 2 else "contentvec-v1"
        self.width = _HIDDEN if version == 2 else _V1_WIDTH
        try:
            model: Any = HubertModel.from_pretrained(str(folder), local_files_only=True)
            self._projection = _final_projection(folder).to(device) if version == 1 else None
        except (OSError, ValueError, RuntimeError, KeyError) as error:
            raise VoxfleetError(
                Reason.MODEL_CORRUPT,
                f"the ContentVec folder does not load as a HuBERT model: {error}",
                kind=Kind.DATA_LOSS,
                metadata={"model": self.name},
            ) from error
        if model.config.hidden_size != _HIDDEN:
            raise invalid(
                Reason.MODEL_CORRUPT,
                f"ContentVec is {_HIDDEN} wide, this model is {model.config.hidden_size} wide",
                model=self.name,
            )
        self._model = model.eval().to(device)
        self._device = device

    def encode(self, samples: Floats) -> Floats:
        """Features ``[ceil(n / 320), width]`` of 16 kHz audio."""
        frames = -(-len(samples) // FRAME_SAMPLES)
        parts: list[Floats] = []
        for first in range(0, frames, _WINDOW_FRAMES):
            last = min(first + _WINDOW_FRAMES, frames)
            begin, end = max(first - _MARGIN_FRAMES, 0), min(last + _MARGIN_FRAMES, frames)
            parts.append(self._window(samples, begin, end)[first - begin : last - begin])
        return np.concatenate(parts) if parts else np.zeros((0, self.width), np.float32)

    def _window(self, samples: Floats, begin: int, end: int) -> Floats:
        # The convolutions see 400 samples a frame and step by 320.
        window = samples[begin * FRAME_SAMPLES : (end - 1) * FRAME_SAMPLES + _RECEPTIVE_SAMPLES]
        window = fit_length(window, max(len(window), _RECEPTIVE_SAMPLES))
        with torch.inference_mode():
            features = self._features(torch.from_numpy(window)[None].to(self._device))
        found = np.asarray(features.float().cpu().numpy(), dtype=np.float32)
        return np.pad(found, ((0, end - begin - len(found)), (0, 0)), mode="edge")

    def _features(self, wave: Tensor) -> Tensor:
        if self._projection is None:
            last: Tensor = self._model(wave).last_hidden_state[0]
            return last
        hidden: Tensor = self._model(wave, output_hidden_states=True).hidden_states[_V1_LAYER]
        projected: Tensor = self._projection(hidden)[0]
        return projected


def _final_projection(folder: Path) -> nn.Linear:
    """The projection that HuBERT's pre-training ended in, which transformers leaves out and v1 reads."""
    plain = folder / "model.safetensors"
    weights = (
        load_file(str(plain))
        if plain.is_file()
        else torch.load(str(folder / "pytorch_model.bin"), map_location="cpu", weights_only=True)
    )
    projection = nn.Linear(_HIDDEN, _V1_WIDTH)
    projection.load_state_dict({name: weights[f"final_proj.{name}"] for name in ("weight", "bias")})
    return projection.requires_grad_(False)
