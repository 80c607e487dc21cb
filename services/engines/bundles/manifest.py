"""What a bundle of weights is: its files by SHA-256, its engine, its licence and where it came from.

The manifest travels with the files as ``manifest.json``, so a directory (or an S3 prefix) says by
itself what it holds. A file's checksum or size may be unknown in the catalogue, where the publisher
states none: such a manifest is a *draft*, and bringing the files in completes it.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Literal, get_args

from services.common.errors import Kind, Reason, VoxfleetError, invalid

SCHEMA = 1
MANIFEST_FILE = "manifest.json"
UNTRAINED_LABEL = "untrained weights"

_CHUNK_BYTES = 1 << 20
_NAME = re.compile(r"[a-z][a-z0-9]*(?:[-.][a-z0-9]+)*")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_LANGUAGE = re.compile(r"[a-z]{2,3}(?:-[A-Za-z0-9]{2,8})*")

Origin = Literal["hub", "packages", "generated", "custom"]
"""How a bundle is had: pulled from its publisher, put together from installed packages, made here
from a seed, or somebody's own."""

ChecksumSource = Literal["", "catalogue", "hub", "local"]
"""Who stated a file's SHA-256: this catalogue, the hub in its response headers, or nobody, so that it
was taken from the bytes that were first brought in."""


@dataclass(frozen=True, slots=True)
class BundleFile:
    """One file of a bundle.

    Args:
        path: where it lies in the bundle, with forward slashes.
        sha256: 64 lower-case hex digits, or None where nobody has stated it yet.
        size_bytes: its length, or None where not stated.
        url: where it can be had over HTTPS, or empty.
        checksum_source: who stated ``sha256``.
    """

    path: str
    sha256: str | None
    size_bytes: int | None
    url: str = ""
    checksum_source: ChecksumSource = ""


@dataclass(frozen=True, slots=True)
class Manifest:
    """A named set of weights.

    Args:
        name: lower-case words joined by ``-``; what users type.
        engine: the engine that reads it (``f5``, ``whisper``, ``contentvec``).
        files: every file that belongs to it.
        licence: SPDX identifier of the weights' licence (not the code's).
        licence_url: where that licence can be read.
        requires_acceptance: whether a team must accept the licence before use.
        languages: BCP-47 tags that the weights were made for; empty where that does not apply.
        trained: False for random weights, which every output made with them must say.
        source: the publisher and revision, for a person to read.
        description: one sentence.
        origin: how it is had.
        parameters: the engine's own facts about the weights (the shape of the network).
    """

    name: str
    engine: str
    files: tuple[BundleFile, ...]
    licence: str
    licence_url: str
    requires_acceptance: bool
    languages: tuple[str, ...]
    trained: bool
    source: str
    description: str
    origin: Origin = "custom"
    parameters: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise invalid(
                Reason.INVALID_ARGUMENT, f"bundle manifest {self.name!r}: {problem}", field="manifest"
            )

    @property
    def complete(self) -> bool:
        """Whether every file's checksum and size are known."""
        return bool(self.files) and all(f.sha256 is not None and f.size_bytes is not None for f in self.files)

    @property
    def size_bytes(self) -> int:
        """The known sizes, added up."""
        return sum(file.size_bytes or 0 for file in self.files)

    @property
    def label(self) -> str:
        """The bundle's name as outputs carry it, which says so where the weights are untrained."""
        return self.name if self.trained else f"{self.name} ({UNTRAINED_LABEL})"

    def stored_path(self, path: str) -> str:
        """A file's path in a store, under the weights' identity.

        A name whose weights are replaced thus never changes bytes that someone is reading.
        """
        return f"{self.digest[:16]}/{path}"

    @property
    def digest(self) -> str:
        """SHA-256 over every file's path and checksum: the identity of the weights.

        Raises:
            VoxfleetError: MODEL_CORRUPT where a checksum is not known yet.
        """
        whole = hashlib.sha256()
        for file in sorted(self.files, key=lambda file: file.path):
            if file.sha256 is None:
                raise corrupt(
                    self.name, file.path, "its checksum is not known yet, so the bundle has no identity"
                )
            whole.update(f"{file.sha256}  {file.path}\n".encode())
        return whole.hexdigest()

    def file(self, path: str) -> BundleFile | None:
        """The entry for ``path``, or None."""
        return next((file for file in self.files if file.path == path), None)

    def with_files(self, files: Iterable[BundleFile]) -> Manifest:
        """The same bundle with other file entries."""
        return dataclasses.replace(self, files=tuple(files))

    def to_json(self) -> str:
        """As indented JSON, the same text for equal manifests."""
        data = dataclasses.asdict(self) | {"schema": SCHEMA, "parameters": dict(self.parameters)}
        return json.dumps(data, indent=2, sort_keys=True, ensure_ascii=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Manifest:
        """The manifest that :meth:`to_json` wrote.

        Raises:
            VoxfleetError: INVALID_ARGUMENT where it is no manifest, or of a newer schema.
        """
        try:
            data = json.loads(text)
        except ValueError as error:
            raise _malformed(f"it is not JSON: {error}") from error
        if not isinstance(data, dict):
            raise _malformed("it is not a JSON object")
        schema = data.pop("schema", SCHEMA)
        if schema != SCHEMA:
            raise _malformed(f"its schema is {schema!r}; this release reads {SCHEMA}")
        try:
            files = tuple(BundleFile(**entry) for entry in data.pop("files", ()))
            languages = tuple(data.pop("languages", ()))
            return cls(files=files, languages=languages, **data)
        except TypeError as error:
            raise _malformed(str(error)) from error


def read_manifest(directory: Path) -> Manifest:
    """The manifest of a bundle directory.

    Raises:
        VoxfleetError: MODEL_CORRUPT where there is none, INVALID_ARGUMENT where it is malformed.
    """
    try:
        text = (directory / MANIFEST_FILE).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise corrupt(directory.name, MANIFEST_FILE, f"it cannot be read ({error})") from error
    return Manifest.from_json(text)


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest.json`` into a bundle directory, whole or not at all."""
    partial = directory / (MANIFEST_FILE + ".part")
    partial.write_text(manifest.to_json(), encoding="utf-8")
    partial.replace(directory / MANIFEST_FILE)


def verify(directory: Path, manifest: Manifest) -> None:
    """Check every file of a bundle against its manifest, by size and then by SHA-256.

    Raises:
        VoxfleetError: MODEL_CORRUPT with metadata ``bundle``, ``path`` and, where they differ,
            ``expected`` and ``actual``.
    """
    if not manifest.files:
        raise corrupt(manifest.name, MANIFEST_FILE, "it lists no files")
    for file in manifest.files:
        path = directory / file.path
        if not path.is_file():
            raise corrupt(manifest.name, file.path, "the file is missing")
        check_file(manifest.name, file, path)


def check_file(bundle: str, file: BundleFile, path: Path) -> None:
    """Check one file on disk against its entry.

    Raises:
        VoxfleetError: MODEL_CORRUPT, as :func:`verify`.
    """
    if file.sha256 is None:
        raise corrupt(bundle, file.path, "its checksum is not known, so it cannot be checked")
    size_bytes = path.stat().st_size
    if file.size_bytes is not None and size_bytes != file.size_bytes:
        raise corrupt(bundle, file.path, "its size differs", expected=file.size_bytes, actual=size_bytes)
    actual = hash_file(path)
    if actual != file.sha256:
        raise corrupt(bundle, file.path, "its SHA-256 differs", expected=file.sha256, actual=actual)


def hash_file(path: Path) -> str:
    """SHA-256 of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_hashed(source: BinaryIO, target: BinaryIO) -> tuple[str, int]:
    """Copy a stream and return the SHA-256 and the number of bytes that went by."""
    whole, size_bytes = hashlib.sha256(), 0
    while chunk := source.read(_CHUNK_BYTES):
        whole.update(chunk)
        target.write(chunk)
        size_bytes += len(chunk)
    return whole.hexdigest(), size_bytes


def describe_file(directory: Path, path: str, *, url: str = "") -> BundleFile:
    """The entry of a file as it lies on disk, its checksum taken from its own bytes."""
    found = directory / path
    return BundleFile(path, hash_file(found), found.stat().st_size, url, "local")


def corrupt(bundle: str, path: str, why: str, **metadata: object) -> VoxfleetError:
    """The error for weights that are not what their manifest says."""
    return VoxfleetError(
        Reason.MODEL_CORRUPT,
        f"bundle {bundle}: {path}: {why}; bring it in again with `voxfleet models pull` or `models import`",
        kind=Kind.DATA_LOSS,
        metadata={"bundle": bundle, "path": path, **metadata},
    )


def _malformed(why: str) -> VoxfleetError:
    return invalid(
        Reason.INVALID_ARGUMENT, f"{MANIFEST_FILE} is not a bundle manifest: {why}", field="manifest"
    )


def _problems(manifest: Manifest) -> Iterable[str]:
    yield from _field_problems(manifest)
    paths = [file.path for file in manifest.files]
    if len(set(paths)) != len(paths):
        yield "a path is listed twice"
    for file in manifest.files:
        yield from _file_problems(file)


def _field_problems(manifest: Manifest) -> Iterable[str]:
    if not isinstance(manifest.name, str) or not _NAME.fullmatch(manifest.name) or len(manifest.name) > 63:
        yield "name must be lower-case words joined by '-' or '.', at most 63 characters"
    if not manifest.engine:
        yield "engine is empty"
    if not manifest.licence:
        yield "licence is empty; write the SPDX identifier, or 'LicenseRef-…' for one of your own"
    if manifest.origin not in get_args(Origin):
        yield f"origin {manifest.origin!r} is none of {', '.join(get_args(Origin))}"
    if not isinstance(manifest.trained, bool) or not isinstance(manifest.requires_acceptance, bool):
        yield "trained and requires_acceptance must be true or false"
    if not isinstance(manifest.parameters, Mapping):
        yield "parameters is not an object"
    for language in manifest.languages:
        if not _LANGUAGE.fullmatch(language):
            yield f"language {language!r} is not a BCP-47 tag"


def _file_problems(file: BundleFile) -> Iterable[str]:
    path = PurePosixPath(file.path)
    # A manifest can come from outside: its paths must stay inside the bundle's directory.
    if (
        not file.path
        or path.is_absolute()
        or ".." in path.parts
        or "\\" in file.path
        or path.as_posix() != file.path
    ):
        yield f"path {file.path!r} is not a plain relative path"
    if file.url and not file.url.startswith("https://"):
        yield f"url of {file.path!r} is not an https one"
    if file.path == MANIFEST_FILE:
        yield f"{MANIFEST_FILE} lists itself"
    if file.sha256 is not None and not _SHA256.fullmatch(str(file.sha256)):
        yield f"sha256 of {file.path!r} is not 64 hex digits"
    if file.size_bytes is not None and (not isinstance(file.size_bytes, int) or file.size_bytes < 0):
        yield f"size_bytes of {file.path!r} is not a count of bytes"
