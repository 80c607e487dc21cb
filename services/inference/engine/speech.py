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
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Kind, Reason, VoxfleetError, internal
from services.common.jobs.tasks import F5Voice, SpeakingParameters
from services.common.media.decode import decode
from services.common.media.resample import StreamResampler
from services.engines.bundles.cache import BundleCache, open_from
from services.engines.bundles.manifest import read_manifest
from services.engines.device import natural_device
from services.engines.f5 import small
from services.engines.f5.planning import RATE_HZ, Reference, SynthesisItem
from services.engines.f5.reference import prepare
from services.engines.f5.synthesis import STREAMING, F5Model, Synthesis
from services.inference.calls import (
    Advance,
    EngineFacts,
    EngineSpec,
    Opened,
    Pcm,
    Request,
    Speak,
    StreamSpeech,
    Weights,
)
from services.inference.engine.blobs import ensure_bundle, fetch, keep_audio, pcm16, provenance_tags, team_id
from services.inference.engine.running import Emit, Stopped, stopped_error
from services.inference.model import Rank, Role

_REFERENCES = 128
_GPU_SLOTS = 32
_CPU_SLOTS = 4
"""On a CPU nothing is gained by more at once, but what is urgent need not wait for a whole text."""
_WARM_UP_TEXT = "Ready."
_SMALL = "f5-small-random"


@dataclass(frozen=True, slots=True)
class SpeechLimits:
    """How much an F5 replica takes on at once; 0 means what suits its device."""

    slots: int = 0


class SpeechBody:
    """An F5 bundle that speaks.

    Args:
        spec: which bundle.
        store: for reference clips, outputs and the bundle.
        cache_dir: of the node.
        limits: how much at once.

    Raises:
        VoxfleetError: MODEL_CORRUPT, ARTIFACT_NOT_FOUND, STORAGE_UNAVAILABLE.
    """

    def __init__(self, spec: EngineSpec, store: ArtifactStore, cache_dir: Path, limits: SpeechLimits) -> None:
        self._store = store
        directory = (
            small_bundle(cache_dir) if spec.bundle is None else ensure_bundle(store, spec.bundle, cache_dir)
        )
        device = natural_device()
        # The cache has just hashed what it fetched; the small bundle is hashed as it is made.
        self._model = F5Model.load(directory, device=device, check=False)
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
        self._warm_up()

    def run(self, request: Request, emit: Emit, stopped: Stopped) -> None:
        """See :class:`~services.inference.engine.running.Body`."""
        match request:
            case StreamSpeech():
                self._stream(request, emit, stopped)
            case Speak():
                self._speak(request, emit, stopped)
            case _:
                raise internal(f"an F5 replica was asked to {type(request).__name__}")

    def _stream(self, request: StreamSpeech, emit: Emit, stopped: Stopped) -> None:
        emit(Advance("fetch"))
        item = self._item(request.text, request.voice, request.parameters)
        rate_hz = request.rate_hz or RATE_HZ
        chunks = len(self._model.plan(item, streaming=STREAMING).segments)
        resampler = StreamResampler(1, RATE_HZ, rate_hz) if rate_hz != RATE_HZ else None
        stream = cast(
            "Generator[Synthesis]", self._model.stream(item, cancelled=stopped, rank=Rank.INTERACTIVE)
        )
        with closing(stream) as pieces:
            emit(Opened(rate_hz, chunks, item.seed, self.facts.weights))
            for number, piece in enumerate(pieces, start=1):
                samples = piece.audio
                if resampler is not None:
                    samples = resampler(samples[None], last=number == chunks)[0]
                if len(samples):
                    emit(Pcm(pcm16(samples), len(samples), piece.stats.wall_s))
                if stopped():
                    raise stopped_error()

    def _speak(self, request: Speak, emit: Emit, stopped: Stopped) -> None:
        task = request.task
        emit(Advance("fetch"))
        plan = self._model.plan(self._item(task.text, task.voice, task.parameters))
        emit(Advance("speak"))
        result = self._model.render([plan], cancelled=stopped, rank=Rank.BATCH)[0]
        emit(
            keep_audio(
                self._store,
                team_id(task.team),
                result.audio,
                RATE_HZ,
                task.output,
                tags=provenance_tags("f5", task.voice.name, request.job),
                weights=self.facts.weights,
                seed=task.parameters.seed,
                work_s=result.stats.wall_s,
                advance=lambda phase, share: emit(Advance(phase, share)),
            )
        )

    def _item(self, text: str, voice: F5Voice, parameters: SpeakingParameters) -> SynthesisItem:
        return SynthesisItem(
            text=text,
            reference=self._reference(voice),
            steps=parameters.steps,
            cfg_strength=parameters.cfg_strength,
            speed=parameters.speed,
            seed=parameters.seed,
            duration_s=parameters.duration_s or None,
        )

    def _reference(self, voice: F5Voice) -> Reference:
        """The prepared clip, kept by its content: most requests of a voice use the same one."""
        key = (voice.reference.sha256, voice.reference_text)
        with self._lock:
            if key in self._references:
                self._references.move_to_end(key)
                return self._references[key]
        data = fetch(self._store, voice.reference, Reason.AUDIO_NOT_FOUND)
        audio = decode(data)
        clip = prepare(voice.reference.sha256, audio.samples, audio.rate_hz, voice.reference_text)
        reference = self._model.reference(clip)
        with self._lock:
            self._references[key] = reference
            while len(self._references) > _REFERENCES:
                self._references.popitem(last=False)
        return reference

    def _warm_up(self) -> None:
        """Speaks a word, so that the first request does not pay for kernels, caches and lazy imports."""
        began_s = time.perf_counter()
        noise = np.random.default_rng(0).standard_normal(RATE_HZ * 2).astype(np.float32) * np.float32(0.1)
        clip = prepare("warm-up", noise, RATE_HZ, "This is a sound to warm up with.")
        item = SynthesisItem(_WARM_UP_TEXT, self._model.reference(clip), steps=1, seed=1)
        try:
            self._model.synthesize([item])
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
