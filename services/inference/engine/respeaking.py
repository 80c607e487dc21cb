"""Zero-shot conversion: a recording's words, heard with their times, spoken again in another voice."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError, invalid
from services.common.jobs.tasks import RespeakTask
from services.common.limits import MAX_RESPOKEN_S
from services.common.media.decode import decode
from services.common.media.resample import resample
from services.engines.f5 import respeaking
from services.engines.f5.planning import MIN_SLOT_S, RATE_HZ, Plan, Reference, SynthesisItem, seed_of
from services.engines.f5.respeaking import Phrase
from services.engines.f5.synthesis import F5Model
from services.engines.whisper.recordings import Heard, listen
from services.inference.calls import Advance, EngineFacts
from services.inference.engine.blobs import fetch
from services.inference.engine.listening import Ear
from services.inference.engine.running import Emit, Stopped, stopped_error
from services.inference.languages import bundle_for
from services.inference.model import Rank

_TOGETHER = 16
"""Phrases given to a GPU at once; between two such groups it is said how far it is."""

Samples = NDArray[np.float32]
Wording = Callable[[str, str], str]
"""A text and its language, as it is to be spoken."""


@dataclass(frozen=True, slots=True)
class Recording:
    """What was heard in a recording of so many samples at such a rate."""

    heard: Heard
    samples: int
    rate_hz: int

    def samples_at(self, rate_hz: int) -> int:
        """As many samples as it has at another rate."""
        return round(self.samples * rate_hz / self.rate_hz)


@dataclass(frozen=True, slots=True)
class Respoken:
    """What came of a recording.

    Args:
        audio: [samples], exactly as long as the recording.
        rate_hz: as the task's output asks for, or the engine's own.
        phrases: what was said, and where it is, in samples at the engine's 24 kHz.
        spoken_text: all of it as it was spoken.
        work_s: of speaking.
    """

    audio: Samples
    rate_hz: int
    phrases: tuple[Phrase, ...]
    spoken_text: str
    work_s: float


class Respeaking:
    """Hears recordings and speaks them again.

    Args:
        facts: which languages are spoken, and on which device.
        store: for recordings.
        ear: who listens.
    """

    def __init__(self, facts: EngineFacts, store: ArtifactStore, ear: Ear) -> None:
        self._facts = facts
        self._store = store
        self._ear = ear

    def hear(self, task: RespeakTask, allowed: Sequence[str], emit: Emit, stopped: Stopped) -> Recording:
        """What is said in the task's recording, and when.

        Args:
            task: says which, and in which language where that is known.
            allowed: licences of the weights that may speak it; any where there are none.
            emit: told how far it is: fetch, listen.
            stopped: asked between stretches of the recording.

        Raises:
            VoxfleetError: AUDIO_NOT_FOUND, INVALID_FORMAT, AUDIO_TOO_LONG, SPEECH_NOT_HEARD,
                UNSUPPORTED_LANGUAGE, LICENCE_NOT_ALLOWED, CANCELLED.
        """

        def check(language: str) -> None:
            bundle_for(language, self._facts, allowed)

        emit(Advance("fetch"))
        audio = decode(fetch(self._store, task.audio.blob, Reason.AUDIO_NOT_FOUND))
        _check_length(audio.duration_s)

        def advance(share: float) -> None:
            if stopped():
                raise stopped_error()
            emit(Advance("listen", share))

        advance(0.0)
        heard = listen(
            self._ear.recogniser(),
            audio.samples,
            audio.rate_hz,
            language=task.parameters.language,
            check=check,
            advance=advance,
        )
        return Recording(heard, audio.samples.shape[-1], audio.rate_hz)

    def speak(
        self,
        model: F5Model,
        recording: Recording,
        task: RespeakTask,
        reference: Reference,
        emit: Emit,
        *,
        stopped: Stopped,
        wording: Wording = lambda text, _: text,
    ) -> Respoken:
        """The recording in the reference's voice, to the sample as long as it is.

        Args:
            model: who speaks.
            recording: what was heard.
            task: how to speak; its seed is not 0.
            reference: in whose voice.
            emit: told how far it is.
            stopped: asked by the network between its steps.
            wording: how a phrase is spoken: numbers in words, lexicons applied.

        Raises:
            VoxfleetError: SLOT_TOO_SHORT, UNSUPPORTED_CHARACTERS, SYNTHESIS_FAILED, GPU_OUT_OF_MEMORY,
                CANCELLED.
        """
        worded = functools.cache(lambda text: wording(text, recording.heard.language))

        def plan(text: str, samples: int, number: int) -> Plan:
            item = SynthesisItem(
                text=worded(text),
                reference=reference,
                steps=task.parameters.steps,
                cfg_strength=task.parameters.cfg_strength,
                seed=seed_of(task.parameters.seed, number),
                duration_s=samples / RATE_HZ,
            )
            return model.plan(item)

        length = recording.samples_at(RATE_HZ)
        phrases = respeaking.phrases(recording.heard.words, length, RATE_HZ, lambda text: _least(plan, text))
        plans = [plan(phrase.text, phrase.samples, number) for number, phrase in enumerate(phrases)]
        spoken, work_s = self._spoken(model, plans, emit, stopped)
        track = respeaking.assemble(list(zip(phrases, spoken, strict=True)), length, RATE_HZ)
        rate_hz = task.output.rate_hz or RATE_HZ
        audio = _fitted(resample(track, RATE_HZ, rate_hz), recording.samples_at(rate_hz))
        return Respoken(audio, rate_hz, phrases, " ".join(worded(p.text) for p in phrases), work_s)

    def _spoken(
        self, model: F5Model, plans: list[Plan], emit: Emit, stopped: Stopped
    ) -> tuple[list[Samples], float]:
        """The audio of every plan, and the seconds of work in it."""
        together = 1 if self._facts.device == "cpu" else _TOGETHER
        results = []
        total = sum(plan.frames for plan in plans)
        done = 0
        for first in range(0, len(plans), together):
            emit(Advance("speak", done / total))
            group = plans[first : first + together]
            results += model.render(group, cancelled=stopped, rank=Rank.CONVERSION)
            done += sum(plan.frames for plan in group)
        return [result.audio for result in results], sum(result.stats.wall_s for result in results)


def _check_length(duration_s: float) -> None:
    """Errors: AUDIO_TOO_LONG with ``duration_s`` and ``max_duration_s``."""
    if duration_s > MAX_RESPOKEN_S:
        raise invalid(
            Reason.AUDIO_TOO_LONG,
            f"engine f5 converts at most {MAX_RESPOKEN_S:g} s at once; this recording has {duration_s:.1f}",
            field="audios",
            duration_s=f"{duration_s:.3f}",
            max_duration_s=MAX_RESPOKEN_S,
        )


def _least(plan: Callable[[str, int, int], Plan], text: str) -> int:
    """How many samples a text takes as fast as it can be spoken: the planner is asked, who refuses less."""
    samples = math.ceil(MIN_SLOT_S * RATE_HZ)
    while True:
        try:
            plan(text, samples, 0)
        except VoxfleetError as error:
            refused = float(error.metadata.get("min_s", 0.0)) * RATE_HZ
            if refused <= samples:
                raise
            samples = math.ceil(refused)
        else:
            return samples


def _fitted(audio: Samples, samples: int) -> Samples:
    """A change of rate may give a sample more or less than asked for."""
    return np.pad(audio, (0, max(0, samples - len(audio))))[:samples]
