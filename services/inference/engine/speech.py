"""What an F5 replica does: it speaks with the bundle that has a text's language, and stores what it made."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError, internal
from services.common.jobs.tasks import F5Voice, RespeakTask, SpeakTask
from services.engines.bundles.manifest import Manifest
from services.engines.device import natural_device
from services.engines.f5.planning import RATE_HZ
from services.engines.f5.reference import MAX_S
from services.engines.f5.wording import spoken
from services.engines.whisper.alignment import words_of
from services.inference.calls import (
    Advance,
    Closed,
    EngineFacts,
    EngineSpec,
    Excerpt,
    Listen,
    Made,
    Opened,
    Pcm,
    Probe,
    Request,
    Respeak,
    Speak,
    StreamSpeech,
    Weights,
)
from services.inference.engine import quality
from services.inference.engine.blobs import keep_audio, pcm16, team_id
from services.inference.engine.bundle import LoadedBundle
from services.inference.engine.finishing import finished
from services.inference.engine.listening import Ear, excerpt, listen
from services.inference.engine.marking import UNMARKED, Marking
from services.inference.engine.quality import Judge
from services.inference.engine.respeaking import Respeaking
from services.inference.engine.running import Emit, Stopped, stopped_error
from services.inference.engine.voicing import Asked, Piece, Voicing
from services.inference.languages import bundle_for, language_of
from services.inference.model import Rank, Role
from services.inference.slots import natural_slots
from services.inference.tags import provenance_tags

log = logging.getLogger(__name__)

Samples = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpeechLimits:
    """How much an F5 replica takes on at once; 0 means what suits its device.

    Args:
        slots: texts at once.
        reference_s: of a clip at the most; a frame of it costs as much as one of speech.
        compiler: backend of ``torch.compile`` on a GPU; none where empty.
    """

    slots: int = 0
    reference_s: float = MAX_S
    compiler: str = ""


@dataclass(frozen=True, slots=True)
class _Output:
    """Finished audio that is to be stored; ``source`` is the audio it was made from."""

    audio: Samples
    rate_hz: int
    seed: int
    work_s: float
    weights: Weights
    source: str = ""


class SpeechBody:
    """F5 bundles that speak, each what it was made for.

    Args:
        spec: which bundles.
        store: for reference clips, outputs and the bundle.
        cache_dir: of the node.
        limits: how much at once.
        marking: whether outputs carry the mark.

    Raises:
        VoxfleetError: MODEL_CORRUPT, ARTIFACT_NOT_FOUND, STORAGE_UNAVAILABLE.
    """

    def __init__(
        self,
        spec: EngineSpec,
        store: ArtifactStore,
        cache_dir: Path,
        limits: SpeechLimits,
        marking: Marking = UNMARKED,
    ) -> None:
        self._store = store
        self._limits = limits
        self._cache_dir = cache_dir
        self._device = natural_device()
        self._bundles = {bundle.weights.name: bundle for bundle in [self._load(spec.bundle)]}
        broken = tuple(self._load_more(spec.more))
        speaking = tuple(bundle.speaking for bundle in self._bundles.values())
        self.facts = EngineFacts(
            role=Role.F5,
            weights=speaking[0].weights,
            device=self._device,
            slots=limits.slots or natural_slots(Role.F5, on_gpu=self._device == "cuda"),
            node=socket.gethostname(),
            pid=os.getpid(),
            speaking=speaking,
            broken=broken,
        )
        self._marking = marking
        self._ear = Ear(cache_dir, device=self._device)
        self._judge = Judge(self._ear, device=self._device)
        self._respeaking = Respeaking(self.facts, store, self._ear)

    def _load(self, manifest: Manifest | None) -> LoadedBundle:
        return LoadedBundle(
            manifest,
            self._store,
            self._cache_dir,
            device=self._device,
            compiler=self._limits.compiler if self._device == "cuda" else "",
            reference_s=self._limits.reference_s,
        )

    def _load_more(self, manifests: Sequence[Manifest]) -> Iterator[tuple[str, str]]:
        """Loads what is held beside the default; one that is no good must not silence the others.

        Errors: STORAGE_UNAVAILABLE, which passes by itself.
        """
        for manifest in manifests:
            try:
                self._bundles[manifest.name] = self._load(manifest)
            except VoxfleetError as error:
                if error.reason is Reason.STORAGE_UNAVAILABLE:
                    raise
                log.warning("bundle %s does not load and is left out: %s", manifest.name, error.message)
                yield manifest.name, error.message

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """See :class:`~services.inference.engine.running.Body`."""
        match request:
            case StreamSpeech():
                self._stream(request, emit, stopped)
            case Speak():
                self._speak(request, emit, stopped)
            case Respeak():
                self._respeak(request, emit, stopped)
            case Listen():
                emit(listen(self._store, self._ear, request))
            case Excerpt():
                emit(excerpt(self._store, self._ear, request))
            case Probe():
                for bundle in self._bundles.values():
                    bundle.probe()
            case _:
                raise internal(f"an F5 replica was asked to {type(request).__name__}")

    def _stream(self, request: StreamSpeech, emit: Emit, stopped: Stopped) -> None:
        emit(Advance("fetch"))
        bundle = self._bundle(language_of(request.parameters, request.voice), request.allowed)
        rate_hz = request.rate_hz or RATE_HZ
        marking = self._marking if request.marked else UNMARKED
        voicing = self._voicing(bundle, marking)
        stream = voicing.stream(_asked(bundle, request, Rank.INTERACTIVE), rate_hz, stopped)
        with closing(cast("Generator[Piece]", stream.pieces())) as pieces:
            seed, marked = request.parameters.seed, marking.enabled
            emit(Opened(rate_hz, stream.chunks, seed, bundle.weights, watermarked=marked))
            for piece in pieces:
                emit(Pcm(pcm16(piece.audio), len(piece.audio), piece.work_s))
                if stopped():
                    raise stopped_error()
        emit(Closed(stream.words(), stream.quality, stream.spoken_text, stream.seed))

    def _speak(self, request: Speak, emit: Emit, stopped: Stopped) -> None:
        task = request.task
        emit(Advance("fetch"))
        bundle = self._bundle(language_of(task.parameters, task.voice), request.allowed)
        asked = _asked(bundle, task, Rank.BATCH)
        emit(Advance("speak"))
        made = self._voicing(bundle, self._marking).whole(asked, stopped)
        if task.converted is not None:
            emit(Opened(RATE_HZ, 1, made.seed, bundle.weights))
            emit(Pcm(pcm16(made.audio), len(made.audio), made.work_s))
            emit(Closed(made.words, made.quality, made.spoken_text, made.seed))
            return
        output = _Output(made.audio, RATE_HZ, made.seed, made.work_s, bundle.weights)
        kept = self._keep(task, request.job, output, emit)
        emit(replace(kept, words=made.words, quality=made.quality))

    def _bundle(self, language: str, allowed: Sequence[str]) -> LoadedBundle:
        """Who speaks it. Errors: UNSUPPORTED_LANGUAGE, LICENCE_NOT_ALLOWED."""
        return self._bundles[bundle_for(language, self.facts, allowed).weights.name]

    def _voicing(self, bundle: LoadedBundle, marking: Marking) -> Voicing:
        def clip(voice: F5Voice) -> quality.Reference:
            # Not kept, since the judge remembers the voice.
            return quality.Reference(voice.clip_id, bundle.clip(voice).audio, RATE_HZ)

        return Voicing(bundle.model, self._ear, self._judge, clip, marking)

    def _respeak(self, request: Respeak, emit: Emit, stopped: Stopped) -> None:
        task = request.task
        recording = self._respeaking.hear(task, request.allowed, emit, stopped)
        # What is said is what is spoken, whatever the voice was made for.
        bundle = self._bundle(recording.heard.language, request.allowed)
        made = self._respeaking.speak(
            bundle.model,
            recording,
            task,
            bundle.reference(task.voice),
            emit,
            stopped=stopped,
            wording=lambda text, language: spoken(
                text, language, verbatim=task.parameters.verbatim, pronunciations=task.pronunciations
            ),
        )
        audio = finished(made.audio, made.rate_hz, task.parameters)
        seed, source = task.parameters.seed, task.audio.name
        output = _Output(audio, made.rate_hz, seed, made.work_s, bundle.weights, source)
        kept = self._keep(task, request.job, output, emit)
        words = (
            words_of(
                self._ear.recogniser(),
                made.audio,
                made.rate_hz,
                made.spoken_text,
                recording.heard.language,
            )
            if task.parameters.word_timestamps
            else ()
        )
        emit(replace(kept, words=words))

    def _keep(self, task: SpeakTask | RespeakTask, job: str, output: _Output, emit: Emit) -> Made:
        source = {"source_audio": output.source} if output.source else {}
        return keep_audio(
            self._store,
            team_id(task.team),
            output.audio,
            output.rate_hz,
            task.output,
            tags=provenance_tags("f5", task.voice.name, job) | source,
            weights=output.weights,
            seed=output.seed,
            work_s=output.work_s,
            advance=lambda phase, share: emit(Advance(phase, share)),
            marking=self._marking,
        )


def _asked(bundle: LoadedBundle, what: StreamSpeech | SpeakTask, rank: Rank) -> Asked:
    return Asked(
        what.text,
        what.voice,
        bundle.reference(what.voice),
        what.parameters,
        what.pronunciations,
        rank,
        next(iter(bundle.speaking.languages), ""),
    )
