"""How alike two voices are: Resemblyzer's speaker encoder, whose weights are in its package.

The encoder follows "Generalized End-to-End Loss for Speaker Verification" (Wan et al., 2018). Its package
asks for a build of WebRTC's voice detector that has no wheel; ``webrtcvad-wheels`` is the same module, so
the package is installed without its own list of dependencies.
"""

from __future__ import annotations

import importlib.util
import warnings

import numpy as np
from numpy.typing import NDArray

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.media.resample import resample

RATE_HZ = 16_000
WIDTH = 256
_PACKAGE = "resemblyzer"

Samples = NDArray[np.float32]
Embedding = NDArray[np.float32]


def available() -> bool:
    """Whether the encoder is installed; cheap, imports nothing of it."""
    return importlib.util.find_spec(_PACKAGE) is not None


class SpeakerEncoder:
    """The encoder, loaded once; takes about 20 MB.

    Args:
        device: ``cpu`` or ``cuda``.

    Raises:
        VoxfleetError: MODEL_NOT_FOUND where its package is absent.
    """

    def __init__(self, device: str = "cpu") -> None:
        if not available():
            raise VoxfleetError(
                Reason.MODEL_NOT_FOUND,
                "likeness of voices needs the package resemblyzer; install it with: "
                f"pip install --no-deps {_PACKAGE}",
                kind=Kind.PRECONDITION,
                metadata={"model": "resemblyzer", "package": _PACKAGE},
            )
        with warnings.catch_warnings():
            # It imports a name from SciPy that has moved.
            warnings.simplefilter("ignore", DeprecationWarning)
            import resemblyzer
        self._prepare = resemblyzer.preprocess_wav
        self._encoder = resemblyzer.VoiceEncoder(device, verbose=False)

    def embed(self, samples: Samples, rate_hz: int) -> Embedding | None:
        """Whose voice it is: ``[256]`` of length 1; None where there is no voice in it.

        Args:
            samples: [samples] or [channels, samples].
            rate_hz: theirs.
        """
        mono = samples.mean(axis=0, dtype=np.float32) if samples.ndim == 2 else samples
        if mono.size == 0 or not np.any(mono):
            return None
        voiced = self._prepare(resample(mono, rate_hz, RATE_HZ))
        if len(voiced) == 0:
            return None
        embedding = np.asarray(self._encoder.embed_utterance(voiced), dtype=np.float32)
        return embedding if np.isfinite(embedding).all() else None


def likeness(one: Embedding | None, other: Embedding | None) -> float:
    """The cosine of two voices, -1 to 1 (in practice 0.4 to 1); 0 where one has no voice."""
    if one is None or other is None:
        return 0.0
    return float(np.clip(np.dot(one, other), -1.0, 1.0))
