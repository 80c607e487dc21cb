"""What will be computed for a request: its chunks, their tokens, lengths and seeds. No torch arithmetic.

F5 is told how long the whole is (reference and new speech together) before it begins. Upstream's rule
(``infer_batch_process`` in ``f5_tts/infer/utils_infer.py``): the new text takes as long, byte for
byte, as the reference's transcript did.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from dataclasses import dataclass

import torch

from services.common import limits
from services.common.errors import Reason, VoxfleetError, invalid
from services.engines.f5 import schedule
from services.engines.f5 import text as f5_text
from services.engines.f5.model import HOP
from services.engines.f5.text import Vocabulary

RATE_HZ = 24_000
CROSSFADE_S = 0.15
MAX_TOTAL_S = 30.0
"""Reference and speech together: F5 was trained on clips up to this long."""
CHUNK_TOTAL_S = 22.0
"""The same for a chunk of a longer text, as upstream: with room for a slow estimate."""
MIN_SPEED, MAX_SPEED = 0.3, 2.0
SLOWEST_FIT = 0.5
"""A slot longer than the text at half speed is filled up with silence, not with slower speech."""
MIN_SLOT_S, MAX_SLOT_S = 0.25, limits.DURATION_S[1]
MAX_CFG_STRENGTH = 10.0
MAX_SPOKEN_CHARACTERS = 4 * limits.MAX_TEXT
"""Of a text as it is spoken: numbers grow when they are put into words."""

_FRAMES_PER_S = RATE_HZ / HOP
_SHORT_TEXT_BYTES = 10
_SHORT_TEXT_SPEED = 0.3
_LEAST_CHUNK_BYTES = 24


@dataclass(frozen=True, slots=True)
class Reference:
    """A prepared clip as the network takes it.

    Args:
        id: the caller's name for it.
        mel: [frames, 100] float32 log-mel, on the CPU.
        text: its transcript, with the ending that F5 needs.
        gain: what the clip was multiplied by; outputs are divided by it.
    """

    id: str
    mel: torch.Tensor
    text: str
    gain: float = 1.0

    @property
    def frames(self) -> int:
        """Whole hops of the clip. Its mel has one frame more, centred on the clip's end."""
        return int(self.mel.shape[0]) - 1

    @property
    def duration_s(self) -> float:
        """The clip's length, to a frame."""
        return self.frames / _FRAMES_PER_S


@dataclass(frozen=True, slots=True)
class SynthesisItem:
    """One text to speak.

    Args:
        text: what to say, as it is spoken; at most 20,000 characters.
        reference: in whose voice.
        steps: evaluations of the flow, 1 to 64; ``limits.PRESETS`` names three.
        cfg_strength: how much to lean on the text and the clip, 0 to 10; 0 halves the cost.
        speed: 0.3 to 2.0 times the reference's pace; has no effect where ``duration_s`` is given.
        seed: the same seed, text, clip and settings give the same audio, whatever else is in the batch.
        duration_s: the exact length of the result, or None for the natural one.
    """

    text: str
    reference: Reference
    steps: int = limits.PRESETS[limits.DEFAULT_PRESET]
    cfg_strength: float = 2.0
    speed: float = 1.0
    seed: int = 0
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Segment:
    """One pass of the network.

    Args:
        tokens: of the reference's transcript and this chunk's text, as vocabulary indices.
        frames: of the reference and the new speech together.
        samples: the exact length of its audio, or None to keep what the frames give.
        seed: of its noise.
        text: the chunk.
    """

    tokens: tuple[int, ...]
    frames: int
    samples: int | None
    seed: int
    text: str


@dataclass(frozen=True, slots=True)
class Plan:
    """All that is to be computed for an item.

    Args:
        item: what was asked for.
        segments: in the order of the text.
        samples: the exact length of the whole, or None.
    """

    item: SynthesisItem
    segments: tuple[Segment, ...]
    samples: int | None

    @property
    def lengths(self) -> tuple[int, ...]:
        """Samples of each segment's audio before it is joined with the next."""
        kept = self.item.reference.frames
        return tuple(
            # n frames decode to n - 1 hops.
            (segment.frames - kept - 1) * HOP if segment.samples is None else segment.samples
            for segment in self.segments
        )

    @property
    def frames(self) -> int:
        """Frames over all passes, references included: what the work costs."""
        return sum(segment.frames for segment in self.segments)


@dataclass(frozen=True, slots=True)
class Streaming:
    """How a text is cut for a stream: each chunk is computed while the one before it is heard.

    Args:
        first_s: of the first chunk, which somebody waits for.
        growth: of each chunk over the one before.
        most_s: of any chunk.
    """

    first_s: float = 3.0
    growth: float = 2.0
    most_s: float = 12.0

    def seconds(self) -> tuple[float, ...]:
        """The longest chunk in turn; the last holds for all further ones."""
        found = [min(self.first_s, self.most_s)]
        while found[-1] < self.most_s:
            found.append(min(found[-1] * max(self.growth, 1.1), self.most_s))
        return tuple(found)


def plan(item: SynthesisItem, vocabulary: Vocabulary, *, streaming: Streaming | None = None) -> Plan:
    """Check an item and lay out its work.

    Args:
        item: what is asked for.
        vocabulary: of the weights that will speak it.
        streaming: how to cut it for a stream; by default chunks are as long as F5 allows.

    Raises:
        VoxfleetError: TEXT_EMPTY, TEXT_TOO_LONG, UNSUPPORTED_CHARACTERS; INVALID_ARGUMENT for a
            setting out of range, and for a slot the text does not fit in (``min_s``, ``max_s``).
    """
    _check_settings(item)
    text = f5_text.checked(item.text, max_characters=MAX_SPOKEN_CHARACTERS)
    reference = item.reference
    if reference.frames < 1 or not math.isfinite(reference.gain) or reference.gain <= 0:
        raise invalid(Reason.INVALID_ARGUMENT, f"reference {reference.id} holds no audio", field="reference")
    frames_per_byte = reference.frames / f5_text.size_of(reference.text)
    natural_s = f5_text.size_of(text) * frames_per_byte / _FRAMES_PER_S
    speed = item.speed if item.duration_s is None else _speed_for(item.duration_s, natural_s)
    room_s = max(CHUNK_TOTAL_S - reference.duration_s, 2.0)

    def bytes_in(seconds: float) -> int:
        return max(_LEAST_CHUNK_BYTES, int(min(seconds, room_s) * _FRAMES_PER_S / frames_per_byte * speed))

    if streaming is None:
        chunks = f5_text.chunks(text, bytes_in(room_s))
    else:
        limits = [bytes_in(seconds) for seconds in streaming.seconds()]
        chunks = f5_text.growing_chunks(text, limits, _LEAST_CHUNK_BYTES)
    encoded = [tuple(vocabulary.encode(f5_text.tokens(reference.text, chunk))) for chunk in chunks]
    samples = None if item.duration_s is None else round(item.duration_s * RATE_HZ)
    lengths: list[int | None] = [None] * len(chunks)
    if samples is not None:
        spoken = min(samples, max(round(natural_s / speed * RATE_HZ), round(MIN_SLOT_S * RATE_HZ)))
        lengths = list(_shares(spoken, [f5_text.size_of(chunk) for chunk in chunks]))
    pace = _Pace(reference.frames, frames_per_byte, speed)
    segments = tuple(
        Segment(tokens, pace.frames(chunk, len(tokens), length), length, seed_of(item.seed, index), chunk)
        for index, (chunk, tokens, length) in enumerate(zip(chunks, encoded, lengths, strict=True))
    )
    return Plan(item, segments, samples)


def seed_of(seed: int, index: int) -> int:
    """The seed of a text's chunk: the item's own for the first, one derived from it for each further."""
    if index == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"{seed}/{index}".encode()).digest()[:8], "big") >> 1


@dataclass(frozen=True, slots=True)
class _Pace:
    """How long a chunk takes: the reference's own pace, times the speed."""

    reference_frames: int
    frames_per_byte: float
    speed: float

    def frames(self, chunk: str, tokens: int, samples: int | None) -> int:
        """Reference and new speech together, in frames."""
        least = max(tokens, self.reference_frames + 1) + 1
        if samples is not None:
            # n frames decode to n - 1 hops; what is over is cut off.
            exact = self.reference_frames + math.ceil(samples / HOP) + 1
            if exact < least:
                raise _does_not_fit(samples / RATE_HZ, (least - 1 - self.reference_frames) * HOP / RATE_HZ)
            return exact
        size = f5_text.size_of(chunk)
        # A word or two is given time: its bytes say too little about how long it takes.
        speed = min(self.speed, _SHORT_TEXT_SPEED) if size < _SHORT_TEXT_BYTES else self.speed
        natural = self.reference_frames + int(self.frames_per_byte * size / speed)
        return max(min(natural, int(MAX_TOTAL_S * _FRAMES_PER_S)), least)


def _speed_for(duration_s: float, natural_s: float) -> float:
    """How fast the text must be spoken to fill the slot, as far as silence does not fill it."""
    least_s = max(MIN_SLOT_S, natural_s / MAX_SPEED)
    if not least_s <= duration_s <= MAX_SLOT_S:
        raise _does_not_fit(duration_s, least_s)
    return min(MAX_SPEED, max(natural_s / duration_s, SLOWEST_FIT))


def _does_not_fit(duration_s: float, least_s: float) -> VoxfleetError:
    # Rounded up, so that what is offered is accepted.
    min_s = math.ceil(least_s * 100) / 100
    return invalid(
        Reason.INVALID_ARGUMENT,
        f"the text cannot be spoken in {duration_s:g} s: between {min_s:g} and {MAX_SLOT_S:g} s can be had",
        field="duration_s",
        duration_s=duration_s,
        min_s=min_s,
        max_s=MAX_SLOT_S,
    )


def _shares(samples: int, sizes: list[int]) -> list[int]:
    """Lengths in proportion to the sizes that give ``samples`` when joined with crossfades."""
    whole = samples + round(CROSSFADE_S * RATE_HZ) * (len(sizes) - 1)
    edges = [round(whole * sum(sizes[:index]) / sum(sizes)) for index in range(len(sizes) + 1)]
    return [after - before for before, after in itertools.pairwise(edges)]


def _check_settings(item: SynthesisItem) -> None:
    ranges: tuple[tuple[str, float, float, float], ...] = (
        ("steps", item.steps, 1, schedule.MAX_STEPS),
        ("cfg_strength", item.cfg_strength, 0.0, MAX_CFG_STRENGTH),
        ("speed", item.speed, MIN_SPEED, MAX_SPEED),
        ("seed", item.seed, 0, 2**63 - 1),
    )
    for name, value, least, most in ranges:
        if not least <= value <= most:  # also refuses NaN
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"{name} is {value:g}; it must be between {least:g} and {most:g}",
                field=name,
                value=value,
                min=least,
                max=most,
            )
