"""Makes ``f5-small-random``: F5's network and vocoder, small, with random weights from a seed.

Every step of synthesis runs on it, at the cost of a small network, where the official weights cannot
be had. What comes out is noise of a sane level that depends on the text, the clip, the seed and the
steps. A freshly built ``DiT`` would not do: its output layer is zero, so every test would pass.
"""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import yaml
from safetensors.torch import save_file
from torch import Tensor, nn

from services.engines.bundles.catalogue import F5_SMALL_RANDOM
from services.engines.bundles.manifest import Manifest, describe_file, write_manifest
from services.engines.f5 import upstream
from services.engines.f5.model import MEL_CHANNELS, Architecture, build_vocoder
from services.engines.f5.text import Vocabulary

_ARCHITECTURE = Architecture(dim=128, depth=2, heads=2, ff_mult=2, text_dim=64, conv_layers=2)


@dataclass(frozen=True, slots=True)
class SmallShape:
    """How small: the network's architecture, and the width and depth of the vocoder."""

    architecture: Architecture = _ARCHITECTURE
    vocoder_dim: int = 96
    vocoder_layers: int = 2


def build(directory: Path, *, seed: int = 0, shape: SmallShape | None = None) -> Manifest:
    """Write the bundle into ``directory``; equal arguments give equal bytes.

    Returns:
        its complete manifest, which is also written beside the files.
    """
    shape = shape or SmallShape()
    (directory / "vocos").mkdir(parents=True, exist_ok=True)
    shutil.copyfile(upstream.vocabulary_file(), directory / "vocab.txt")
    vocabulary = Vocabulary.from_file(directory / "vocab.txt")
    # numpy's generator gives the same numbers on every machine; torch's depends on the processor.
    generator = np.random.Generator(np.random.PCG64(seed))
    network = shape.architecture.build(len(vocabulary))
    weights = dict(_random_weights(network, generator))
    save_file(
        {f"ema_model.transformer.{name}": tensor for name, tensor in weights.items()},
        directory / "model.safetensors",
    )
    config = _vocoder_config(shape)
    (directory / "vocos/config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    vocoder = build_vocoder(config)
    voiced = dict(_random_weights(vocoder, generator)) | _sane_level(vocoder, generator)
    save_file(voiced, directory / "vocos/model.safetensors")
    manifest = dataclasses.replace(
        F5_SMALL_RANDOM,
        files=tuple(describe_file(directory, file.path) for file in F5_SMALL_RANDOM.files),
        source=f"{F5_SMALL_RANDOM.source} (seed {seed})",
        parameters=dataclasses.asdict(shape.architecture),
    )
    write_manifest(directory, manifest)
    return manifest


def _random_weights(module: nn.Module, generator: np.random.Generator) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the module: parameters random in half precision, buffers as they are."""
    parameters = dict(module.named_parameters())
    for name, tensor in sorted(module.state_dict().items()):
        if name not in parameters:
            yield name, tensor.contiguous()
            continue
        noise = generator.standard_normal(tuple(tensor.shape), dtype=np.float32)
        yield name, torch.from_numpy(_scaled(name, tensor, noise)).half().contiguous()


def _scaled(name: str, tensor: Tensor, noise: np.ndarray) -> np.ndarray:
    if tensor.ndim == 1 and name.endswith((".weight", ".gamma")):
        scaled: np.ndarray = 1.0 + 0.1 * noise  # the scale of a norm, or of a residual branch
    elif tensor.ndim == 1 or "grn" in name:
        scaled = 0.1 * noise
    elif "text_embed.text_embed" in name:
        scaled = 0.5 * noise
    else:
        scaled = noise / math.sqrt(max(1, tensor[0].numel()))
    return scaled.astype(np.float32)


def _vocoder_config(shape: SmallShape) -> dict[str, object]:
    def part(class_path: str, **arguments: object) -> dict[str, object]:
        return {"class_path": class_path, "init_args": arguments}

    return {
        "feature_extractor": part(
            "vocos.feature_extractors.MelSpectrogramFeatures",
            sample_rate=24_000,
            n_fft=1024,
            hop_length=256,
            n_mels=MEL_CHANNELS,
            padding="center",
        ),
        "backbone": part(
            "vocos.models.VocosBackbone",
            input_channels=MEL_CHANNELS,
            dim=shape.vocoder_dim,
            intermediate_dim=3 * shape.vocoder_dim,
            num_layers=shape.vocoder_layers,
        ),
        "head": part(
            "vocos.heads.ISTFTHead", dim=shape.vocoder_dim, n_fft=1024, hop_length=256, padding="center"
        ),
    }


def _sane_level(vocoder: nn.Module, generator: np.random.Generator) -> dict[str, Tensor]:
    """A vocoder's last layer whose magnitudes fall with frequency as speech does, at about −20 dBFS.

    The layer's first 513 outputs are log-magnitudes, the other 513 phases in radians (``ISTFTHead``).
    """
    shape = vocoder.get_parameter("head.out.weight").shape
    bins = shape[0] // 2
    weight = generator.standard_normal(tuple(shape), dtype=np.float32) / math.sqrt(shape[1])
    weight[:bins] *= 0.5
    weight[bins:] *= math.pi
    bias = np.zeros(shape[0], dtype=np.float32)
    bias[:bins] = 3.2 - 1.0 * np.log1p(np.arange(bins, dtype=np.float32) / 16.0)
    return {
        "head.out.weight": torch.from_numpy(weight).half().contiguous(),
        "head.out.bias": torch.from_numpy(bias).half().contiguous(),
    }
