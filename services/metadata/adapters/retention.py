"""Retention in Postgres: named SQL run by raw psycopg."""

from __future__ import annotations

import datetime as dt
from collections.abc import Sequence

from services.metadata.adapters.statements import Row, Statements
from services.metadata.model.retention import (
    Condemned,
    Due,
    ExpiredAudio,
    ExpiredUpload,
    Finished,
    Mark,
    OldRequest,
    RetiredBatch,
    Stray,
)


class RetentionQueries(Statements):
    """The retention's part of a transaction."""

    async def clock(self) -> dt.datetime:
        """The ledger's time."""
        (row,) = await self._rows("clock")
        now: dt.datetime = row["now"]
        return now

    async def take_turn(self, name: str, every_s: float) -> bool:
        """Whether it is this process that does a thing in this period."""
        return bool(await self._rows("take_turn", name=name, every_s=every_s))

    async def expired_audios(self, after: Mark, limit: int) -> list[ExpiredAudio]:
        """Audios after their time, used or not."""
        rows = await self._rows("expired_audios", limit=limit, **_after(after))
        return [
            ExpiredAudio(r["team"], r["id"], r["sha256"], r["purpose"], r["size_bytes"], r["expires_at"])
            for r in rows
        ]

    async def used_audios(self, audios: Sequence[ExpiredAudio]) -> set[tuple[str, str]]:
        """(team, id) of those that a voice or a job which has not ended uses."""
        if not audios:
            return set()
        rows = await self._rows("voiced_audios", **_audio_keys(audios))
        used = {(row["team"], row["id"]) for row in rows}
        awaited = await self._awaited([(a.team, a.sha256) for a in audios if a.key not in used])
        return used | {audio.key for audio in audios if (audio.team, audio.sha256) in awaited}

    async def condemn_audios(self, audios: Sequence[ExpiredAudio]) -> None:
        """Hides audios from everybody until the second look."""
        await self._run("condemn_audios", **_audio_keys(audios))

    async def lock_condemned_audios(self, second_look_s: float, limit: int) -> list[ExpiredAudio]:
        """Audios that were condemned so long ago, locked."""
        rows = await self._rows("lock_condemned_audios", second_look_s=second_look_s, limit=limit)
        return [ExpiredAudio(r["team"], r["id"], r["sha256"]) for r in rows]

    async def restore_audios(self, audios: Sequence[ExpiredAudio]) -> None:
        """Brings back audios that somebody began to use just before they were condemned."""
        await self._run("restore_audios", **_audio_keys(audios))

    async def delete_audios(self, audios: Sequence[ExpiredAudio]) -> None:
        """Deletes their rows, which condemns their artefacts."""
        await self._run("delete_audios", **_audio_keys(audios))

    async def due_artifacts(self, due: Due, after: Mark, limit: int) -> list[Condemned]:
        """Artefacts that were condemned so long ago."""
        rows = await self._rows("due_artifacts", limit=limit, **_after(after), **_due(due))
        return [Condemned(r["team"], r["sha256"], r["key"], r["size_bytes"], r["condemned_at"]) for r in rows]

    async def lock_artifacts(self, due: Due, artifacts: Sequence[Condemned]) -> list[Condemned]:
        """Those that are still due, locked: nobody begins to use them meanwhile."""
        rows = await self._rows("lock_artifacts", **_content_keys(artifacts), **_due(due))
        known = {artifact.key: artifact for artifact in artifacts}
        return [
            Condemned(
                r["team"], r["sha256"], r["key"], known[r["team"], r["sha256"]].size_bytes, swept=r["swept"]
            )
            for r in rows
        ]

    async def used_artifacts(self, artifacts: Sequence[Condemned]) -> set[tuple[str, str]]:
        """(team, SHA-256) of those that a row, or the task of a job which has not ended, names."""
        if not artifacts:
            return set()
        rows = await self._rows("referenced_artifacts", **_content_keys(artifacts))
        used = {(row["team"], row["sha256"]) for row in rows}
        return used | await self._awaited([each.key for each in artifacts if each.key not in used])

    async def restore_artifacts(self, artifacts: Sequence[Condemned]) -> None:
        """Takes their condemnation back."""
        await self._run("restore_artifacts", **_content_keys(artifacts))

    async def sweep_artifacts(self, artifacts: Sequence[Condemned]) -> dt.datetime:
        """Says that their bytes will be deleted now; returns the claim."""
        rows = await self._rows("sweep_artifacts", **_content_keys(artifacts))
        claim: dt.datetime = rows[0]["swept_at"]
        return claim

    async def note_gone(self, artifacts: Sequence[Condemned], claim: dt.datetime) -> None:
        """Says that their bytes are gone, unless another has claimed them since."""
        await self._run("note_gone", swept_at=claim, **_content_keys(artifacts))

    async def forget_gone(self, grace_s: float, limit: int) -> int:
        """Deletes the rows of artefacts that have been gone for so long; returns how many."""
        return len(await self._rows("forget_gone", grace_s=grace_s, limit=limit))

    async def strays(self, objects: Sequence[Stray]) -> list[Stray]:
        """Those of some objects that no row names."""
        rows = await self._rows("strays", areas=[each.area for each in objects], **_object_keys(objects))
        keys = {row["key"] for row in rows}
        return [each for each in objects if each.key in keys]

    async def adopt_strays(self, objects: Sequence[Stray]) -> tuple[list[Condemned], dt.datetime | None]:
        """Gives content without a row one, as being swept; returns those, and the claim."""
        sizes = [each.size_bytes for each in objects]
        rows = await self._rows("adopt_strays", sizes=sizes, **_object_keys(objects))
        adopted = [Condemned(r["team"], r["sha256"], r["key"], swept=True) for r in rows]
        return adopted, rows[0]["swept_at"] if rows else None

    async def condemn_unnamed(self, objects: Sequence[Stray]) -> None:
        """Condemns content that has a row which no other row names."""
        teams, owners = [each.team for each in objects], [each.owner for each in objects]
        await self._run("condemn_unnamed", teams=teams, owners=owners)

    async def due_uploads(self, due: Due, after: Mark, limit: int) -> list[ExpiredUpload]:
        """Uploads after their time."""
        rows = await self._rows("due_uploads", limit=limit, takeover_s=due.takeover_s, **_after(after))
        return [ExpiredUpload(r["team"], r["id"], r["size_bytes"], r["expires_at"]) for r in rows]

    async def condemn_uploads(
        self, due: Due, uploads: Sequence[ExpiredUpload]
    ) -> tuple[list[ExpiredUpload], dt.datetime | None]:
        """Closes uploads whose parts will be deleted now; returns those, and the claim."""
        rows = await self._rows("condemn_uploads", takeover_s=due.takeover_s, **_upload_keys(uploads))
        known = {(upload.team, upload.id): upload for upload in uploads}
        closed = [known[row["team"], row["id"]] for row in rows]
        return closed, rows[0]["condemned_at"] if rows else None

    async def delete_uploads(self, uploads: Sequence[ExpiredUpload], claim: dt.datetime) -> None:
        """Deletes their rows, unless another has claimed them since."""
        await self._run("delete_uploads", condemned_at=claim, **_upload_keys(uploads))

    async def old_requests(self, retain_s: float, after: Mark, limit: int) -> list[OldRequest]:
        """A page of all request ids, each with whether it is due."""
        rows = await self._rows(
            "old_requests", retain_s=retain_s, after_team=after.team, after_id=after.id, limit=limit
        )
        return [OldRequest(row["team"], row["request_id"], row["due"]) for row in rows]

    async def delete_requests(self, retain_s: float, requests: Sequence[OldRequest]) -> None:
        """Forgets request ids."""
        teams, ids = [each.team for each in requests], [each.id for each in requests]
        await self._run("delete_requests", retain_s=retain_s, teams=teams, ids=ids)

    async def due_jobs(self, retain_s: float, before_id: str, after: Mark, limit: int) -> list[Finished]:
        """Jobs that ended so long ago, made before an id, by team and id."""
        rows = await self._rows(
            "due_jobs",
            retain_s=retain_s,
            before_id=before_id,
            after_team=after.team,
            after_id=after.id,
            limit=limit,
        )
        return [_finished(row) for row in rows]

    async def items_left(self, batch: str, limit: int) -> list[Finished]:
        """Items of a batch, in their order."""
        return [_finished(row) for row in await self._rows("items_left", batch=batch, limit=limit)]

    async def archive_lines(self, jobs: Sequence[Finished]) -> dict[str, str]:
        """Each job with all that goes with it as one line of JSON, by its id."""
        rows = await self._rows("archive_lines", jobs=[job.id for job in jobs])
        return {row["id"]: row["line"] for row in rows}

    async def delete_finished(self, jobs: Sequence[Finished]) -> set[str]:
        """Deletes those that are as they were looked at and that nothing waits for; returns their ids."""
        locked = await self._rows(
            "lock_finished",
            jobs=[job.id for job in jobs],
            seqs=[job.event_seq for job in jobs],
            updated=[job.updated_at for job in jobs],
        )
        rows = await self._rows("delete_finished", jobs=[row["id"] for row in locked])
        return {row["id"] for row in rows}

    async def retired_batches(self, after: str, limit: int) -> list[RetiredBatch]:
        """Batches whose row is gone and whose items are going."""
        rows = await self._rows("retired_batches", after=after, limit=limit)
        return [RetiredBatch(row["team"], row["id"], row["ended_at"]) for row in rows]

    async def forget_batch(self, batch: str) -> None:
        """Ends the retirement of a batch that has no item left."""
        await self._run("forget_batch", batch=batch)

    async def _awaited(self, content: Sequence[tuple[str, str]]) -> set[tuple[str, str]]:
        """Those of some contents that the tasks of jobs name which have not ended."""
        if not content:
            return set()
        teams, shas = [team for team, _ in content], [sha256 for _, sha256 in content]
        rows = await self._rows("awaited_content", teams=teams, shas=shas)
        return {(row["team"], row["sha256"]) for row in rows}


def _finished(row: Row) -> Finished:
    return Finished(
        row["team"],
        row["id"],
        row["kind"],
        row["event_seq"],
        row["updated_at"],
        row["ended_at"],
        row["rows"],
        row["size_bytes"],
    )


def _after(mark: Mark) -> Row:
    return {"after": mark.at, "after_team": mark.team, "after_id": mark.id}


def _due(due: Due) -> Row:
    return {"second_look_s": due.second_look_s, "takeover_s": due.takeover_s}


def _audio_keys(audios: Sequence[ExpiredAudio]) -> Row:
    return {"teams": [audio.team for audio in audios], "ids": [audio.id for audio in audios]}


def _content_keys(artifacts: Sequence[Condemned]) -> Row:
    return {"teams": [each.team for each in artifacts], "shas": [each.sha256 for each in artifacts]}


def _upload_keys(uploads: Sequence[ExpiredUpload]) -> Row:
    return {"teams": [upload.team for upload in uploads], "ids": [upload.id for upload in uploads]}


def _object_keys(objects: Sequence[Stray]) -> Row:
    return {
        "teams": [each.team for each in objects],
        "owners": [each.owner for each in objects],
        "keys": [each.key for each in objects],
    }
