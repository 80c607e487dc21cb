"""What an RVC replica does: keeps the voices used last, and converts recordings into them."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import threading
import time
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, internal, not_found
from services.common.jobs.tasks import Blob, RvcVoice, SpeakTask
from services.common.media.decode import decode
from services.engines.device import exercise, natural_device
from services.engines.rvc.audio import CONTENT_RATE_HZ
from services.engines.rvc.content import ContentSources
from services.engines.rvc.conversion import convert
from services.engines.rvc.package import unpack_voice
from services.engines.rvc.stopping import stopped
from services.engines.rvc.voice import Voice, load_voice
from services.inference.calls import (
    Advance,
    Convert,
    ConvertSpoken,
    ConvertStream,
    EngineFacts,
    EngineSpec,
    Probe,
    Request,
    Weights,
)
from services.inference.engine.blobs import (
    ensure_bundle,
    fetch,
    fetch_file,
    keep_audio,
    team_id,
)
from services.inference.engine.marking import UNMARKED, Marking
from services.inference.engine.running import Emit, Stopped
from services.inference.engine.spoken import convert_spoken, convert_stream, matched, params_of
from services.inference.model import Role
from services.inference.slots import natural_slots
from services.inference.tags import provenance_tags

_PROBE_SAMPLES = CONTENT_RATE_HZ // 2


@dataclass(frozen=True, slots=True)
class ConversionLimits:
    """How much an RVC replica takes on at once, and how many voices it keeps in memory and on disk.

    ``slots`` 0 means what suits its device.
    """

    slots: int = 0
    voices: int = 8
    voices_on_disk: int = 200
    threads: int = 1


class ConversionBody:
    """RVC with the voices that were used last.

    Args:
        spec: which content encoders there are besides the one in packages.
        store: for recordings, voices and outputs.
        cache_dir: of the node.
        limits: how much at once.
        marking: whether outputs carry the inaudible mark.
    """

    def __init__(
        self,
        spec: EngineSpec,
        store: ArtifactStore,
        cache_dir: Path,
        limits: ConversionLimits,
        marking: Marking = UNMARKED,
    ) -> None:
        self._store = store
        self._marking = marking
        self._voices_dir = cache_dir / "voices"
        self._voices: OrderedDict[str, Voice] = OrderedDict()
        self._limits = limits
        self._lock = threading.Lock()
        self._loading: dict[str, threading.Lock] = {}
        device = natural_device()
        contentvec = ensure_bundle(store, spec.contentvec, cache_dir) if spec.contentvec else None
        self._sources = ContentSources(cache_dir, contentvec, device, limits.threads)
        self.facts = EngineFacts(
            role=Role.RVC,
            weights=Weights("rvc", trained=True, licence=""),
            device=device,
            slots=limits.slots or natural_slots(Role.RVC, on_gpu=device == "cuda"),
            node=socket.gethostname(),
            pid=os.getpid(),
        )

    def run(self, request: Request, emit: Emit, should_stop: Stopped) -> None:
        """See :class:`~services.inference.engine.running.Body`."""
        match request:
            case Convert():
                self._convert(request, emit, should_stop)
            case ConvertStream():
                voice, weights = self._with_weights(request.voice)
                convert_stream(voice, weights, request, emit, marking=self._marking, stopped=should_stop)
            case ConvertSpoken(task=SpeakTask(converted=RvcVoice() as target)):
                emit(Advance("load"))
                voice, weights = self._with_weights(target)
                convert_spoken(
                    voice,
                    weights,
                    request,
                    emit,
                    store=self._store,
                    marking=self._marking,
                    stopped=should_stop,
                )
            case Probe():
                self._probe(should_stop)
            case _:
                raise internal(f"an RVC replica was asked to {type(request).__name__}")

    def _convert(self, request: Convert, emit: Emit, should_stop: Stopped) -> None:
        task = request.task
        emit(Advance("fetch"))
        data = fetch(self._store, task.audio.blob, Reason.AUDIO_NOT_FOUND)
        audio = decode(data)
        if should_stop():
            raise stopped("fetching")
        emit(Advance("load"))
        voice = self._voice(task.voice)
        emit(Advance("convert"))
        began_s = time.perf_counter()
        how, pitch = matched(voice, task.parameters, audio.samples, audio.rate_hz)
        samples, rate_hz = convert(
            voice,
            audio.samples,
            audio.rate_hz,
            params_of(how, request.share),
            on_progress=lambda share: emit(Advance("convert", share)),
            should_stop=should_stop,
        )
        work_s = time.perf_counter() - began_s
        made = keep_audio(
            self._store,
            team_id(task.team),
            samples,
            rate_hz,
            task.output,
            tags=provenance_tags("rvc", task.voice.name, request.job) | {"source_audio": task.audio.name},
            weights=weights_of(task.voice.name, voice),
            seed=task.parameters.seed,
            work_s=work_s,
            advance=lambda phase, share: emit(Advance(phase, share)),
            marking=self._marking,
        )
        emit(replace(made, pitch_match=pitch))

    def _with_weights(self, voice: RvcVoice) -> tuple[Voice, Weights]:
        """The voice in memory, and what its outputs say of it."""
        loaded = self._voice(voice)
        return loaded, weights_of(voice.name, loaded)

    def _probe(self, should_stop: Stopped) -> None:
        """Converts a moment of noise into the voice used last; before there is one, the device computes."""
        with self._lock:
            voice = next(reversed(self._voices.values()), None)
        if voice is None:
            if not exercise(self.facts.device):
                raise internal(f"the device {self.facts.device} computes wrongly")
            return
        noise = np.random.default_rng(0).standard_normal(_PROBE_SAMPLES).astype(np.float32)
        convert(voice, noise * np.float32(0.1), CONTENT_RATE_HZ, should_stop=should_stop)

    def _voice(self, voice: RvcVoice) -> Voice:
        """The voice in memory, loaded where it is not; two requests for one voice load it once."""
        sha256 = _package(voice).sha256
        with self._lock:
            if sha256 in self._voices:
                self._voices.move_to_end(sha256)
                return self._voices[sha256]
            loading = self._loading.setdefault(sha256, threading.Lock())
        with loading:
            with self._lock:
                if sha256 in self._voices:
                    return self._voices[sha256]
            directory = self._unpacked(voice)
            loaded = load_voice(directory, self._sources, device=self.facts.device)
            with self._lock:
                self._loading.pop(sha256, None)
                self._voices[sha256] = loaded
                while len(self._voices) > self._limits.voices:
                    self._voices.popitem(last=False)
        return loaded

    def _unpacked(self, voice: RvcVoice) -> Path:
        """The voice's directory on this node, under its package's hash; fetched once for all processes."""
        stored = _package(voice)
        directory = self._voices_dir / stored.sha256
        with _locked(directory.with_name(f"{directory.name}.lock")):
            if not directory.is_dir():
                package = directory.with_name(f"{directory.name}.package")
                try:
                    fetch_file(self._store, stored, package, Reason.MODEL_NOT_FOUND)
                    unpack_voice(package, directory)
                finally:
                    package.unlink(missing_ok=True)
                self._prune()
            # The time says when it was used last.
            os.utime(directory)
        return directory

    def _prune(self) -> None:
        """Removes the voices that were used longest ago, so that a node's disk does not fill up."""
        kept = [
            path for path in self._voices_dir.iterdir() if path.is_dir() and not path.name.startswith(".")
        ]
        kept.sort(key=lambda path: path.stat().st_mtime, reverse=True)
        for path in kept[self._limits.voices_on_disk :]:
            shutil.rmtree(path, ignore_errors=True)


def weights_of(name: str, voice: Voice) -> Weights:
    """What the outputs of a voice say of their weights: a voice that was never trained says so."""
    # An imported voice counts no steps: it was trained elsewhere.
    trained = voice.facts.training.get("steps", 1) > 0
    return Weights(name, trained, str(voice.facts.training.get("licence", "")))


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _package(voice: RvcVoice) -> Blob:
    """Where the voice is stored. Errors: MODEL_NOT_FOUND where its training has left nothing."""
    if voice.package is None:
        raise not_found(Reason.MODEL_NOT_FOUND, f"the package of {voice.name}")
    return voice.package
