"""What the ledger's use cases touch of the catalogue, in memory: voices, audios, requests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs.tasks import Blob
from services.metadata.adapters.memory.database import Statements, statement
from services.metadata.adapters.memory.rows import Request, StoredArtifact, StoredAudio, refused
from services.metadata.adapters.storable import storable
from services.metadata.model.catalog import Audio, Voice, VoiceState

_VOICE_FIELDS = frozenset(field.name for field in fields(Voice))


class MemoryCatalog(Statements):
    """The part of the catalogue that jobs make and change."""

    @statement
    async def remember_request(
        self, team: str, request_id: str, method: str, fingerprint: str, resource: str
    ) -> str:
        """The resource that this request id first made, this one included. Errors: REQUEST_ID_REUSED.

        It waits for a concurrent one of the same id to commit.
        """
        request = Request(method, fingerprint, resource)
        key = (team, request_id)
        if not request_id or await self._s.insert(self._db.requests, key, request):
            return resource
        first = self._s.get(self._db.requests, key)
        assert first is not None
        if (first.method, first.fingerprint) != (method, fingerprint):
            raise VoxfleetError(
                Reason.REQUEST_ID_REUSED,
                f"request_id {request_id!r} was used for another request: choose a fresh one",
                kind=Kind.CONFLICT,
                metadata={"request_id": request_id, "first_method": first.method},
            )
        return first.resource

    @statement
    async def put_artifact(self, team: str, blob: Blob) -> None:
        """Makes an artefact's row, or finds that of the same content."""
        key = (team, blob.sha256)
        found = await self._s.lock(self._db.artifacts, key)
        kept = blob if found is None else found.blob.model_copy(update={"key": blob.key})
        self._s.put(self._db.artifacts, key, StoredArtifact(team, kept))

    @statement
    async def add_audio(self, audio: Audio, *, job_id: str = "") -> None:
        """Makes an audio; its artefact's row must be there."""
        if self._s.get(self._db.artifacts, (audio.team, audio.blob.sha256)) is None:
            raise refused(f"{audio.name} has no artefact")
        if not await self._s.insert(self._db.audios, (audio.team, audio.id), StoredAudio(audio, job_id)):
            raise refused(f"there is an {audio.name} already")

    @statement
    async def get_audio(self, team: str, audio: str) -> Audio | None:
        """An audio."""
        found = self._s.get(self._db.audios, (team, audio)) if self._s.team in ("", team) else None
        return None if found is None else found.audio

    @statement
    async def audios_of_job(self, job_id: str) -> list[str]:
        """Names of the audios that a job made."""
        rows = (row for _, row in self._s.scan(self._db.audios))
        return sorted(
            row.audio.name for row in rows if row.job_id == job_id and self._s.team in ("", row.audio.team)
        )

    @statement
    async def add_voice(self, voice: Voice) -> bool:
        """Makes a voice; False where the id is taken."""
        made = replace(voice, created_at=self._s.now, package=None)
        return await self._s.insert(self._db.voices, (voice.team, voice.id), made)

    @statement
    async def get_voice(self, team: str, voice: str, *, lock: bool = False) -> Voice | None:
        """A voice."""
        key = (team, voice)
        if self._s.team not in ("", team) or self._s.get(self._db.voices, key) is None:
            return None
        if lock:
            await self._s.lock(self._db.voices, key)
        return self._s.get(self._db.voices, key)

    @statement
    async def update_voice(self, team: str, voice: str, changes: Mapping[str, Any]) -> None:
        """Changes columns of a voice."""
        found = await self._s.lock(self._db.voices, (team, voice))
        if found is None:
            return
        values = dict(changes)
        if "state" in values:
            values["state"] = VoiceState(values["state"])
        if "metrics" in values:
            values["metrics"] = storable(values["metrics"])
        if sha256 := values.pop("package_sha256", None):
            artifact = self._s.get(self._db.artifacts, (team, sha256))
            if artifact is None:
                raise refused(f"{found.name} has no package")
            values["package"] = artifact.blob
        assert values.keys() <= _VOICE_FIELDS
        self._s.put(self._db.voices, (team, voice), replace(found, **values))
