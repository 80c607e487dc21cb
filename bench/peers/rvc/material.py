"""Random weights that behave: a content encoder and voices of full size, the same for the same seed.

No published weights can be had where the tests run. What matters for a comparison is that both sides hold
the same, that every part of the network bears on the output, and that the output is of a sound's level.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from services.engines import torchaudio_shim
from services.engines.rvc.audio import Floats
from services.engines.rvc.community import write_pth
from services.engines.rvc.config import V2_32K, V2_40K, V2_48K, ModelConfig
from services.engines.rvc.retrieval import build_index
from services.engines.rvc.synthesizer import Coupling, Synthesizer
from services.engines.rvc.voice import INDEX_FILE, VoiceFacts, load_weights_of, save_voice

V1_40K = replace(V2_40K, content_width=256)
CONFIGS = {"v2-32k": V2_32K, "v2-40k": V2_40K, "v2-48k": V2_48K, "v1-40k": V1_40K}
_PEAK = 0.4
_SHIFT_STD = 0.02
_PROBE_FRAMES = 60


@dataclass(frozen=True, slots=True)
class RandomVoice:
    """A voice on disk, ours and as the community's files.

    Args:
        directory: ours.
        pth, index: the same for upstream.
        version: of RVC, ``v1`` or ``v2``.
    """

    directory: Path
    pth: Path
    index: Path
    version: str


def random_hubert(folder: Path, *, seed: int = 0) -> Path:
    """HuBERT's base architecture (94 M), with the projection that RVC v1 reads; returns ``folder``."""
    torchaudio_shim.install()
    from transformers import HubertConfig, HubertModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        HubertModel(HubertConfig()).save_pretrained(folder)
        projection = nn.Linear(768, 256)
    weights = load_file(str(folder / "model.safetensors"))
    weights |= {f"final_proj.{name}": tensor for name, tensor in projection.state_dict().items()}
    save_file(weights, str(folder / "model.safetensors"), metadata={"format": "pt"})
    return folder


def random_voice(folder: Path, config: ModelConfig, vectors: Floats, *, seed: int = 0) -> RandomVoice:
    """A voice of that shape with an index over ``vectors`` ``[n, content_width]``."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        synthesizer = Synthesizer(config, with_posterior=False).eval().requires_grad_(False)
        for layer in synthesizer.modules():
            if isinstance(layer, Coupling):
                # It starts as the identity: an untouched one would prove nothing.
                nn.init.normal_(layer.post.weight, std=_SHIFT_STD)
        content = torch.randn(1, _PROBE_FRAMES, config.content_width)
    pitch = torch.full((1, _PROBE_FRAMES), 60)
    with torch.inference_mode():
        for _ in range(3):
            made = synthesizer.convert(content, pitch, torch.full(pitch.shape, 150.0), torch.tensor([0]))
            synthesizer.dec.conv_post.weight *= _PEAK / float(made.abs().max())
    version = "v1" if config.content_width == 256 else "v2"
    encoder = "contentvec-v1" if version == "v1" else "contentvec"
    facts = VoiceFacts(config, encoder, "harvest", training={"epochs": 1, "steps": 1})
    directory, pth = folder / "voice", folder / "voice.pth"
    saved = save_voice(directory, facts, synthesizer.state_dict(), build_index(vectors, seed=seed))
    with pth.open("wb") as sink:
        write_pth(saved, load_weights_of(directory, saved), sink)
    return RandomVoice(directory, pth, directory / INDEX_FILE, version)


def near_vectors(features: Floats, *, seed: int = 0, copies: int = 4) -> Floats:
    """Vectors around features ``[n, width]``, none of them equal to one: upstream divides by the distance."""
    rng = np.random.default_rng(seed)
    spread = 0.1 * features.std()
    noise = rng.standard_normal((copies * len(features), features.shape[1])).astype(np.float32)
    return np.asarray(np.tile(features, (copies, 1)) + spread * noise, dtype=np.float32)
