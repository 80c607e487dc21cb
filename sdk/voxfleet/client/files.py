"""Files that the client writes, and folders that it sends."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from voxfleet.client.errors import InvalidArgument

MANIFEST_FILE: Final = "manifest.json"
_READ_BYTES: Final = 1024 * 1024


class PartFile:
    """A file that appears under its name only once it is whole."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
        self._file = self._part.open("xb")

    def write(self, data: bytes) -> None:
        """Adds bytes."""
        self._file.write(data)

    def commit(self) -> Path:
        """Gives it its name."""
        self._file.close()
        return self._part.replace(self._path)

    def discard(self) -> None:
        """Removes what was not committed."""
        self._file.close()
        with contextlib.suppress(FileNotFoundError):
            self._part.unlink()


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle of weights on this disk."""

    path: str
    source: Path
    size_bytes: int
    sha256: str

    def chunks(self) -> Iterator[bytes]:
        """Its bytes."""
        with self.source.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                yield chunk


def bundle_files(folder: Path) -> list[Path]:
    """The files of a bundle's folder, in order, without its manifest and hidden files.

    Raises:
        InvalidArgument: it is no folder, or holds no file.
    """
    found = sorted(
        path
        for path in folder.rglob("*")
        if path.is_file()
        and path != folder / MANIFEST_FILE
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )
    if not found:
        raise InvalidArgument(f"{folder} holds no files of a bundle", reason="INVALID_ARGUMENT")
    return found


def describe(folder: Path, path: Path) -> BundleFile:
    """What is said of a file before its bytes."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return BundleFile(path.relative_to(folder).as_posix(), path, path.stat().st_size, digest)


def manifest_text(folder: Path) -> str:
    """The folder's manifest; empty where it has none."""
    path = folder / MANIFEST_FILE
    return path.read_text(encoding="utf-8") if path.is_file() else ""
