"""Identities, uploads, audios, voices, bundles: SQLAlchemy Core."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import sqlalchemy as sa
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncConnection

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, invalid, unavailable
from services.common.jobs.tasks import Blob, TimedWord
from services.metadata.adapters import tables as t
from services.metadata.adapters.queries import Queries
from services.metadata.adapters.storable import storable
from services.metadata.model.catalog import Audio, Reference, StoredBundle, Upload, Voice, VoiceState
from services.metadata.model.page import Page

Stored = Callable[[str], Awaitable[bool]]
"""Whether the artefact store holds something under a key. Errors: STORAGE_UNAVAILABLE."""

_AUDIO_FILTERS = {"purpose": t.audios.c.purpose, "source_audio": t.audios.c.source_audio}
_VOICE_FILTERS = {"engine": t.voices.c.engine, "state": t.voices.c.state}


class CatalogQueries(Queries):
    """The catalogue's part of a transaction."""

    def __init__(self, connection: AsyncConnection, stored: Stored | None = None) -> None:
        super().__init__(connection)
        self._stored = stored

    async def remember_request(
        self, team: str, request_id: str, method: str, fingerprint: str, resource: str
    ) -> str:
        """The resource that this request id first made, this one included. Errors: REQUEST_ID_REUSED.

        The insert waits for a concurrent one of the same id to commit, so that two identical submits
        make one resource.
        """
        if not request_id:
            return resource
        values = {"team": team, "request_id": request_id}
        if await self._inserted(
            insert(t.requests).values(**values, method=method, fingerprint=fingerprint, resource=resource)
        ):
            return resource
        row = await self._one(
            sa.select(t.requests).where(t.requests.c.team == team, t.requests.c.request_id == request_id)
        )
        assert row is not None
        if (row.method, row.fingerprint) != (method, fingerprint):
            raise VoxfleetError(
                Reason.REQUEST_ID_REUSED,
                f"request_id {request_id!r} was used for another request: choose a fresh one",
                kind=Kind.CONFLICT,
                metadata={"request_id": request_id, "first_method": row.method},
            )
        return str(row.resource)

    async def add_upload(self, upload: Upload) -> bool:
        """Makes an upload; False where the id is taken."""
        return await self._inserted(
            insert(t.uploads).values(
                team=upload.team, id=upload.id, spec=dict(upload.spec), expires_at=upload.expires_at
            )
        )

    async def get_upload(self, team: str, upload: str, *, lock: bool = False) -> Upload | None:
        """An upload."""
        query = sa.select(t.uploads).where(
            t.uploads.c.team == team, t.uploads.c.id == upload, t.uploads.c.condemned_at.is_(None)
        )
        row = await self._one(query.with_for_update() if lock else query)
        if row is None:
            return None
        return Upload(row.team, row.id, row.spec, row.durable_offset, row.audio_id, row.expires_at)

    async def advance_upload(self, team: str, upload: str, from_offset: int, to_offset: int) -> bool:
        """Moves the durable offset on; False where it is not what the caller thinks."""
        return await self._changed(
            sa.update(t.uploads)
            .where(
                t.uploads.c.team == team,
                t.uploads.c.id == upload,
                t.uploads.c.durable_offset == from_offset,
                t.uploads.c.audio_id == "",
                t.uploads.c.condemned_at.is_(None),
            )
            .values(durable_offset=to_offset)
        )

    async def mark_committed(self, team: str, upload: str, audio: str) -> None:
        """Notes the audio that an upload became."""
        await self._connection.execute(
            sa.update(t.uploads)
            .where(t.uploads.c.team == team, t.uploads.c.id == upload)
            .values(audio_id=audio)
        )

    async def drop_upload(self, team: str, upload: str) -> bool:
        """Forgets an upload; False where there is none."""
        return await self._changed(
            sa.delete(t.uploads).where(t.uploads.c.team == team, t.uploads.c.id == upload)
        )

    async def put_artifact(self, team: str, blob: Blob) -> None:
        """Makes an artefact's row, or finds that of the same content, which it revives if it was condemned.

        Errors: STORAGE_UNAVAILABLE while its bytes are being deleted; ARTIFACT_NOT_FOUND where they were, and
        nobody has stored them since.
        """
        statement = insert(t.artifacts).values(
            team=team,
            sha256=blob.sha256,
            size_bytes=blob.size_bytes,
            media_type=blob.media_type,
            key=blob.key,
        )
        condemned, swept = t.artifacts.c.condemned_at, t.artifacts.c.swept_at
        # DO UPDATE, so that the row is locked against a sweeper that is about to take it.
        row = await self._one(
            statement.on_conflict_do_update(
                index_elements=["team", "sha256"],
                set_={
                    "key": statement.excluded.key,
                    "condemned_at": sa.case((swept.is_not(None), condemned)),
                },
            ).returning(swept, t.artifacts.c.gone_at)
        )
        assert row is not None
        if row.swept_at is not None:
            await self._revive(team, blob, gone=row.gone_at is not None)

    async def _revive(self, team: str, blob: Blob, *, gone: bool) -> None:
        """Uses swept content again, once nobody deletes it any more, where somebody has stored it anew."""
        if not gone:
            raise unavailable(
                Reason.STORAGE_UNAVAILABLE, f"{blob.key} is being deleted just now: try again in some seconds"
            )
        if self._stored is None or not await self._stored(blob.key):
            raise VoxfleetError(
                Reason.ARTIFACT_NOT_FOUND,
                f"{blob.key} was deleted before it was named: store it again",
                kind=Kind.NOT_FOUND,
                metadata={"key": blob.key},
                failure=FailureClass.TRANSIENT,
            )
        await self._connection.execute(
            sa.update(t.artifacts)
            .where(t.artifacts.c.team == team, t.artifacts.c.sha256 == blob.sha256)
            .values(
                condemned_at=None,
                swept_at=None,
                gone_at=None,
                size_bytes=blob.size_bytes,
                media_type=blob.media_type,
            )
        )

    async def add_audio(self, audio: Audio, *, job_id: str = "") -> None:
        """Makes an audio; its artefact's row must be there."""
        await self._connection.execute(
            sa.insert(t.audios).values(
                team=audio.team,
                id=audio.id,
                display_name=audio.display_name,
                purpose=audio.purpose,
                sha256=audio.blob.sha256,
                measures=dict(audio.measures),
                assessment=dict(audio.assessment),
                labels=dict(audio.labels),
                provenance=dict(audio.provenance),
                source_audio=audio.source_audio,
                job_id=job_id,
                created_at=audio.created_at,
                expires_at=audio.expires_at,
            )
        )

    async def get_audio(self, team: str, audio: str) -> Audio | None:
        """An audio."""
        row = await self._one(_AUDIOS.where(t.audios.c.team == team, t.audios.c.id == audio))
        return _audio(row) if row else None

    async def list_audios(self, team: str, page: Page) -> list[Audio]:
        """A team's audios by age."""
        query = _paged(_AUDIOS.where(t.audios.c.team == team), t.audios, page, _AUDIO_FILTERS)
        return [_audio(row) for row in await self._all(query)]

    async def store_measures(
        self, team: str, audio: str, measures: Mapping[str, Any], assessment: Mapping[str, Any]
    ) -> bool:
        """Keeps an audio's measures; False where there is no such audio."""
        return await self._changed(
            sa.update(t.audios)
            .where(t.audios.c.team == team, t.audios.c.id == audio)
            .values(measures=dict(measures), assessment=dict(assessment))
        )

    async def audio_users(self, team: str, audio: str) -> list[str]:
        """Names of the voices and unfinished jobs that use an audio."""
        name = f"teams/{team}/audios/{audio}"
        voices = sa.select(t.voices.c.id).where(
            t.voices.c.team == team,
            t.voices.c.state != VoiceState.DELETED.value,
            sa.or_(
                t.voices.c.clips.op("@>")(sa.cast([{"audio": name}], sa.dialects.postgresql.JSONB)),
                sa.and_(
                    t.voices.c.state == VoiceState.TRAINING.value,
                    t.voices.c.training_audios.any(name),
                ),
            ),
        )
        jobs = sa.text(
            "SELECT id FROM jobs WHERE team = :team AND state IN ('QUEUED', 'RUNNING', 'CANCELLING') "
            "AND :name IN (task->'audio'->>'name', task->'model'->>'name', task->'index'->>'name') LIMIT 10"
        )
        found = [f"teams/{team}/voices/{row.id}" for row in await self._all(voices)]
        rows = (await self._connection.execute(jobs, {"team": team, "name": name})).all()
        return found + [f"teams/{team}/jobs/{row.id}" for row in rows]

    async def delete_audio(self, team: str, audio: str) -> bool:
        """Deletes an audio's row; its artefact is condemned, and swept once nothing names it."""
        return await self._changed(sa.delete(t.audios).where(t.audios.c.team == team, t.audios.c.id == audio))

    async def audios_of_job(self, job_id: str) -> list[str]:
        """Names of the audios that a job made."""
        query = sa.select(t.audios.c.team, t.audios.c.id).where(t.audios.c.job_id == job_id)
        return [f"teams/{row.team}/audios/{row.id}" for row in await self._all(query.order_by(t.audios.c.id))]

    async def add_voice(self, voice: Voice) -> bool:
        """Makes a voice; False where the id is taken."""
        return await self._inserted(
            insert(t.voices).values(
                team=voice.team,
                id=voice.id,
                display_name=voice.display_name,
                engine=voice.engine,
                state=voice.state.value,
                languages=list(voice.languages),
                clips=[_clip_row(clip) for clip in voice.references],
                training_audios=list(voice.training_audios),
                job_id=voice.job_id,
                bundle=voice.bundle,
                weights_licence=voice.weights_licence,
                weights_trained=voice.weights_trained,
                consent=voice.consent,
                labels=dict(voice.labels),
            )
        )

    async def get_voice(self, team: str, voice: str, *, lock: bool = False) -> Voice | None:
        """A voice."""
        query = _VOICES.where(t.voices.c.team == team, t.voices.c.id == voice)
        row = await self._one(query.with_for_update(of=t.voices) if lock else query)
        return _voice(row) if row else None

    async def list_voices(self, team: str, page: Page, *, show_deleted: bool) -> list[Voice]:
        """A team's voices by age."""
        query = _VOICES.where(t.voices.c.team == team)
        if not show_deleted:
            query = query.where(t.voices.c.state != VoiceState.DELETED.value)
        return [_voice(row) for row in await self._all(_paged(query, t.voices, page, _VOICE_FILTERS))]

    async def update_voice(self, team: str, voice: str, changes: Mapping[str, Any]) -> None:
        """Changes columns of a voice."""
        values = {key: storable(value) if key == "metrics" else value for key, value in changes.items()}
        await self._connection.execute(
            sa.update(t.voices).where(t.voices.c.team == team, t.voices.c.id == voice).values(**values)
        )

    async def list_bundles(self) -> list[StoredBundle]:
        """The bundles whose files are in the store."""
        rows = await self._all(sa.select(t.bundles).order_by(t.bundles.c.name))
        return [StoredBundle(row.name, row.manifest, row.created_at) for row in rows]

    async def put_bundle(self, name: str, manifest: Mapping[str, Any], accepted_by: str) -> StoredBundle:
        """Makes a bundle's row, or changes it."""
        statement = insert(t.bundles).values(name=name, manifest=dict(manifest), accepted_by=accepted_by)
        row = await self._one(
            statement.on_conflict_do_update(
                index_elements=["name"],
                set_={"manifest": statement.excluded.manifest, "accepted_by": statement.excluded.accepted_by},
            ).returning(t.bundles)
        )
        assert row is not None
        return StoredBundle(row.name, row.manifest, row.created_at)

    async def add_usage(self, team: str, voice: str, audio_s: float, work_s: float, characters: int) -> None:
        """Records what a streamed synthesis used."""
        await self._connection.execute(
            sa.insert(t.usage_records).values(
                team=team, voice=voice, audio_s=audio_s, work_s=work_s, characters=characters
            )
        )


_AUDIOS = (
    sa.select(t.audios, t.artifacts.c.size_bytes, t.artifacts.c.media_type, t.artifacts.c.key)
    .join(
        t.artifacts,
        sa.and_(t.artifacts.c.team == t.audios.c.team, t.artifacts.c.sha256 == t.audios.c.sha256),
    )
    .where(t.audios.c.condemned_at.is_(None))
)
_VOICES = sa.select(t.voices, t.artifacts.c.size_bytes, t.artifacts.c.media_type, t.artifacts.c.key).join(
    t.artifacts,
    sa.and_(t.artifacts.c.team == t.voices.c.team, t.artifacts.c.sha256 == t.voices.c.package_sha256),
    isouter=True,
)


def _paged(
    query: sa.Select[Any], table: sa.Table, page: Page, filters: Mapping[str, sa.Column[Any]]
) -> sa.Select[Any]:
    """Filters, keyset position, order and limit. Errors: INVALID_ARGUMENT for an unknown filter."""
    for key, value in page.filters.items():
        if key.startswith("labels."):
            query = query.where(table.c.labels[key.removeprefix("labels.")].astext == value)
        elif key in filters:
            query = query.where(filters[key] == value)
        else:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"cannot filter by {key!r}: use {', '.join((*filters, 'labels.KEY'))}",
                field="filter",
            )
    if page.query:
        query = query.where(table.c.display_name.icontains(page.query, autoescape=True))
    position = sa.tuple_(table.c.created_at, table.c.id)
    if page.after:
        stamp, _, last = page.after.partition("|")
        try:
            moment = dt.datetime.fromisoformat(stamp)
        except ValueError:
            raise invalid(
                Reason.INVALID_PAGE_TOKEN, "page_token is not one of ours", field="page_token"
            ) from None
        mark = sa.tuple_(sa.literal(moment), sa.literal(last))
        query = query.where(position > mark if page.ascending else position < mark)
    if page.ascending:
        return query.order_by(table.c.created_at, table.c.id).limit(page.size)
    return query.order_by(table.c.created_at.desc(), table.c.id.desc()).limit(page.size)


def _blob(row: Any, sha256: str) -> Blob:
    return Blob(key=row.key, sha256=sha256, size_bytes=row.size_bytes, media_type=row.media_type)


def _audio(row: Any) -> Audio:
    return Audio(
        team=row.team,
        id=row.id,
        display_name=row.display_name,
        purpose=row.purpose,
        blob=_blob(row, row.sha256),
        measures=row.measures,
        assessment=row.assessment,
        labels=row.labels,
        provenance=row.provenance,
        source_audio=row.source_audio,
        created_at=row.created_at,
        expires_at=row.expires_at,
    )


def _clip_row(clip: Reference) -> dict[str, Any]:
    row: dict[str, Any] = {"audio": clip.audio, "text": clip.text, "style": clip.style}
    if clip.words:
        row["words"] = [[word.text, word.start_s, word.end_s] for word in clip.words]
    return row


def _clip(row: Mapping[str, Any]) -> Reference:
    words = tuple(
        TimedWord(text=text, start_s=start_s, end_s=end_s) for text, start_s, end_s in row.get("words", ())
    )
    return Reference(row["audio"], row["text"], row.get("style", ""), words)


def _voice(row: Any) -> Voice:
    return Voice(
        team=row.team,
        id=row.id,
        display_name=row.display_name,
        engine=row.engine,
        state=VoiceState(row.state),
        languages=tuple(row.languages),
        references=tuple(_clip(clip) for clip in row.clips),
        training_audios=tuple(row.training_audios),
        job_id=row.job_id,
        bundle=row.bundle,
        content_encoder=row.content_encoder,
        rate_hz=row.rate_hz,
        weights_licence=row.weights_licence,
        weights_trained=row.weights_trained,
        consent=row.consent,
        labels=row.labels,
        metrics=row.metrics,
        package=_blob(row, row.package_sha256) if row.package_sha256 else None,
        created_at=row.created_at,
        deleted_at=row.deleted_at,
    )
