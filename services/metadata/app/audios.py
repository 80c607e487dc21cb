"""Uploads and audios: the rows. The audio service moves the bytes."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from services.common import names
from services.common.errors import Kind, Reason, VoxfleetError, not_found, precondition
from services.common.jobs.tasks import Blob
from services.metadata.model.catalog import Audio, Upload
from services.metadata.model.page import Page
from services.metadata.ports.store import Store


class Audios:
    """The use cases of uploads and audios."""

    def __init__(self, store: Store, *, upload_ttl_s: float) -> None:
        self._store = store
        self._ttl = dt.timedelta(seconds=upload_ttl_s)

    async def open_upload(self, team: str, upload_id: str, spec: Mapping[str, Any]) -> Upload:
        """Makes an upload; one that is there already is an error. Errors: UPLOAD_OFFSET_MISMATCH."""
        upload_id = names.check_id(upload_id, field="upload_id") if upload_id else names.new_id()
        upload = Upload(team, upload_id, spec, 0, "", dt.datetime.now(dt.UTC) + self._ttl)
        async with self._store.tenant(team) as tx:
            if not await tx.add_upload(upload):
                found = await tx.get_upload(team, upload_id)
                raise VoxfleetError(
                    Reason.UPLOAD_OFFSET_MISMATCH,
                    f"upload {upload_id} is open already: resume it at its durable offset",
                    kind=Kind.CONFLICT,
                    metadata={"durable_offset": found.durable_offset if found else 0},
                )
        return upload

    async def get_upload(self, team: str, upload_id: str) -> Upload:
        """An upload. Errors: UPLOAD_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            return _found(await tx.get_upload(team, upload_id), team, upload_id)

    async def advance_upload(self, team: str, upload_id: str, from_offset: int, to_offset: int) -> Upload:
        """Moves the durable offset on. Errors: UPLOAD_NOT_FOUND, UPLOAD_OFFSET_MISMATCH."""
        async with self._store.tenant(team) as tx:
            moved = await tx.advance_upload(team, upload_id, from_offset, to_offset)
            upload = _found(await tx.get_upload(team, upload_id), team, upload_id)
        if not moved:
            raise VoxfleetError(
                Reason.UPLOAD_OFFSET_MISMATCH,
                f"the durable offset is {upload.durable_offset}, not {from_offset}: resume there",
                kind=Kind.OUT_OF_RANGE,
                metadata={"durable_offset": upload.durable_offset},
            )
        return upload

    async def drop_upload(self, team: str, upload_id: str) -> None:
        """Forgets an upload that was refused; one that became an audio stays."""
        async with self._store.tenant(team) as tx:
            upload = await tx.get_upload(team, upload_id, lock=True)
            if upload is not None and not upload.audio_id:
                await tx.drop_upload(team, upload_id)

    async def commit(
        self,
        team: str,
        upload_id: str,
        blob: Blob,
        measures: Mapping[str, Any],
        assessment: Mapping[str, Any],
    ) -> Audio:
        """Turns an upload into an audio, once; a repeat answers the same audio."""
        async with self._store.tenant(team) as tx:
            upload = _found(await tx.get_upload(team, upload_id, lock=True), team, upload_id)
            if upload.audio_id:
                audio = await tx.get_audio(team, upload.audio_id)
                if audio is None:
                    raise not_found(Reason.AUDIO_NOT_FOUND, f"teams/{team}/audios/{upload.audio_id}")
                return audio
            now = dt.datetime.now(dt.UTC)
            audio = Audio(
                team=team,
                id=names.new_id(),
                display_name=str(upload.spec.get("display_name", "")),
                purpose=str(upload.spec.get("purpose", "")) or "AUDIO_PURPOSE_CONVERSION",
                blob=blob,
                measures=measures,
                assessment=assessment,
                labels=upload.spec.get("labels", {}),
                provenance={},
                source_audio="",
                created_at=now,
                expires_at=now + self._ttl,
            )
            await tx.put_artifact(team, blob)
            await tx.add_audio(audio)
            await tx.mark_committed(team, upload_id, audio.id)
        return audio

    async def get(self, team: str, audio_id: str) -> Audio:
        """An audio. Errors: AUDIO_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            audio = await tx.get_audio(team, audio_id)
        if audio is None:
            raise not_found(Reason.AUDIO_NOT_FOUND, f"teams/{team}/audios/{audio_id}")
        return audio

    async def page(self, team: str, page: Page) -> list[Audio]:
        """A team's audios."""
        async with self._store.tenant(team) as tx:
            return await tx.list_audios(team, page)

    async def store_measures(
        self, team: str, audio_id: str, measures: Mapping[str, Any], assessment: Mapping[str, Any]
    ) -> Audio:
        """Keeps the measures of an audio. Errors: AUDIO_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            await tx.store_measures(team, audio_id, measures, assessment)
        return await self.get(team, audio_id)

    async def delete(self, team: str, audio_id: str) -> None:
        """Deletes an audio. Errors: AUDIO_NOT_FOUND, AUDIO_IN_USE."""
        name = f"teams/{team}/audios/{audio_id}"
        async with self._store.tenant(team) as tx:
            if users := await tx.audio_users(team, audio_id):
                raise precondition(
                    Reason.AUDIO_IN_USE,
                    f"{name} is used by {', '.join(users[:3])}: delete or cancel that first",
                    used_by=",".join(users),
                )
            if not await tx.delete_audio(team, audio_id):
                raise not_found(Reason.AUDIO_NOT_FOUND, name)


def _found(upload: Upload | None, team: str, upload_id: str) -> Upload:
    if upload is None:
        raise not_found(Reason.UPLOAD_NOT_FOUND, f"teams/{team}/uploads/{upload_id}")
    return upload
