"""Real speech of a given length, with what is said in it."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from services.engines.f5.planning import RATE_HZ
from services.engines.f5.reference import ReferenceClip, prepare

SPEECH = Path(__file__).parents[2] / "tests" / "fixtures" / "speech"


def clip_of(seconds: float) -> ReferenceClip:
    """A reference clip of about so many seconds, prepared."""
    audio, text = _speech(seconds)
    return prepare("bench", audio, RATE_HZ, text)


def recording_of(seconds: float) -> tuple[bytes, str]:
    """The same as a WAV file's bytes, and what is said in it."""
    audio, text = _speech(seconds)
    data = io.BytesIO()
    soundfile.write(data, audio, RATE_HZ, format="WAV", subtype="PCM_16")
    return data.getvalue(), text


def _speech(seconds: float) -> tuple[NDArray[np.float32], str]:
    manifest = json.loads((SPEECH / "manifest.json").read_text(encoding="utf-8"))
    entry = next(one for one in manifest["files"] if one["kind"] == "target" and one["language"] == "en")
    samples, rate_hz = soundfile.read(SPEECH / entry["file"], dtype="float32")
    said: list[str] = []
    end_s = 0.0
    for prompt in entry["prompts"]:
        said.append(prompt["text"])
        end_s = prompt["end_s"]
        if end_s >= seconds:
            break
    audio = soxr.resample(samples[: round(end_s * rate_hz)], rate_hz, RATE_HZ).astype(np.float32)
    return audio[: round(seconds * RATE_HZ)], " ".join(said)
