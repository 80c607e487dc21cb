"""PREPARE: fetch the clips, cut them into slices, track their pitch. CPU alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.trainer import records
from services.trainer.model import Phase
from services.trainer.stage import Prepared
from services.trainer.stages.context import StageContext

Floats = NDArray[np.float32]

_HEADER = "voxfleet"


class Slices:
    """Slices with their pitch.

    Args:
        samples: each ``[n]`` at the model's rate.
        samples_16k: the same sound at 16 kHz.
        f0_hz: ``[frames]``, one each 10 ms.
        f0_method: what tracked it.
    """

    def __init__(
        self,
        samples: Sequence[Floats],
        samples_16k: Sequence[Floats],
        f0_hz: Sequence[Floats],
        f0_method: str,
    ) -> None:
        self.samples, self.samples_16k, self.f0_hz = list(samples), list(samples_16k), list(f0_hz)
        self.f0_method = f0_method

    def save(self, path: Path) -> None:
        """Writes one safetensors file."""
        parts = {"samples": self.samples, "samples_16k": self.samples_16k, "f0_hz": self.f0_hz}
        arrays: dict[str, NDArray[np.generic]] = {}
        for name, values in parts.items():
            arrays[name] = np.concatenate(values)
            arrays[f"{name}_ends"] = np.cumsum([len(value) for value in values], dtype=np.int64)
        header = json.dumps({"format": "voxfleet-rvc-slices", "version": 1, "f0_method": self.f0_method})
        save_file(arrays, str(path), metadata={_HEADER: header})

    @classmethod
    def load(cls, path: Path) -> Slices:
        """Reads what :meth:`save` wrote; ARTIFACT_CORRUPT where it is something else."""
        try:
            with safe_open(str(path), framework="np") as data:
                header = json.loads((data.metadata() or {})[_HEADER])
                samples, samples_16k, f0_hz = (
                    np.split(data.get_tensor(name), data.get_tensor(f"{name}_ends")[:-1])
                    for name in ("samples", "samples_16k", "f0_hz")
                )
            return cls(samples, samples_16k, f0_hz, str(header["f0_method"]))
        except (SafetensorError, ValueError, KeyError, TypeError) as error:
            raise VoxfleetError(
                Reason.ARTIFACT_CORRUPT, f"{path.name} holds no slices: {error}", kind=Kind.DATA_LOSS
            ) from error


class TrackedF0:
    """An F0 method that looks up what was tracked before, so that no GPU waits for it.

    Args:
        slices: whose pitch is known; of anything else only silence may be asked.
    """

    def __init__(self, slices: Slices) -> None:
        self.name = slices.f0_method
        self._known = {_digest(s): f0 for s, f0 in zip(slices.samples_16k, slices.f0_hz, strict=True)}

    def track(self, samples: Floats, frames: int) -> Floats:
        """F0 in Hz, ``[frames]``, one each 10 ms of 16 kHz audio; 0 where unvoiced."""
        known = self._known.get(_digest(samples))
        if known is None:
            if samples.any():
                raise internal("the pitch of a slice was never tracked")
            return np.zeros(frames, np.float32)
        return np.pad(known[:frames], (0, max(frames - len(known), 0)), mode="edge")


def prepare(context: StageContext) -> Prepared:
    """Stores the slices with their F0, and then the record by which a later attempt finds them.

    Raises:
        VoxfleetError: whatever is wrong with the audio; CANCELLED.
    """
    from services.common.media.decode import decode
    from services.engines.rvc import pipeline

    spec, telling = context.spec, context.telling
    # The width is of no account here: nothing is encoded yet.
    config = pipeline.preset(spec.recipe.preset, content_width=1)
    audios = spec.task.audios
    clips: list[Floats] = []
    for number, audio in enumerate(audios):
        telling.check_stop()
        telling.tell(Phase.FETCH, number, len(audios))
        path = context.fetch(audio.blob, f"clip-{number}")
        clips.append(decode(path, rate_hz=config.rate_hz).samples)
        path.unlink()
    telling.tell(Phase.SLICE)
    cut = pipeline.prepare(clips, config.rate_hz, config, should_stop=telling.should_stop)
    clips.clear()
    method = pipeline.f0_method(spec.recipe.f0_method)
    tracks: list[Floats] = []
    for number, piece in enumerate(cut):
        telling.check_stop()
        telling.tell(Phase.F0, number, len(cut))
        tracks.append(method.track(piece.samples_16k, len(piece.samples) // config.hop))
    slices = Slices([s.samples for s in cut], [s.samples_16k for s in cut], tracks, method.name)
    path = context.folder / "slices"
    slices.save(path)
    blob = context.put(records.slices_name(spec.slices_key), path)
    audio_s = round(sum(len(piece.samples) for piece in cut) / config.rate_hz, 2)
    prepared = Prepared(blob, len(cut), audio_s)
    context.put_record(records.prepared_name(spec.slices_key), records.dump_prepared(prepared))
    return prepared


def _digest(samples: Floats) -> bytes:
    return hashlib.blake2b(np.ascontiguousarray(samples).tobytes(), digest_size=16).digest()
