"""The engines of this service and their parameters."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from services.common import limits


def _ranged(default: float | None, within: tuple[float, float], description: str) -> Any:
    """A number from the least to the most of a pair."""
    return Field(default, ge=within[0], le=within[1], description=description)


class QualityParameters(BaseModel):
    """What is good enough; zero is not judged."""

    model_config = ConfigDict(extra="forbid")

    max_word_error_rate: float = Field(
        0.0, ge=0.0, le=1.0, description="share of words that a recogniser may hear wrongly"
    )
    min_similarity: float = Field(0.0, ge=0.0, le=1.0, description="likeness of the voice to its reference")
    tries: int = _ranged(3, limits.TRIES, description="how often it is spoken at most")


class F5Parameters(BaseModel):
    """How F5 speaks."""

    model_config = ConfigDict(extra="forbid")

    preset: str = Field(limits.DEFAULT_PRESET, description="fast (7 steps), balanced (16) or quality (32)")
    steps: int = _ranged(
        limits.PRESETS[limits.DEFAULT_PRESET],
        limits.STEPS,
        description="evaluations of the flow; overrides the preset",
    )
    speed: float = _ranged(1.0, limits.SPEED, description="times the reference's pace")
    seed: int = Field(0, ge=0, description="the same seed gives the same audio; 0 chooses one")
    cfg_strength: float = _ranged(
        2.0, limits.CFG_STRENGTH, description="how much to lean on the text and the clip"
    )
    duration_s: float = _ranged(0.0, limits.DURATION_S, description="exactly this long; 0 for natural")
    language: str = Field("", description="BCP-47; the voice's first language where empty")
    style: str = Field(
        "", max_length=limits.MAX_WORD, description="of the reference clip; the default one where empty"
    )
    pitch_shift: float = _ranged(0.0, limits.PITCH_SHIFT, description="semitones, without a change of pace")
    loudness_lufs: float | None = _ranged(
        None, limits.LOUDNESS_LUFS, description="integrated loudness; as loud as the reference where unset"
    )
    lexicons: tuple[str, ...] = Field(
        (),
        max_length=limits.MAX_LEXICONS,
        description="by name; the first that has a word says how it is spoken",
    )
    verbatim: bool = Field(False, description="speaks the text as it is written")
    word_timestamps: bool = Field(False, description="says when each word is spoken")
    quality: QualityParameters | None = Field(
        None, description="speaks again, with another seed, what does not come out well"
    )


class RvcParameters(BaseModel):
    """How RVC converts."""

    model_config = ConfigDict(extra="forbid")

    pitch_shift: float = Field(0.0, ge=-24.0, le=24.0, description="semitones")
    index_rate: float = Field(0.5, ge=0.0, le=1.0, description="share of the retrieved features")
    filter_radius: int = Field(3, ge=0, le=7, description="frames of the median filter on the pitch")
    rms_mix_rate: float = Field(
        0.25, ge=0.0, le=1.0, description="1 keeps the output's loudness envelope, 0 gives it the input's"
    )
    protect: float = Field(0.33, ge=0.0, le=0.5, description="protects consonants; 0.5 turns it off")
    f0_method: str = Field("", description="the voice's own where empty")
    seed: int = Field(0, ge=0, description="the same seed gives the same audio")
    auto_pitch: bool = Field(False, description="brings the median pitch of the source to the voice's")


@dataclass(frozen=True, slots=True)
class EngineDescription:
    """An engine as users see it; ``parameters`` is its parameter model."""

    name: str
    capabilities: tuple[str, ...]
    description: str
    parameters: type[BaseModel]

    @property
    def parameter_schema(self) -> str:
        """JSON schema of the parameters."""
        return json.dumps(self.parameters.model_json_schema(), sort_keys=True)


ENGINES: tuple[EngineDescription, ...] = (
    EngineDescription(
        "f5",
        ("synthesize", "convert"),
        "F5-TTS: speaks text, or a recording again, in the voice of a short reference clip.",
        F5Parameters,
    ),
    EngineDescription(
        "rvc",
        ("train", "convert", "synthesize"),
        "RVC v2: a voice trained on recordings, for converting others and what F5 speaks.",
        RvcParameters,
    ),
)
