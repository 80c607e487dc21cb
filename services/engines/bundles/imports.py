"""Brings in a bundle whose files are already on this machine.

Two cases: files of a known bundle, in whatever layout they were downloaded (they are recognised by
content), and a custom F5 bundle, a directory with its own ``manifest.json``.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from services.common.errors import Reason, invalid
from services.engines.bundles import catalogue
from services.engines.bundles.manifest import (
    MANIFEST_FILE,
    BundleFile,
    Manifest,
    check_file,
    corrupt,
    describe_file,
    hash_file,
    read_manifest,
)

_PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_F5_FILES = ("model.safetensors", "vocab.txt", "vocos/config.yaml")
_F5_VOCODERS = ("vocos/model.safetensors", "vocos/pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class ImportedBundle:
    """A bundle that was found whole, and where each of its files lies.

    Args:
        manifest: complete.
        sources: the local file behind each path of the manifest.
    """

    manifest: Manifest
    sources: Mapping[str, Path]

    def fetch(self, path: str) -> AbstractContextManager[BinaryIO]:
        """Open one of the bundle's files: what a cache or an upload reads from."""
        return self.sources[path].open("rb")


def import_dir(name: str, directory: Path) -> ImportedBundle:
    """Check a local directory against the bundle ``name``, or read the custom bundle that it is.

    Args:
        name: a bundle of the catalogue, or a new name for a custom bundle; empty takes the one in the
            directory's ``manifest.json``.
        directory: where the files are.

    Raises:
        VoxfleetError: MODEL_CORRUPT where a file is missing or differs; INVALID_ARGUMENT where the
            directory is no bundle at all.
    """
    if not directory.is_dir():
        raise invalid(Reason.INVALID_ARGUMENT, f"{directory} is not a directory", field="directory")
    known = catalogue.find(name) if name else None
    if known is not None and known.origin != "generated":
        return _known(known, directory)
    if not (directory / MANIFEST_FILE).is_file():
        names = ", ".join(manifest.name for manifest in catalogue.CATALOGUE if manifest.origin != "generated")
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"{directory} has no {MANIFEST_FILE}, and {name!r} is not a known bundle ({names})",
            field="directory",
        )
    return _custom(name, directory)


def _known(manifest: Manifest, directory: Path) -> ImportedBundle:
    present = [
        path for path in sorted(directory.rglob("*")) if path.is_file() and not path.name.endswith(".part")
    ]
    files, sources = [], {}
    for file in manifest.files:
        found = _recognise(file, directory, present)
        if found is None:
            wanted = f"of {file.size_bytes} bytes" if file.size_bytes is not None else ""
            raise corrupt(manifest.name, file.path, f"no file {wanted} under {directory} is it")
        if file.sha256 is None:
            # Nobody stated this checksum: the first copy that is brought in fixes it.
            local = describe_file(found.parent, found.name, url=file.url)
            files.append(replace(local, path=file.path))
        else:
            files.append(file)
        sources[file.path] = found
    return ImportedBundle(manifest.with_files(files), sources)


def _recognise(file: BundleFile, directory: Path, present: Iterable[Path]) -> Path | None:
    expected = directory / file.path
    names = {PurePosixPath(file.path).name, PurePosixPath(file.url).name}
    # The likeliest first, since each look is a hash of what may be a gigabyte.
    ordered = sorted(present, key=lambda path: (path != expected, path.name not in names))
    for path in ordered:
        if file.sha256 is None:
            if path == expected or path.name in names:
                return path
        elif path.stat().st_size == file.size_bytes and hash_file(path) == file.sha256:
            return path
    return None


def _custom(name: str, directory: Path) -> ImportedBundle:
    stated = read_manifest(directory)
    if name and name != stated.name:
        stated = replace(stated, name=name)
    known = catalogue.find(stated.name)
    if known is not None and known.origin != "generated":
        # A directory cannot pass for a known bundle, nor change its licence, by saying so itself.
        return _known(known, directory)
    if known is not None and stated.origin != "generated":
        raise invalid(
            Reason.INVALID_ARGUMENT, f"{stated.name} is a known bundle's name: choose another", field="name"
        )
    listed = stated.files or tuple(BundleFile(path, None, None) for path in _everything_in(directory))
    files = []
    for file in listed:
        if not (directory / file.path).is_file():
            raise corrupt(stated.name, file.path, "the file is missing")
        if file.sha256 is not None:
            check_file(stated.name, file, directory / file.path)
            files.append(replace(file, size_bytes=(directory / file.path).stat().st_size))
        else:
            files.append(describe_file(directory, file.path, url=file.url))
    manifest = stated.with_files(files)
    _check_engine(manifest)
    return ImportedBundle(manifest, {file.path: directory / file.path for file in files})


def _everything_in(directory: Path) -> list[str]:
    return sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.is_file() and path != directory / MANIFEST_FILE and not path.name.startswith(".")
    )


def _check_engine(manifest: Manifest) -> None:
    if manifest.engine != "f5":
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"custom bundles are of engine f5, not {manifest.engine!r}",
            field="engine",
        )
    missing = [path for path in _F5_FILES if manifest.file(path) is None]
    if not any(manifest.file(path) for path in _F5_VOCODERS):
        missing.append(" or ".join(_F5_VOCODERS))
    if missing:
        raise corrupt(manifest.name, missing[0], f"an F5 bundle needs {', '.join(missing)}")
    for file in manifest.files:
        if file.path.endswith(_PICKLES) and file.sha256 not in catalogue.TRUSTED_PICKLES:
            # A pickle can run code when it is opened; no worker opens one that the catalogue does not know.
            raise corrupt(manifest.name, file.path, "it is a pickle; convert it to .safetensors first")
