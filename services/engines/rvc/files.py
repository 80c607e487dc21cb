"""Files that are whole or absent, and their hashes."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def replaced(path: Path) -> Iterator[Path]:
    """A path to write to; on success its file takes the place of ``path`` at once, synced to disk."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    os.close(handle)
    draft = Path(name)
    try:
        yield draft
        with draft.open("rb") as data:
            os.fsync(data.fileno())
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as data:
        while block := data.read(_CHUNK_BYTES):
            digest.update(block)
    return digest.hexdigest()
