"""Content encoders: a table of what turns speech into features that say what, not who."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Protocol

import numpy as np

from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.engines.rvc.audio import Floats

FRAME_SAMPLES = 320
"""Samples of 16 kHz audio a feature frame: 50 a second. RVC repeats each one to get 100."""


class ContentEncoder(Protocol):
    """Turns 16 kHz audio into content features."""

    name: str
    width: int

    def encode(self, samples: Floats) -> Floats:
        """Features ``[ceil(n / 320), width]``, one each 20 ms."""


@dataclass(frozen=True, slots=True)
class ContentSources:
    """Where encoders find their weights and run.

    Args:
        cache_dir: holds what is put together once, such as Whisper's joined model.
        contentvec_dir: a HuBERT model as ``transformers`` saves it, where there is one.
        device: ``cpu`` or ``cuda``.
        threads: CPU threads of one call.
    """

    cache_dir: Path
    contentvec_dir: Path | None = None
    device: str = "cpu"
    threads: int = 1


@dataclass(frozen=True, slots=True)
class EncoderSpec:
    """An entry of the table: the width is known before anything is loaded."""

    name: str
    width: int
    build: Callable[[ContentSources], ContentEncoder]


def content_encoder(name: str, sources: ContentSources) -> ContentEncoder:
    """An encoder by name; a process loads each one once.

    Raises:
        VoxfleetError: ``UNSUPPORTED_ENGINE`` for unknown names, ``MODEL_NOT_FOUND`` where its
            weights are absent.
    """
    return _loaded(encoder_spec(name).name, sources)


@functools.lru_cache(maxsize=4)
def _loaded(name: str, sources: ContentSources) -> ContentEncoder:
    return ENCODERS[name].build(sources)


def encoder_spec(name: str) -> EncoderSpec:
    """The table's entry; ``UNSUPPORTED_ENGINE`` for unknown names."""
    if name not in ENCODERS:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"content encoder {name!r} is unknown; use one of: {', '.join(ENCODERS)}",
            field="content_encoder",
            content_encoder=name,
        )
    return ENCODERS[name]


def repeat_frames(features: Floats, frames: int) -> Floats:
    """Features of 50 Hz at 100 Hz, each twice, cut or held at the end to ``frames`` rows."""
    index = np.minimum(np.arange(frames) // 2, len(features) - 1)
    return features[index]


def _build_whisper(sources: ContentSources) -> ContentEncoder:
    from services.engines.whisper.bundle import whisper_base
    from services.engines.whisper.encoder import WhisperEncoder

    return WhisperEncoder(whisper_base(sources.cache_dir), device=sources.device, threads=sources.threads)


def _build_contentvec(sources: ContentSources, *, version: int) -> ContentEncoder:
    folder = sources.contentvec_dir
    if folder is None or not (folder / "config.json").is_file():
        raise VoxfleetError(
            Reason.MODEL_NOT_FOUND,
            "ContentVec's weights are not installed; on a machine that reaches the Hugging Face hub save "
            "lengyue233/content-vec-best (MIT) as a folder, import it with `voxfleet models import DIR`, "
            "or train with the content encoder whisper-base",
            kind=Kind.NOT_FOUND,
            metadata={"model": "contentvec"},
        )
    from services.engines.rvc.contentvec import ContentVec

    return ContentVec(folder, sources.device, version=version)


ENCODERS = MappingProxyType(
    {
        "whisper-base": EncoderSpec("whisper-base", 512, _build_whisper),
        "contentvec": EncoderSpec("contentvec", 768, functools.partial(_build_contentvec, version=2)),
        "contentvec-v1": EncoderSpec("contentvec-v1", 256, functools.partial(_build_contentvec, version=1)),
    }
)
