"""What a stage has while it runs: its files, its store, a way to tell and to be told."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from services.common.artifacts.model import bundle_key, work_key
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs.model import Checkpoint
from services.common.jobs.tasks import Blob
from services.engines.bundles.cache import BundleCache
from services.engines.bundles.manifest import Manifest
from services.trainer.model import Phase
from services.trainer.stage import Snapshot, StageSpec

_LOCK_FILE = ".lock"


@dataclass
class Telling:
    """What a stage says, and what it is told; shared by its thread and the one that answers polls."""

    phase: Phase
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _step: int = 0
    _total_steps: int = 0
    _metrics: Mapping[str, float] = field(default_factory=dict)
    _note: str = ""
    _fallbacks: int = 0
    _checkpoints: list[tuple[int, Checkpoint]] = field(default_factory=list)
    _count: int = 0
    _stop: threading.Event = field(default_factory=threading.Event)
    _save: bool = False

    def tell(
        self,
        phase: Phase,
        step: int = 0,
        total_steps: int = 0,
        metrics: Mapping[str, float] | None = None,
        note: str = "",
    ) -> None:
        """Says how far the stage is; a note stays until there is another."""
        with self._lock:
            self.phase, self._step, self._total_steps = phase, step, total_steps
            self._metrics = dict(metrics or {})
            self._note = note or self._note

    def saved(self, checkpoint: Checkpoint) -> None:
        """Says that a checkpoint is in the store."""
        with self._lock:
            self._count += 1
            self._checkpoints.append((self._count, checkpoint))

    def fell_back(self, note: str) -> None:
        """Says that a checkpoint could not be used."""
        with self._lock:
            self._fallbacks += 1
            self._note = note

    def snapshot(self, acknowledged: int) -> Snapshot:
        """Everything said, less the checkpoints up to ``acknowledged``."""
        with self._lock:
            self._checkpoints = [item for item in self._checkpoints if item[0] > acknowledged]
            return Snapshot(
                self.phase,
                self._step,
                self._total_steps,
                self._metrics,
                self._note,
                tuple(self._checkpoints),
                self._fallbacks,
            )

    def ask_stop(self, *, save: bool) -> None:
        """Tells the stage to end soon."""
        self._save = self._save or save
        self._stop.set()

    def should_stop(self) -> bool:
        """Whether the stage was told to end."""
        return self._stop.is_set()

    @property
    def should_save(self) -> bool:
        """Whether a stop is to leave a checkpoint."""
        return not self._stop.is_set() or self._save

    def check_stop(self) -> None:
        """Raises CANCELLED where the stage was told to end."""
        if self._stop.is_set():
            raise VoxfleetError(Reason.CANCELLED, f"stopped in phase {self.phase.value}", kind=Kind.CANCELLED)


@dataclass(frozen=True)
class StageContext:
    """One stage's surroundings.

    Args:
        spec: what to do.
        store: the artefacts.
        folder: its own, empty, deleted afterwards.
        cache: the node's cache of weights.
        threads: CPU threads to use.
        telling: how far it is.
    """

    spec: StageSpec
    store: ArtifactStore
    folder: Path
    cache: Path
    threads: int
    telling: Telling

    def fetch(self, blob: Blob, name: str) -> Path:
        """A stored file in this stage's folder, verified. Errors: ARTIFACT_NOT_FOUND, ARTIFACT_CORRUPT."""
        path = self.folder / name
        self.store.get_file(blob.key, path, sha256=blob.sha256)
        return path

    def put(self, name: str, path: Path) -> Blob:
        """Stores a file of this attempt."""
        stored = self.store.put_file(self._key(name), path)
        return Blob(key=stored.key, sha256=stored.sha256, size_bytes=stored.size_bytes)

    def put_record(self, name: str, data: bytes) -> None:
        """Stores a small file of this attempt."""
        self.store.put_bytes(self._key(name), data, media_type="application/json")

    def _key(self, name: str) -> str:
        return work_key(self.spec.task.team, self.spec.job_id, self.spec.attempt, name)

    def contentvec_dir(self) -> Path | None:
        """The node's copy of ContentVec, where the store has it; read from the store once a node."""
        manifest = self.spec.contentvec
        if manifest is None:
            return None
        return BundleCache(self.cache / "bundles").ensure(manifest, _from_store(self.store, manifest))


def _from_store(
    store: ArtifactStore, manifest: Manifest
) -> Callable[[str], contextlib.AbstractContextManager[BinaryIO]]:
    @contextlib.contextmanager
    def fetch(path: str) -> Iterator[BinaryIO]:
        with tempfile.TemporaryFile() as file:
            for chunk in store.open_range(bundle_key(manifest.name, manifest.stored_path(path))):
                file.write(chunk)
            file.seek(0)
            yield file

    return fetch


@contextlib.contextmanager
def stage_folder(parent: Path) -> Iterator[Path]:
    """A fresh folder, deleted afterwards; those of processes that were killed are deleted too.

    Each is locked by the process that uses it: a lock that can be had is a dead one's.
    """
    parent.mkdir(parents=True, exist_ok=True)
    for left in parent.iterdir():
        with contextlib.suppress(OSError), _locked(left):
            shutil.rmtree(left, ignore_errors=True)
    folder = Path(tempfile.mkdtemp(dir=parent))
    with _locked(folder):
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Holds a folder's lock. Errors: BlockingIOError where another process does, OSError."""
    descriptor = os.open(folder / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
