"""The artefact store in memory, for unit tests: the same behaviour, nothing to start."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from services.common.artifacts.failures import corrupt, missing, out_of_range
from services.common.artifacts.model import DEFAULT_MEDIA_TYPE, Blob, Listed, check_prefix, content_sha256
from services.common.artifacts.ports import CHUNK_BYTES


@dataclass(frozen=True, slots=True)
class _Stored:
    blob: Blob
    data: bytes
    modified_at: datetime


class MemoryArtifactStore:
    """An :class:`~services.common.artifacts.ports.ArtifactStore` in a dictionary."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._stored: dict[str, _Stored] = {}

    def ensure_bucket(self) -> None:
        """Nothing to make."""

    def put_file(
        self,
        key: str,
        path: Path,
        *,
        media_type: str = DEFAULT_MEDIA_TYPE,
        sha256: str = "",
        verify_content: bool = False,
    ) -> Blob:
        """See the port."""
        return self.put_bytes(key, path.read_bytes(), media_type=media_type, sha256=sha256)

    def put_bytes(
        self, key: str, data: bytes, *, media_type: str = DEFAULT_MEDIA_TYPE, sha256: str = ""
    ) -> Blob:
        """See the port."""
        actual = hashlib.sha256(data).hexdigest()
        for expected in (sha256, content_sha256(key)):
            if expected and expected != actual:
                raise corrupt(key, expected, actual)
        blob = Blob(key, actual, len(data), media_type)
        with self._lock:
            kept = self._stored.get(key)
            if kept is not None and kept.blob.sha256 == actual:
                return kept.blob
            self._stored[key] = _Stored(blob, bytes(data), datetime.now(UTC))
        return blob

    def get_file(self, key: str, path: Path, *, sha256: str = "") -> Blob:
        """See the port."""
        data = self.get_bytes(key, sha256=sha256)
        partial = path.with_name(f"{path.name}.{threading.get_ident()}.partial")
        partial.write_bytes(data)
        partial.replace(path)
        return self.stat(key)

    def get_bytes(self, key: str, *, sha256: str = "") -> bytes:
        """See the port."""
        stored = self._get(key)
        actual = hashlib.sha256(stored.data).hexdigest()
        expected = sha256 or stored.blob.sha256
        if expected != actual:
            raise corrupt(key, expected, actual)
        return stored.data

    def open_range(self, key: str, offset_bytes: int = 0, length_bytes: int | None = None) -> Iterator[bytes]:
        """See the port."""
        stored = self._get(key)
        size_bytes = stored.blob.size_bytes
        if not 0 <= offset_bytes <= size_bytes:
            raise out_of_range(key, offset_bytes, size_bytes)
        end = size_bytes if length_bytes is None else min(size_bytes, offset_bytes + length_bytes)
        starts = range(offset_bytes, end, CHUNK_BYTES)
        return (stored.data[start : min(end, start + CHUNK_BYTES)] for start in starts)

    def stat(self, key: str) -> Blob:
        """See the port."""
        return self._get(key).blob

    def exists(self, key: str) -> bool:
        """See the port."""
        with self._lock:
            return key in self._stored

    def copy(self, source: str, target: str) -> Blob:
        """See the port."""
        stored = self._get(source)
        blob = Blob(target, stored.blob.sha256, stored.blob.size_bytes, stored.blob.media_type)
        with self._lock:
            self._stored[target] = _Stored(blob, stored.data, datetime.now(UTC))
        return blob

    def delete(self, key: str) -> None:
        """See the port."""
        with self._lock:
            self._stored.pop(key, None)

    def delete_prefix(self, prefix: str) -> int:
        """See the port."""
        check_prefix(prefix)
        with self._lock:
            doomed = [key for key in self._stored if key.startswith(prefix)]
            for key in doomed:
                del self._stored[key]
        return len(doomed)

    def list_prefix(self, prefix: str) -> Iterator[Listed]:
        """See the port."""
        with self._lock:
            found = sorted((key, kept) for key, kept in self._stored.items() if key.startswith(prefix))
        return (Listed(key, kept.blob.size_bytes, kept.modified_at) for key, kept in found)

    def presign_get(self, key: str, expires_s: int, *, file_name: str = "") -> str:
        """A ``memory:`` address, good for nothing but comparing."""
        return f"memory:///{key}?method=GET&expires={expires_s}&name={file_name}"

    def presign_put(self, key: str, expires_s: int) -> str:
        """A ``memory:`` address, good for nothing but comparing."""
        return f"memory:///{key}?method=PUT&expires={expires_s}"

    def corrupt_for_test(self, key: str, data: bytes) -> None:
        """Damage what is stored under a key, as a failing disk would, keeping its record."""
        with self._lock:
            kept = self._stored[key]
            self._stored[key] = _Stored(kept.blob, data, kept.modified_at)

    def _get(self, key: str) -> _Stored:
        with self._lock:
            kept = self._stored.get(key)
        if kept is None:
            raise missing(key)
        return kept
