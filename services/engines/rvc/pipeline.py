"""RVC from clips to a voice, in the order a trainer calls it.

::

    slices = prepare(clips, rate_hz, config)
    features = extract(slices, encoder, f0, config)        # savable: FeatureSet.save, FeatureSet.load
    state = new_state(config, params, "cuda")              # or load_checkpoint(path, "cuda")
    result = train(state, features, on_progress=..., on_checkpoint=..., should_stop=...)
    retrieval = build_index(features)
    facts = save_voice(directory, state, features, retrieval)

and for conversion ``load_voice`` and ``convert``. No call touches the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from services.engines.rvc import preprocess, retrieval, voice
from services.engines.rvc.checkpoint import load_checkpoint, save_checkpoint
from services.engines.rvc.config import ModelConfig, preset
from services.engines.rvc.content import ContentSources, content_encoder, encoder_spec
from services.engines.rvc.conversion import ConvertParams, convert
from services.engines.rvc.f0 import f0_method
from services.engines.rvc.features import FeatureSet, extract
from services.engines.rvc.matching import RANGE_KEY, pitch_range
from services.engines.rvc.preprocess import Slice
from services.engines.rvc.retrieval import Retrieval
from services.engines.rvc.state import State, TrainParams, new_state
from services.engines.rvc.stopping import ShouldStop, never
from services.engines.rvc.training import (
    End,
    TrainProgress,
    TrainResult,
    steps_per_epoch,
    train,
)
from services.engines.rvc.voice import VoiceFacts, load_voice

__all__ = [
    "ContentSources",
    "ConvertParams",
    "End",
    "FeatureSet",
    "ModelConfig",
    "Retrieval",
    "Slice",
    "State",
    "TrainParams",
    "TrainProgress",
    "TrainResult",
    "VoiceFacts",
    "build_index",
    "content_encoder",
    "convert",
    "default_epochs",
    "encoder_spec",
    "extract",
    "f0_method",
    "load_checkpoint",
    "load_voice",
    "new_state",
    "prepare",
    "preset",
    "save_checkpoint",
    "save_voice",
    "train",
]

_DEFAULT_STEPS = 6000
_DEFAULT_EPOCHS = (100, 800)


def prepare(
    clips: Sequence[NDArray[np.floating]],
    rate_hz: int,
    config: ModelConfig,
    *,
    should_stop: ShouldStop = never,
) -> list[Slice]:
    """Cut recordings of one rate, ``[n]`` or ``[channels, n]`` each, into slices for this model."""
    return preprocess.prepare(clips, rate_hz, config.rate_hz, should_stop=should_stop)


def default_epochs(slices: int, batch_size: int) -> int:
    """Epochs for about 6,000 steps, within 100 and 800: short recordings need more passes."""
    low, high = _DEFAULT_EPOCHS
    return min(max(-(-_DEFAULT_STEPS // steps_per_epoch(slices, batch_size)), low), high)


def build_index(features: FeatureSet, *, seed: int = 0) -> Retrieval:
    """The retrieval index over every content feature."""
    return retrieval.build_index(features.content_vectors(), seed=seed)


def save_voice(
    directory: Path,
    state: State,
    features: FeatureSet,
    index: Retrieval | None,
    *,
    last: TrainProgress | None = None,
) -> VoiceFacts:
    """Write what was trained as a voice, its best weights where any were judged; no ``directory`` may exist.

    Args:
        directory: where to.
        state: what was trained.
        features: what it was trained on.
        index: the retrieval index, where there is one.
        last: the final progress of the run, recorded in ``voice.json``.
    """
    training: dict[str, Any] = {
        "epochs": state.epoch,
        "steps": state.step,
        "audio_s": round(features.duration_s, 2),
        "slices": len(features.slices),
        "params": state.params.to_dict(),
        "last": asdict(last) if last is not None else None,
    }
    if (heard := pitch_range(part.f0_hz for part in features.slices)) is not None:
        training[RANGE_KEY] = heard.to_dict()
    weights: Mapping[str, Tensor] = state.synthesizer.state_dict()
    if state.best is not None:
        # What did best on what it never saw; the last weights may know the recordings by heart.
        training |= {"best_step": state.best.step, "mel_error": round(state.best.error, 4)}
        weights = state.best.weights
    facts = VoiceFacts(state.config, features.content_encoder, features.f0_method, training)
    return voice.save_voice(directory, facts, weights, index)
