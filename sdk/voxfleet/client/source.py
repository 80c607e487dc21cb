"""Bytes to be uploaded, readable at any offset: what resuming an upload needs."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Final, Self

CHUNK_BYTES: Final = 256 * 1024
_SPOOL_BYTES: Final = 8 * 1024 * 1024


class Source:
    """A file, as bytes at offsets. Thread-safe: gRPC reads a cut stream's last chunk while the next begins.

    Args:
        file: open for reading, and seekable.
        name: for people.
        owned: whether closing this closes the file.
    """

    def __init__(self, file: BinaryIO, name: str, *, owned: bool) -> None:
        self._file = file
        self._owned = owned
        self._lock = threading.Lock()
        self._start = file.tell()
        self.name = name
        self.size_bytes = file.seek(0, 2) - self._start

    def read_at(self, offset: int, size_bytes: int) -> bytes:
        """At most so many bytes from an offset."""
        with self._lock:
            self._file.seek(self._start + offset)
            return self._file.read(size_bytes)

    def sha256(self) -> str:
        """SHA-256 of all of it, hexadecimal."""
        digest = hashlib.sha256()
        offset = 0
        while chunk := self.read_at(offset, 4 * CHUNK_BYTES):
            digest.update(chunk)
            offset += len(chunk)
        return digest.hexdigest()

    def close(self) -> None:
        """Closes the file, where it was opened here."""
        with self._lock:
            if self._owned:
                self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def open_source(source: str | Path | bytes | bytearray | memoryview | BinaryIO) -> Source:
    """A path, the bytes themselves, or an open binary file, as a :class:`Source`.

    A file that cannot seek (a pipe) is copied first, to memory up to 8 MiB and to a temporary file beyond.
    """
    if isinstance(source, str | Path):
        path = Path(source)
        return Source(path.open("rb"), path.name, owned=True)
    if isinstance(source, bytes | bytearray | memoryview):
        spool = _spool()
        spool.write(source)
        spool.seek(0)
        return Source(spool, "", owned=True)
    name = getattr(source, "name", "")
    name = Path(name).name if isinstance(name, str) else ""
    if source.seekable():
        return Source(source, name, owned=False)
    spool = _spool()
    shutil.copyfileobj(source, spool)
    spool.seek(0)
    return Source(spool, name, owned=True)


def _spool() -> BinaryIO:
    # A SpooledTemporaryFile is a binary file in all but its declared type.
    return tempfile.SpooledTemporaryFile(max_size=_SPOOL_BYTES)  # type: ignore[return-value]
