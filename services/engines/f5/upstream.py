"""The one door to the ``f5-tts`` package: its network and its tokeniser, without its trainer.

``f5_tts.model`` imports the trainer, and with it wandb, datasets, accelerate and pandas: 115 MiB and
over a second that synthesis never uses. So the package is entered by its submodules, with a stand-in
for ``f5_tts.model`` that still offers the network's classes to whoever asks for them by that name.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import warnings
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

from services.engines import torchaudio_shim

if TYPE_CHECKING:
    from collections.abc import Sequence

    from torch import Tensor, nn

_PACKAGE = "f5_tts.model"
_CLASSES = {
    "DiT": "f5_tts.model.backbones.dit",
    "MMDiT": "f5_tts.model.backbones.mmdit",
    "UNetT": "f5_tts.model.backbones.unett",
    "CFM": "f5_tts.model.cfm",
    "Trainer": "f5_tts.model.trainer",
}


class _LightPackage(ModuleType):
    """``f5_tts.model`` that imports a class when it is asked for, not before."""

    def __getattr__(self, name: str) -> Any:
        if name in _CLASSES:
            return getattr(importlib.import_module(_CLASSES[name]), name)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


def prepare() -> None:
    """Make f5-tts's submodules importable without its trainer; harmless to repeat.

    Raises:
        ModuleNotFoundError: f5-tts is not installed.
    """
    torchaudio_shim.install()
    if _PACKAGE in sys.modules:
        return
    spec = importlib.util.find_spec("f5_tts")
    if spec is None or spec.submodule_search_locations is None:
        raise ModuleNotFoundError("f5-tts is not installed", name="f5_tts")
    package = _LightPackage(_PACKAGE)
    package.__path__ = [f"{location}/model" for location in spec.submodule_search_locations]
    package.__spec__ = ModuleSpec(_PACKAGE, None, is_package=True)
    package.__package__ = _PACKAGE
    sys.modules[_PACKAGE] = package
    # What the import system does itself for a package that it loads.
    vars(importlib.import_module("f5_tts"))["model"] = package


def build_transformer(parameters: dict[str, object]) -> nn.Module:
    """An untrained ``DiT`` of the given shape, with attention that respects padding.

    The official configurations leave the attention mask off, and then a request's audio depends on
    its neighbours in the batch. The mask is an argument of the constructor and changes no weights.
    """
    prepare()
    dit = importlib.import_module(_CLASSES["DiT"]).DiT
    with warnings.catch_warnings():
        # It recommends flash-attn for the mask's memory; synthesis bounds its batches instead.
        warnings.filterwarnings("ignore", message="attn_mask_enabled=True")
        network: nn.Module = dit(**parameters, attn_backend="torch", attn_mask_enabled=True)
    return network


def mel_spectrogram(waveform: Tensor) -> Tensor:
    """Log-mel frames as F5 was trained on them (``f5_tts/model/modules.py``, vocos kind).

    Args:
        waveform: [batch, samples] at 24 kHz.

    Returns:
        [batch, frames, 100]; frames = samples // 256 + 1.
    """
    prepare()
    modules = importlib.import_module("f5_tts.model.modules")
    mel: Tensor = modules.get_vocos_mel_spectrogram(waveform)
    return mel.permute(0, 2, 1)


def tokens_of(texts: Sequence[str]) -> list[list[str]]:
    """f5-tts's tokens of each text: characters, and pinyin syllables for Chinese ones."""
    prepare()
    utils = importlib.import_module("f5_tts.model.utils")
    tokens: list[list[str]] = utils.convert_char_to_pinyin(list(texts))
    return tokens


def vocabulary_file() -> str:
    """The path of the vocabulary that f5-tts ships: the official one."""
    prepare()
    spec = importlib.util.find_spec("f5_tts")
    assert spec is not None
    locations = spec.submodule_search_locations
    assert locations is not None
    return f"{next(iter(locations))}/infer/examples/vocab.txt"
