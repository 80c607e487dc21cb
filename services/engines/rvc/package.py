"""A voice as one file: an uncompressed zip of its folder, the same bytes for the same voice.

Weights do not compress, and a stored zip can be read in place. The files vouch for one another by the
hashes in ``voice.json``, which :func:`services.engines.rvc.voice.load_voice` checks.
"""

from __future__ import annotations

import io
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.rvc.files import replaced, sha256_of

MEDIA_TYPE = "application/vnd.voxfleet.voice+zip"
_NAMES = ("voice.json", "model.safetensors", "index.faiss")
_REQUIRED = _NAMES[:2]
_EPOCH = (1980, 1, 1, 0, 0, 0)
_MAX_BYTES = 8 << 30


def pack_voice(directory: Path, package: Path) -> str:
    """Write a voice's folder as one file, atomically; returns its SHA-256.

    Raises:
        VoxfleetError: MODEL_CORRUPT where the folder holds no voice.
    """
    present = [name for name in _NAMES if (directory / name).is_file()]
    _check_names(present)
    with replaced(package) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_STORED) as target:
        for name in present:
            with (directory / name).open("rb") as source:
                _add(target, name, source, (directory / name).stat().st_size)
    return sha256_of(package)


def pack_parts(parts: Mapping[str, bytes], sink: BinaryIO) -> None:
    """Write the files of a voice, by name, as one file: the bytes that :func:`pack_voice` would write."""
    present = [name for name in _NAMES if name in parts]
    _check_names([*parts])
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as target:
        for name in present:
            _add(target, name, io.BytesIO(parts[name]), len(parts[name]))


def read_parts(package: BinaryIO, *, most_bytes: int = _MAX_BYTES) -> dict[str, bytes]:
    """The files of a package, by name.

    Raises:
        VoxfleetError: MODEL_CORRUPT where it is no package, is compressed, holds other names or more than
            ``most_bytes``, or was cut short.
    """
    try:
        with zipfile.ZipFile(package) as source:
            entries = source.infolist()
            _check_entries(entries, most_bytes)
            return {entry.filename: source.read(entry) for entry in entries}
    except (zipfile.BadZipFile, EOFError, NotImplementedError, ValueError, OSError) as error:
        raise _corrupt(str(error) or type(error).__name__) from error


def unpack_voice(package: Path, directory: Path) -> None:
    """Unfold a package into ``directory``, which must not exist and appears complete.

    Raises:
        VoxfleetError: MODEL_CORRUPT where it is no package, holds other names, or was cut short.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", dir=directory.parent))
    try:
        with zipfile.ZipFile(package) as source:
            entries = source.infolist()
            _check_entries(entries, _MAX_BYTES)
            for entry in entries:
                with source.open(entry) as data, (draft / entry.filename).open("wb") as sink:
                    shutil.copyfileobj(data, sink, 1 << 20)
        draft.chmod(0o755)
        draft.rename(directory)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, OSError) as error:
        if isinstance(error, OSError) and directory.is_dir():
            return  # another process unfolded it at the same time; its rename was as whole as this one
        raise _corrupt(str(error) or type(error).__name__) from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def _add(target: zipfile.ZipFile, name: str, source: BinaryIO, size_bytes: int) -> None:
    # Fixed time and mode: the package's hash is its identity.
    entry = zipfile.ZipInfo(name, _EPOCH)
    entry.external_attr = 0o100644 << 16
    entry.file_size = size_bytes
    with target.open(entry, "w") as sink:
        shutil.copyfileobj(source, sink, 1 << 20)


def _check_entries(entries: list[zipfile.ZipInfo], most_bytes: int) -> None:
    _check_names([entry.filename for entry in entries])
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise _corrupt("it is compressed, which a package never is")
    if sum(entry.file_size for entry in entries) > most_bytes:
        raise _corrupt(f"it unfolds to more than {most_bytes >> 20} MiB")


def _check_names(names: list[str]) -> None:
    if len(set(names)) != len(names) or not set(names) <= set(_NAMES) or not set(_REQUIRED) <= set(names):
        raise _corrupt(f"it holds {sorted(names)}, a voice is {list(_NAMES)}, the last optional")


def _corrupt(why: str) -> VoxfleetError:
    return VoxfleetError(
        Reason.MODEL_CORRUPT,
        f"this is no voice package: {why}",
        kind=Kind.DATA_LOSS,
        metadata={"detail": why},
    )
