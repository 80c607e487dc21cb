"""Loads an F5 bundle: the network, the vocoder and the vocabulary, each checked against the manifest.

Weights are read strictly: a missing or a surplus tensor is an error, where f5-tts and others let
either pass. The vocoder's configuration is data here; upstream imports whatever class it names.
"""

from __future__ import annotations

import dataclasses
import importlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from services.common.errors import VoxfleetError
from services.engines import torchaudio_shim
from services.engines.bundles.catalogue import TRUSTED_PICKLES
from services.engines.bundles.manifest import (
    MANIFEST_FILE,
    Manifest,
    corrupt,
    hash_file,
    read_manifest,
    verify,
)
from services.engines.f5 import upstream
from services.engines.f5.text import Vocabulary

MEL_CHANNELS = 100
HOP = 256

_EMA = "ema_model."
_TRANSFORMER = "transformer."
# What an F5 checkpoint may hold beside the network: the trainer's counters and the mel's constants.
_BESIDE = ("initted", "step", "mel_spec.")
_VOCODER_PARTS = {
    "feature_extractor": ("vocos.feature_extractors", "MelSpectrogramFeatures"),
    "backbone": ("vocos.models", "VocosBackbone"),
    "head": ("vocos.heads", "ISTFTHead"),
}


@dataclass(frozen=True, slots=True)
class Architecture:
    """The shape of the network: ``model.arch`` in f5-tts's configuration files."""

    dim: int
    depth: int
    heads: int
    ff_mult: int
    text_dim: int
    conv_layers: int
    dim_head: int = 64
    text_mask_padding: bool = True
    text_embedding_average_upsampling: bool = False
    qk_norm: str | None = None
    pe_attn_head: int | None = None

    @classmethod
    def of(cls, manifest: Manifest) -> Architecture:
        """The architecture in a manifest's parameters.

        Raises:
            VoxfleetError: MODEL_CORRUPT where one is missing or unknown.
        """
        try:
            return cls(**manifest.parameters)  # type: ignore[arg-type]
        except TypeError as error:
            raise corrupt(
                manifest.name, MANIFEST_FILE, f"its parameters describe no F5 network ({error})"
            ) from error

    def build(self, vocabulary_size: int) -> nn.Module:
        """The network with fresh weights, for a vocabulary of that size."""
        parameters: dict[str, object] = dataclasses.asdict(self)
        return upstream.build_transformer(
            parameters | {"text_num_embeds": vocabulary_size, "mel_dim": MEL_CHANNELS, "dropout": 0.0}
        )


@dataclass(frozen=True, slots=True)
class LoadedF5:
    """An F5 bundle in memory.

    Args:
        manifest: whose weights they are.
        transformer: f5-tts's ``DiT``, in evaluation mode.
        vocoder: ``Vocos``: [batch, 100, frames] to [batch, samples], always float32.
        vocabulary: the tokens it knows.
        device: where the weights lie.
        dtype: what the transformer's blocks compute in.
    """

    manifest: Manifest
    transformer: nn.Module
    vocoder: nn.Module
    vocabulary: Vocabulary
    device: torch.device
    dtype: torch.dtype


def load(
    directory: Path,
    *,
    device: str | torch.device = "cpu",
    dtype: torch.dtype | None = None,
    check: bool = True,
    trusted_pickles: frozenset[str] = TRUSTED_PICKLES,
    compiler: str = "",
) -> LoadedF5:
    """Load a bundle directory.

    Args:
        directory: with ``manifest.json`` and the files it lists.
        device: where to put the weights.
        dtype: of the transformer's blocks; by default bfloat16 on a CUDA device that computes in it,
            and float32 elsewhere.
        check: whether to hash the files first; False where a cache just did.
        trusted_pickles: SHA-256 of the pickled vocoders that may be opened.
        compiler: backend of ``torch.compile`` for the transformer's blocks, such as ``inductor``; none where
            empty. It compiles at the first evaluations, for any length and batch.

    Raises:
        VoxfleetError: MODEL_CORRUPT where a file differs from the manifest or does not fit the network.
    """
    manifest = read_manifest(directory)
    if manifest.engine != "f5":
        raise corrupt(manifest.name, MANIFEST_FILE, f"it is a bundle of engine {manifest.engine!r}, not f5")
    if check:
        verify(directory, manifest)
    where = torch.device(device)
    precision = dtype or _natural_dtype(where)
    vocabulary = Vocabulary.from_file(directory / "vocab.txt")
    transformer = Architecture.of(manifest).build(len(vocabulary))
    _fill(transformer, _network_weights(directory, manifest), manifest, "model.safetensors")
    vocoder = _load_vocoder(directory, manifest, trusted_pickles)
    transformer = _placed(transformer, where, precision)
    if compiler:
        _compile(transformer, compiler)
    return LoadedF5(
        manifest=manifest,
        transformer=transformer,
        vocoder=vocoder.eval().requires_grad_(False).to(where),
        vocabulary=vocabulary,
        device=where,
        dtype=precision,
    )


def build_vocoder(config: Mapping[str, object]) -> nn.Module:
    """A Vocos of the given configuration with fresh weights; only the mel kind is known here.

    Raises:
        ValueError: the configuration names another class.
        TypeError: it gives that class arguments it does not take.
    """
    torchaudio_shim.install()
    parts = []
    for part, (module, name) in _VOCODER_PARTS.items():
        entry = config.get(part)
        if not isinstance(entry, Mapping) or entry.get("class_path") != f"{module}.{name}":
            raise ValueError(f"{part} is not {module}.{name}")
        arguments = entry.get("init_args") or {}
        if not isinstance(arguments, Mapping):
            raise TypeError(f"{part}.init_args is not a mapping")
        parts.append(getattr(importlib.import_module(module), name)(**arguments))
    vocoder: nn.Module = importlib.import_module("vocos.pretrained").Vocos(*parts)
    return vocoder


def _natural_dtype(device: torch.device) -> torch.dtype:
    if device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.bfloat16
    return torch.float32


def _placed(transformer: nn.Module, device: torch.device, dtype: torch.dtype) -> nn.Module:
    """Move the network, with the parts that bfloat16 would spoil left in float32.

    Rotary frequencies times positions need more than bfloat16's 8 bits past frame 256; the time
    embedding multiplies by 1000; the text is embedded once a request and normed over its length. So is what
    runs from block to block, to which each adds: rounded there, it would make up most of bfloat16's error.
    """
    transformer.eval().requires_grad_(False).to(device)
    if dtype is torch.float32:
        return transformer
    for name, child in transformer.named_children():
        if name not in ("rotary_embed", "time_embed", "text_embed", "proj_out"):
            child.to(dtype)
    time_embed = transformer.get_submodule("time_embed")
    time_embed.register_forward_hook(lambda _module, _inputs, output: output.to(dtype))
    transformer.get_submodule("input_embed").register_forward_hook(
        lambda _module, _inputs, output: output.float()
    )
    for block in transformer.get_submodule("transformer_blocks").children():
        block.get_submodule("attn").register_forward_pre_hook(
            lambda _module, inputs, named: (inputs, named | {"x": named["x"].to(dtype)}), with_kwargs=True
        )
        block.get_submodule("ff").register_forward_pre_hook(lambda _module, inputs: (inputs[0].to(dtype),))
    return transformer


def _compile(transformer: nn.Module, backend: str) -> None:
    """Compile the blocks, which are alike: one is compiled, and all use it.

    Not the whole: it keeps its text embeddings in a thread's own storage, which no compiler sees through.
    """
    for block in transformer.get_submodule("transformer_blocks").children():
        block.compile(backend=backend, dynamic=True)


def _network_weights(directory: Path, manifest: Manifest) -> dict[str, Tensor]:
    """The checkpoint's tensors by the network's own names."""
    weights = _read_safetensors(directory / "model.safetensors", manifest, "model.safetensors")
    plain = {name.removeprefix(_EMA): tensor for name, tensor in weights.items()}
    beside = [name for name in plain if not name.startswith(_TRANSFORMER)]
    if stray := [name for name in beside if not name.startswith(_BESIDE)]:
        raise corrupt(
            manifest.name, "model.safetensors", f"it holds tensors of no F5 network: {_some(stray)}"
        )
    return {
        name.removeprefix(_TRANSFORMER): tensor
        for name, tensor in plain.items()
        if name.startswith(_TRANSFORMER)
    }


def _load_vocoder(directory: Path, manifest: Manifest, trusted_pickles: frozenset[str]) -> nn.Module:
    try:
        config = yaml.safe_load((directory / "vocos/config.yaml").read_text(encoding="utf-8"))
        vocoder = build_vocoder(config if isinstance(config, Mapping) else {})
    except (OSError, ValueError, TypeError, yaml.YAMLError) as error:
        raise corrupt(
            manifest.name, "vocos/config.yaml", f"it describes no Vocos for mels ({error})"
        ) from error
    if (directory / "vocos/model.safetensors").is_file():
        path = "vocos/model.safetensors"
        weights = _read_safetensors(directory / path, manifest, path)
    else:
        path = "vocos/pytorch_model.bin"
        weights = _read_pickle(directory / path, manifest, path, trusted_pickles)
    _fill(vocoder, weights, manifest, path)
    return vocoder


def _read_safetensors(file: Path, manifest: Manifest, path: str) -> dict[str, Tensor]:
    try:
        weights: dict[str, Tensor] = load_file(file, device="cpu")
    except (OSError, SafetensorError) as error:
        raise corrupt(manifest.name, path, f"it cannot be read ({error})") from error
    return weights


def _read_pickle(file: Path, manifest: Manifest, path: str, trusted: frozenset[str]) -> dict[str, Tensor]:
    if not file.is_file():
        raise corrupt(manifest.name, path, "the file is missing")
    if hash_file(file) not in trusted:
        raise corrupt(
            manifest.name, path, "it is a pickle that is not in the catalogue; convert it to .safetensors"
        )
    try:
        weights: dict[str, Tensor] = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise corrupt(manifest.name, path, f"it cannot be read ({error})") from error
    return weights


def _fill(module: nn.Module, weights: dict[str, Tensor], manifest: Manifest, path: str) -> None:
    expected = module.state_dict()
    problems = [
        *(f"{name} is missing" for name in expected.keys() - weights.keys()),
        *(f"{name} is not of this network" for name in weights.keys() - expected.keys()),
        *(
            f"{name} is {tuple(weights[name].shape)}, not {tuple(tensor.shape)}"
            for name, tensor in expected.items()
            if name in weights and weights[name].shape != tensor.shape
        ),
    ]
    if problems:
        raise _misfit(manifest, path, problems)
    module.load_state_dict(weights)


def _misfit(manifest: Manifest, path: str, problems: list[str]) -> VoxfleetError:
    return corrupt(manifest.name, path, f"its tensors do not fit the network: {_some(sorted(problems))}")


def _some(names: list[str], most: int = 3) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
