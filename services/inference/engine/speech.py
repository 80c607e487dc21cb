"""What an F5 replica does: keeps one bundle and the prepared reference clips, and speaks."""

from __future__ import annotations

import os
import shutil
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.common.jobs.tasks import F5Voice, RespeakTask, SpeakTask
from services.common.media.decode import decode
from services.engines.bundles.cache import BundleCache, open_from
from services.engines.bundles.manifest import read_manifest
from services.engines.device import natural_device
from services.engines.f5 import small
from services.engines.f5.planning import RATE_HZ, Reference, SynthesisItem
from services.engines.f5.reference import MAX_S, ReferenceClip, prepare
from services.engines.f5.synthesis import F5Model
from services.engines.f5.wording import spoken
from services.engines.whisper.alignment import words_of
from services.inference.calls import (
    Advance,
    Closed,
    EngineFacts,
    EngineSpec,
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
from services.inference.engine.blobs import ensure_bundle, fetch, keep_audio, pcm16, team_id
from services.inference.engine.finishing import finished
from services.inference.engine.listening import Ear, listen
from services.inference.engine.marking import UNMARKED, Marking
from services.inference.engine.quality import Judge
from services.inference.engine.respeaking import Respeaking
from services.inference.engine.running import Emit, Stopped, stopped_error
from services.inference.engine.voicing import Asked, Piece, Voicing
from services.inference.model import Rank, Role
from services.inference.tags import provenance_tags

Samples = NDArray[np.float32]

_REFERENCES = 128
_GPU_SLOTS = 32
_CPU_SLOTS = 4
"""On a CPU nothing is gained by more at once, but what is urgent need not wait for a whole text."""
_WARM_UP_TEXT = "Ready."
_SMALL = "f5-small-random"


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
    source: str = ""


class SpeechBody:
    """An F5 bundle that speaks.

    Args:
        spec: which bundle.
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
        directory = (
            small_bundle(cache_dir) if spec.bundle is None else ensure_bundle(store, spec.bundle, cache_dir)
        )
        device = natural_device()
        # The cache has just hashed what it fetched; the small bundle is hashed as it is made.
        compiler = limits.compiler if device == "cuda" else ""
        self._model = F5Model.load(directory, device=device, check=False, compiler=compiler)
        self._reference_s = limits.reference_s
        self._references: OrderedDict[tuple[str, str], Reference] = OrderedDict()
        self._lock = threading.Lock()
        manifest = self._model.manifest
        on_gpu = device == "cuda"
        self.facts = EngineFacts(
            role=Role.F5,
            weights=Weights(manifest.name, manifest.trained, manifest.licence),
            languages=manifest.languages,
            device=device,
            slots=limits.slots or (_GPU_SLOTS if on_gpu else _CPU_SLOTS),
            node=socket.gethostname(),
            pid=os.getpid(),
            characters=frozenset(token for token in self._model.vocabulary.indices if len(token) == 1),
        )
        self._marking = marking
        self._ear = Ear(cache_dir, device=device)
        judge = Judge(self._ear, device=device)
        self._voicing = Voicing(self._model, self._ear, judge, self._clip, marking)
        self._respeaking = Respeaking(self._model, self.facts, store, self._ear)
        self._warm_up()

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
            case Probe():
                self._probe()
            case _:
                raise internal(f"an F5 replica was asked to {type(request).__name__}")

    def _stream(self, request: StreamSpeech, emit: Emit, stopped: Stopped) -> None:
        emit(Advance("fetch"))
        asked = self._asked(request, Rank.INTERACTIVE)
        rate_hz = request.rate_hz or RATE_HZ
        stream = self._voicing.stream(asked, rate_hz, stopped)
        with closing(cast("Generator[Piece]", stream.pieces())) as pieces:
            weights, seed = self.facts.weights, request.parameters.seed
            emit(Opened(rate_hz, stream.chunks, seed, weights, watermarked=self._marking.enabled))
            for piece in pieces:
                emit(Pcm(pcm16(piece.audio), len(piece.audio), piece.work_s))
                if stopped():
                    raise stopped_error()
        emit(Closed(stream.words(), stream.quality, stream.spoken_text, stream.seed))

    def _speak(self, request: Speak, emit: Emit, stopped: Stopped) -> None:
        task = request.task
        emit(Advance("fetch"))
        asked = self._asked(task, Rank.BATCH)
        emit(Advance("speak"))
        made = self._voicing.whole(asked, stopped)
        output = _Output(made.audio, RATE_HZ, made.seed, made.work_s)
        kept = self._keep(task, request.job, output, emit)
        emit(replace(kept, words=made.words, quality=made.quality))

    def _asked(self, what: StreamSpeech | SpeakTask, rank: Rank) -> Asked:
        return Asked(
            what.text,
            what.voice,
            self._reference(what.voice),
            what.parameters,
            what.pronunciations,
            rank,
            next(iter(self.facts.languages), ""),
        )

    def _respeak(self, request: Respeak, emit: Emit, stopped: Stopped) -> None:
        task = request.task
        recording = self._respeaking.hear(task, emit, stopped)
        made = self._respeaking.speak(
            recording,
            task,
            self._reference(task.voice),
            emit,
            stopped,
            wording=lambda text, language: spoken(
                text, language, verbatim=task.parameters.verbatim, pronunciations=task.pronunciations
            ),
        )
        audio = finished(made.audio, made.rate_hz, task.parameters)
        output = _Output(audio, made.rate_hz, task.parameters.seed, made.work_s, task.audio.name)
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
            weights=self.facts.weights,
            seed=output.seed,
            work_s=output.work_s,
            advance=lambda phase, share: emit(Advance(phase, share)),
            marking=self._marking,
        )

    def _reference(self, voice: F5Voice) -> Reference:
        """The prepared clip, kept by its content: most requests of a voice use the same one."""
        key = (voice.reference.sha256, voice.reference_text)
        with self._lock:
            if key in self._references:
                self._references.move_to_end(key)
                return self._references[key]
        reference = self._model.reference(self._prepared(voice))
        with self._lock:
            self._references[key] = reference
            while len(self._references) > _REFERENCES:
                self._references.popitem(last=False)
        return reference

    def _prepared(self, voice: F5Voice) -> ReferenceClip:
        audio = decode(fetch(self._store, voice.reference, Reason.AUDIO_NOT_FOUND))
        return prepare(
            voice.reference.sha256,
            audio.samples,
            audio.rate_hz,
            voice.reference_text,
            words=voice.reference_words or None,
            max_s=self._reference_s,
        )

    def _clip(self, voice: F5Voice) -> quality.Reference:
        """What a voice is compared with; not kept, since its judge remembers the voice."""
        return quality.Reference(voice.reference.sha256, self._prepared(voice).audio, RATE_HZ)

    def _probe(self) -> None:
        """A word, in one step."""
        self._model.synthesize([self._probing], rank=Rank.INTERACTIVE)

    def _warm_up(self) -> None:
        """Speaks a word, so that the first request does not pay for kernels, caches and lazy imports."""
        began_s = time.perf_counter()
        noise = np.random.default_rng(0).standard_normal(RATE_HZ * 2).astype(np.float32) * np.float32(0.1)
        clip = prepare("warm-up", noise, RATE_HZ, "This is a sound to warm up with.")
        self._probing = SynthesisItem(_WARM_UP_TEXT, self._model.reference(clip), steps=1, seed=1)
        try:
            self._probe()
        except VoxfleetError as error:
            raise VoxfleetError(
                error.reason,
                f"the weights {self.facts.weights.label} do not speak: {error.message}",
                kind=Kind.INTERNAL,
                metadata=error.metadata | {"after_s": f"{time.perf_counter() - began_s:.1f}"},
            ) from error


def small_bundle(cache_dir: Path) -> Path:
    """The small random bundle's directory on this node, made where it is not here.

    It is made in a folder of its own and then goes through the cache, whose lock and rename keep two
    replicas that start at once from each other's files.
    """
    cache = cache_dir / "bundles"
    draft = cache / f"{_SMALL}.made-{os.getpid()}"
    found = _made_before(cache)
    if found is not None:
        return found
    try:
        manifest = small.build(draft)
        directory = BundleCache(cache).ensure(manifest, open_from(draft))
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return directory


def _made_before(cache: Path) -> Path | None:
    """A complete one of this release's recipe: the recipe's seed and shape stand in the manifest."""
    for manifest_file in sorted((cache / _SMALL).glob("*/manifest.json")):
        if manifest_file.parent.name.endswith(".partial"):
            continue
        manifest = read_manifest(manifest_file.parent)
        if BundleCache(cache).holds(manifest) and BundleCache(cache).path(manifest) == manifest_file.parent:
            return manifest_file.parent
    return None
