"""One F5 bundle in a replica's memory, with the reference clips that it has prepared."""

from __future__ import annotations

import os
import shutil
import threading
import time
from collections import OrderedDict
from pathlib import Path

import numpy as np

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs.tasks import F5Voice
from services.common.media.decode import decode
from services.engines.bundles.cache import BundleCache, open_from
from services.engines.bundles.manifest import Manifest, read_manifest
from services.engines.f5 import small
from services.engines.f5.planning import RATE_HZ, Reference, SynthesisItem
from services.engines.f5.reference import ReferenceClip, prepare
from services.engines.f5.synthesis import F5Model
from services.inference.calls import Speaking, Weights
from services.inference.engine.blobs import ensure_bundle, fetch
from services.inference.model import Rank

_REFERENCES = 128
_WARM_UP_TEXT = "Ready."
_SMALL = "f5-small-random"


class LoadedBundle:
    """A bundle that speaks.

    Args:
        manifest: of a stored bundle; None for the small random one, which is made here.
        store: for reference clips and the bundle.
        cache_dir: of the node.
        device: ``cpu`` or ``cuda``.
        compiler: backend of ``torch.compile`` on a GPU; none where empty.
        reference_s: of a clip at the most.

    Raises:
        VoxfleetError: MODEL_CORRUPT, ARTIFACT_NOT_FOUND, STORAGE_UNAVAILABLE, SYNTHESIS_FAILED.
    """

    def __init__(
        self,
        manifest: Manifest | None,
        store: ArtifactStore,
        cache_dir: Path,
        *,
        device: str,
        compiler: str,
        reference_s: float,
    ) -> None:
        self._store = store
        directory = small_bundle(cache_dir) if manifest is None else ensure_bundle(store, manifest, cache_dir)
        # The cache has just hashed what it fetched; the small bundle is hashed as it is made.
        self.model = F5Model.load(directory, device=device, check=False, compiler=compiler)
        held = self.model.manifest
        self.speaking = Speaking(
            Weights(held.name, held.trained, held.licence),
            held.languages,
            frozenset(token for token in self.model.vocabulary.indices if len(token) == 1),
        )
        self._reference_s = reference_s
        self._references: OrderedDict[tuple[str, str], Reference] = OrderedDict()
        self._lock = threading.Lock()
        try:
            self._warm_up()
        except BaseException:
            self.model.close()
            raise

    @property
    def weights(self) -> Weights:
        """What made its outputs."""
        return self.speaking.weights

    def reference(self, voice: F5Voice) -> Reference:
        """The prepared clip, kept by its content: most requests of a voice use the same one.

        Errors: AUDIO_NOT_FOUND, ARTIFACT_CORRUPT, and those of :func:`prepare`.
        """
        key = (voice.clip_id, voice.reference_text)
        with self._lock:
            if key in self._references:
                self._references.move_to_end(key)
                return self._references[key]
        reference = self.model.reference(self.clip(voice))
        with self._lock:
            self._references[key] = reference
            while len(self._references) > _REFERENCES:
                self._references.popitem(last=False)
        return reference

    def clip(self, voice: F5Voice) -> ReferenceClip:
        """A voice's clip, cut to length with its text; not kept. Errors: as :meth:`reference`."""
        audio = decode(
            fetch(self._store, voice.reference, Reason.AUDIO_NOT_FOUND),
            # Of a long recording only a stretch is needed: at this rate it is held soonest.
            rate_hz=RATE_HZ if voice.end_s else None,
        )
        samples = audio.samples
        if voice.end_s:
            samples = samples[round(voice.start_s * audio.rate_hz) : round(voice.end_s * audio.rate_hz)]
        return prepare(
            voice.clip_id,
            samples,
            audio.rate_hz,
            voice.reference_text,
            words=voice.reference_words or None,
            max_s=self._reference_s,
        )

    def probe(self) -> None:
        """Speaks a word, in one step. Errors: those of :meth:`F5Model.synthesize`."""
        self.model.synthesize([self._probing], rank=Rank.INTERACTIVE)

    def _warm_up(self) -> None:
        """Speaks a word, so that the first request does not pay for kernels, caches and lazy imports."""
        began_s = time.perf_counter()
        noise = np.random.default_rng(0).standard_normal(RATE_HZ * 2).astype(np.float32) * np.float32(0.1)
        clip = prepare("warm-up", noise, RATE_HZ, "This is a sound to warm up with.")
        self._probing = SynthesisItem(_WARM_UP_TEXT, self.model.reference(clip), steps=1, seed=1)
        try:
            self.probe()
        except VoxfleetError as error:
            raise VoxfleetError(
                error.reason,
                f"the weights {self.weights.label} do not speak: {error.message}",
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
