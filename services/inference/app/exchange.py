"""Voices in from files and out to files, as jobs: the bytes fetched, opened in a jail, stored.

This process never looks into a file from outside, nor imports torch: it moves bytes between the store and two
jailed processes (:mod:`services.engines.rvc.exchange`), and reads the few words that they say.
"""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Final, Protocol

from services.common.artifacts.model import DEFAULT_MEDIA_TYPE, content_key
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason, VoxfleetError, invalid, not_found, unavailable
from services.common.jail.running import BrokenError
from services.common.jail.work import JailLimits
from services.common.jobs.model import AudioOutput, Succeeded, VoiceOutput
from services.common.jobs.tasks import Blob, ExportVoiceTask, ImportVoiceTask, RvcVoice
from services.engines.rvc.package import MEDIA_TYPE

_ENGINE: Final = "services.engines.rvc.exchange"
_PLAIN: Final = ("weights", "vectors", "centres")

Advance = Callable[[str, float], None]
"""Told (phase, percent)."""


class Jail(Protocol):
    """What :func:`services.common.jail.running.run_jailed` is."""

    async def __call__(
        self,
        work: str,
        *,
        inputs: Mapping[str, Path],
        outputs: Mapping[str, Path],
        facts: Mapping[str, Any] | None = None,
        limits: JailLimits | None = None,
    ) -> Mapping[str, Any]:
        """What a piece of work says of some files."""


class Exchange:
    """The use cases.

    Args:
        store: of artefacts.
        work_dir: for what is on its way.
        jail: where files are opened.
        limits: what one process in it may use.
    """

    def __init__(self, store: ArtifactStore, work_dir: Path, jail: Jail, limits: JailLimits) -> None:
        self._store = store
        self._work_dir = work_dir
        self._jail = jail
        self._limits = limits

    async def bring_in(self, task: ImportVoiceTask, advance: Advance) -> Succeeded:
        """Makes a voice of files. Cancelling it ends whatever runs.

        Errors: MODEL_CORRUPT, UNSUPPORTED_ENGINE, AUDIO_NOT_FOUND, STORAGE_UNAVAILABLE, SERVICE_UNAVAILABLE
        where this machine has no jail.
        """
        name = _name(task.model.display_name, "the file")
        async with self._folder() as folder:
            advance("fetch", 0.0)
            inputs = {"model": await self._fetched(task.model.blob, folder / "model")}
            facts = {"name": name}
            if task.index is not None:
                inputs["index"] = await self._fetched(task.index.blob, folder / "index")
                facts["index_name"] = _name(task.index.display_name, "the index")
            advance("open", 20.0)
            plain = {each: folder / each for each in _PLAIN}
            found = await self._run("OPEN", name, inputs, plain, facts)
            advance("write", 50.0)
            more = {
                "imported_from": name,
                "imported_sha256": task.model.blob.sha256,
                "licence": task.licence,
            }
            package = folder / "package"
            made = await self._run("WRITE", name, plain, {"package": package}, {**found, "more": more})
            advance("store", 80.0)
            blob = await self._stored(task.team, package, MEDIA_TYPE)
        return Succeeded(
            voice=VoiceOutput(
                blob,
                str(made["content_encoder"]),
                int(made["rate_hz"]),
                {"index_vectors": float(made["vectors"])},
            ),
            weights=task.voice,
            weights_trained=bool(made["trained"]),
        )

    async def send_out(self, task: ExportVoiceTask, advance: Advance) -> Succeeded:
        """Makes files of a voice. Cancelling it ends whatever runs.

        Errors: MODEL_NOT_FOUND, MODEL_CORRUPT, UNSUPPORTED_ENGINE, STORAGE_UNAVAILABLE, SERVICE_UNAVAILABLE.
        """
        package = _package(task.voice)
        voice_id = task.voice.name.rpartition("/")[2]
        if task.format == "voxfleet":
            # The package is the export: its bytes are stored under their hash already.
            return _files(task, {f"{voice_id}.zip": package})
        async with self._folder() as folder:
            advance("fetch", 0.0)
            inputs = {"package": await self._fetched(package, folder / "package")}
            advance("write", 20.0)
            outputs = {"pth": folder / "pth", "index": folder / "index"}
            made = await self._run("EXPORT", task.voice.name, inputs, outputs, {})
            advance("store", 60.0)
            files = {
                f"{voice_id}.pth": await self._stored(task.team, outputs["pth"], DEFAULT_MEDIA_TYPE),
            }
            if made["index"]:
                index = await self._stored(task.team, outputs["index"], DEFAULT_MEDIA_TYPE)
                files[f"{voice_id}.index"] = index
        return _files(task, files)

    async def _run(
        self,
        work: str,
        name: str,
        inputs: Mapping[str, Path],
        outputs: Mapping[str, Path],
        facts: Mapping[str, Any],
    ) -> Mapping[str, Any]:
        try:
            return await self._jail(
                f"{_ENGINE}:{work}", inputs=inputs, outputs=outputs, facts=facts, limits=self._limits
            )
        except BrokenError as error:
            if error.cause == "start":
                raise unavailable(
                    Reason.SERVICE_UNAVAILABLE,
                    f"files of voices cannot be opened here just now: {error}",
                    retry_after_s=60.0,
                ) from error
            raise invalid(
                Reason.MODEL_CORRUPT,
                f"{name} was given up in the process that opened it: {error}",
                file=name,
                detail=error.cause,
            ) from error

    async def _fetched(self, blob: Blob, path: Path) -> Path:
        try:
            await asyncio.to_thread(self._store.get_file, blob.key, path, sha256=blob.sha256)
        except VoxfleetError as error:
            if error.reason is not Reason.ARTIFACT_NOT_FOUND:
                raise
            raise not_found(Reason.AUDIO_NOT_FOUND, blob.key) from error
        return path

    async def _stored(self, team: str, path: Path, media_type: str) -> Blob:
        """The file's bytes under their hash; what is stored there already is compared."""
        sha256 = await asyncio.to_thread(_sha256, path)
        key = content_key(team, sha256)
        found = await asyncio.to_thread(
            self._store.put_file, key, path, media_type=media_type, sha256=sha256, verify_content=True
        )
        return Blob(key=key, sha256=sha256, size_bytes=found.size_bytes, media_type=media_type)

    @asynccontextmanager
    async def _folder(self) -> AsyncIterator[Path]:
        def made() -> Path:
            self._work_dir.mkdir(parents=True, exist_ok=True)
            return Path(tempfile.mkdtemp(prefix="voice-", dir=self._work_dir))

        folder = await asyncio.to_thread(made)
        try:
            yield folder
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))


def _files(task: ExportVoiceTask, files: Mapping[str, Blob]) -> Succeeded:
    return Succeeded(
        audios=tuple(
            AudioOutput(
                blob=blob,
                duration_s=0.0,
                rate_hz=0,
                channels=0,
                codec="",
                display_name=name,
                engine="rvc",
                weights=task.voice.name,
                weights_trained=task.weights_trained,
                weights_licence=task.licence,
                seed=0,
                voice=task.voice.name,
                voice_file=True,
            )
            for name, blob in files.items()
        ),
        weights=task.voice.name,
        weights_trained=task.weights_trained,
    )


def _package(voice: RvcVoice) -> Blob:
    if voice.package is None:
        raise not_found(Reason.MODEL_NOT_FOUND, f"the package of {voice.name}")
    return voice.package


def _name(display_name: str, otherwise: str) -> str:
    return Path(display_name).name[:255] or otherwise


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
