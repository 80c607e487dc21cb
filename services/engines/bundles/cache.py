"""One copy of each bundle a node, shared by every process on it.

A bundle is fetched once, checked while it is copied, and appears under its final name in one rename.
A process that finds it there reads nothing again. Processes that want the same bundle at the same
time wait on a lock file; one that dies leaves its finished files for the next.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from services.common.errors import VoxfleetError
from services.engines.bundles.manifest import (
    BundleFile,
    Manifest,
    copy_hashed,
    corrupt,
    hash_file,
    verify,
    write_manifest,
)

Fetch = Callable[[str], AbstractContextManager[BinaryIO]]
"""Opens one of the bundle's files, by its path in the bundle, for reading from the start."""


class BundleCache:
    """A directory that holds complete bundles, each under ``name/digest``.

    Args:
        root: the node's cache directory; made when first needed.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def path(self, manifest: Manifest) -> Path:
        """Where the bundle lies, or would lie."""
        return self._root / manifest.name / manifest.digest[:16]

    def holds(self, manifest: Manifest) -> bool:
        """Whether the bundle is here, judged by its files' sizes and without reading them."""
        directory = self.path(manifest)
        return all(_has_size(directory / file.path, file) for file in manifest.files)

    def ensure(self, manifest: Manifest, fetch: Fetch, *, recheck: bool = False) -> Path:
        """The bundle's directory, fetched first where it is not here.

        Args:
            manifest: complete: with every checksum.
            fetch: opens a file of the bundle; called once for each file that is missing.
            recheck: hash files that are already here too, and fetch again what is corrupt.

        Raises:
            VoxfleetError: MODEL_CORRUPT where what was fetched is not what the manifest says.
        """
        directory = self.path(manifest)
        if not recheck and self.holds(manifest):
            return directory
        with self._locked(manifest):
            # Another process may have brought it while this one waited.
            if self.holds(manifest) and not (recheck and not _sound(directory, manifest)):
                return directory
            partial = directory.with_name(directory.name + ".partial")
            if directory.exists():
                # Cut short or corrupt: what is still good in it need not be fetched again.
                shutil.rmtree(partial, ignore_errors=True)
                directory.rename(partial)
            partial.mkdir(parents=True, exist_ok=True)
            for file in manifest.files:
                _fetch_file(partial, manifest, file, fetch)
            write_manifest(partial, manifest)
            partial.rename(directory)
        return directory

    @contextlib.contextmanager
    def _locked(self, manifest: Manifest) -> Iterator[None]:
        directory = self.path(manifest)
        directory.parent.mkdir(parents=True, exist_ok=True)
        # The lock file is left in place: removing it would let two processes hold two locks.
        descriptor = os.open(directory.with_name(directory.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def _fetch_file(partial: Path, manifest: Manifest, file: BundleFile, fetch: Fetch) -> None:
    target = partial / file.path
    if _has_size(target, file) and hash_file(target) == file.sha256:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.with_name(target.name + ".part")
    with fetch(file.path) as source, arriving.open("wb") as sink:
        actual, size_bytes = copy_hashed(source, sink)
        sink.flush()
        os.fsync(sink.fileno())
    if actual != file.sha256:
        arriving.unlink()
        raise corrupt(
            manifest.name,
            file.path,
            f"the copy that was fetched ({size_bytes} bytes) is not the one in the manifest",
            expected=file.sha256,
            actual=actual,
        )
    arriving.replace(target)


def _has_size(path: Path, file: BundleFile) -> bool:
    try:
        return path.stat().st_size == file.size_bytes
    except OSError:
        return False


def _sound(directory: Path, manifest: Manifest) -> bool:
    try:
        verify(directory, manifest)
    except VoxfleetError:
        return False
    return True


def open_from(directory: Path) -> Fetch:
    """A fetch that reads a bundle from another directory."""

    def fetch(path: str) -> AbstractContextManager[BinaryIO]:
        return (directory / path).open("rb")

    return fetch
