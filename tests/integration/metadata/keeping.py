"""Retention over a real database and a real object store, with a clock that a test moves."""

import datetime as dt
import hashlib
import json
from contextlib import asynccontextmanager

import psycopg

from services.common import names
from services.common.artifacts.model import content_key, work_key
from services.common.jobs import tasks
from services.common.jobs.model import AudioOutput, Checkpoint, Succeeded
from services.metadata.adapters.postgres import PostgresStore
from services.metadata.adapters.stored_bytes import ThreadedBytes
from services.metadata.app.audios import Audios
from services.metadata.app.identity import Identity
from services.metadata.app.retention import Retention
from services.metadata.app.work import Work
from services.metadata.model.catalog import Audio
from services.metadata.model.jobs import NewJob, PriorityClass
from services.metadata.model.retention import DAY_S, RetentionSettings
from services.metadata.scheduling.lanes import LaneKey, Pick, Turn

CLASSES = {"rvc.train": PriorityClass.TRAINING, "rvc.convert": PriorityClass.CONVERSION}

TABLES = (
    "jobs",
    "job_attempts",
    "job_events",
    "job_checkpoints",
    "job_dependencies",
    "retired_batches",
    "requests",
    "artifacts",
    "uploads",
    "audios",
    "voices",
    "watermarks",
)


class Clock:
    """The ledger's time. It begins an hour from now: ids and objects are made in its past."""

    def __init__(self):
        self.start = self.at = dt.datetime.now(dt.UTC).replace(microsecond=0) + dt.timedelta(hours=1)

    def now(self):
        return self.at

    def move(self, *, s=0.0, days=0.0):
        self.at += dt.timedelta(seconds=s + days * DAY_S)


class CountedStore:
    """The store, noting how many rows each transaction deleted."""

    def __init__(self, store):
        self.store = store
        self.deleted = []

    @asynccontextmanager
    async def service(self):
        async with self.store.service() as tx:
            # What a connection has not yet handed in is counted on from one transaction to the next.
            before = await self._deleted(tx)
            yield tx
            self.deleted.append(await self._deleted(tx) - before)

    async def _deleted(self, tx):
        rows = await tx._fetch("SELECT sum(n_tup_del)::integer AS n FROM pg_stat_xact_user_tables", {})
        return rows[0]["n"] or 0


class Keeping:
    """A database, a store, and retention over both."""

    def __init__(self, url, artifacts, settings=None):
        self.url = url
        self.artifacts = artifacts
        self.clock = Clock()
        self.bytes = ThreadedBytes(artifacts)
        self.store = PostgresStore(url, pool_size=4, now=self.clock.now, stored=self.bytes.exists)
        self.settings = settings or RetentionSettings()
        self.retention = self.make()
        self.audios = Audios(self.store, upload_ttl_s=DAY_S)
        self.work = Work(
            self.store, lambda jobs: None, lease_s=60, keep_checkpoints=2, output_ttl_s=7 * DAY_S
        )

    def make(self, *, store=None, stored=None, settings=None):
        return Retention(store or self.store, stored or self.bytes, settings or self.settings)

    async def begin(self):
        identity = Identity(self.store)
        await identity.create_team("alpha", "Alpha")
        await identity.create_team("beta", "Beta")
        self.sql("INSERT INTO watermarks VALUES ('usage', '9999-01-01')")

    async def close(self):
        self.bytes.close()
        await self.store.close()

    def sql(self, query, *parameters):
        with psycopg.connect(self.url) as connection:
            found = connection.execute(query, parameters)
            return found.fetchall() if found.description else []

    def count(self, table):
        return self.sql(f"SELECT count(*) FROM {table}")[0][0]

    def stored(self, prefix="teams/"):
        return {listed.key for listed in self.artifacts.list_prefix(prefix)}

    def dump(self):
        """Every row that retention may touch, and every object."""
        rows = {name: sorted(map(repr, self.sql(f"SELECT * FROM {name}"))) for name in TABLES}
        return rows, {(one.key, one.modified_at) for one in self.artifacts.list_prefix("")}

    def put(self, data, team="alpha"):
        """Content in the store, without a row."""
        sha256 = hashlib.sha256(data).hexdigest()
        kept = self.artifacts.put_bytes(content_key(team, sha256), data, media_type="audio/flac")
        return tasks.Blob(key=kept.key, sha256=sha256, size_bytes=len(data), media_type="audio/flac")

    async def upload(self, data=b"speech", *, ttl_s=DAY_S, team="alpha"):
        """An uploaded audio; its upload is still remembered. Returns the audio."""
        upload = await self.audios.open_upload(team, "", {"display_name": "clip"})
        blob = self.put(data, team)
        audio = await self.audios.commit(team, upload.id, blob, {"duration_s": 10.0}, {})
        until = self.clock.now() + dt.timedelta(seconds=ttl_s)
        self.sql("UPDATE audios SET expires_at = %s WHERE id = %s", until, audio.id)
        self.sql("UPDATE uploads SET expires_at = %s WHERE id = %s", until, upload.id)
        return audio

    async def add(self, kind="rvc.convert", task=None, *, team="alpha", request_id="", **changes):
        """A job that waits. Returns its id."""
        job_id = names.new_id()
        task = task or {"kind": kind, "team": team}
        job = NewJob(
            team,
            job_id,
            kind,
            CLASSES.get(kind, PriorityClass.BATCH),
            json.dumps(task),
            {"a": "b"},
            **changes,
        )
        async with self.store.tenant(team) as tx:
            if request_id:
                await tx.remember_request(team, request_id, "ConvertAudio", "f", job_id)
            await tx.add_jobs(team, [job])
        return job_id

    async def start(self, kind="rvc.convert", team="alpha"):
        """The next waiting job of a lane, claimed. Returns its fence."""
        pick = Pick(LaneKey(kind, CLASSES.get(kind, PriorityClass.BATCH), team), 1, -1)
        async with self.store.leases() as rows:
            (leased,) = await rows.claim([Turn("w", "n", pick)], 60, gpu_types=(), max_gpus=8)
        return leased.fence

    async def finished(self, kind="rvc.convert", *, outputs=(), checkpoint=b"", **changes):
        """A job that ran and succeeded now. Returns its id."""
        job_id = await self.add(kind, **changes)
        fence = await self.start(kind, changes.get("team", "alpha"))
        if checkpoint:
            key = work_key("alpha", job_id, fence.attempt, "g-1.pt")
            kept = self.artifacts.put_bytes(key, checkpoint)
            blob = tasks.Blob(key=key, sha256=kept.sha256, size_bytes=len(checkpoint))
            await self.work.record_checkpoint(fence, Checkpoint(blob, 1, 10))
        made = tuple(self.output(data) for data in outputs)
        ended = await self.work.succeed(fence, Succeeded(audios=made))
        for name in ended.audios:
            until = self.clock.now() + dt.timedelta(days=7)
            self.sql("UPDATE audios SET expires_at = %s WHERE id = %s", until, name.rpartition("/")[2])
        return job_id

    def output(self, data):
        return AudioOutput(
            self.put(data), 1.0, 48_000, 1, "flac", "line", "f5", "w", False, "MIT", 1, "teams/alpha/voices/v"
        )

    async def batch(self, count, *, team="alpha"):
        """A batch whose items have all succeeded now, with an attempt and three events each."""
        batch = names.new_id()
        head = NewJob(team, batch, "batch", PriorityClass.BATCH, '{"kind": "batch"}', {}, items_total=count)
        items = [
            NewJob(
                team,
                names.new_id(),
                "f5.item",
                PriorityClass.BATCH,
                '{"kind": "f5.item", "text": "hello"}',
                {"text": "hello"},
                parent_id=batch,
                item_index=index,
            )
            for index in range(count)
        ]
        async with self.store.tenant(team) as tx:
            await tx.add_jobs(team, [head, *items])
        now = self.clock.now()
        self.sql(
            "INSERT INTO job_attempts (job_id, attempt, team, worker, started_at, ended_at) "
            "SELECT id, 1, team, 'w', %s, %s FROM jobs WHERE parent_id = %s",
            now,
            now,
            batch,
        )
        self.sql(
            "INSERT INTO job_events (job_id, seq, team, state, attempt) SELECT id, n, team, 'RUNNING', 1 "
            "FROM jobs, generate_series(2, 3) AS n WHERE parent_id = %s",
            batch,
        )
        self.sql(
            "UPDATE jobs SET state = 'SUCCEEDED', ended_at = %s, attempt = 1, event_seq = 3 "
            "WHERE parent_id = %s",
            now,
            batch,
        )
        self.sql("UPDATE jobs SET state = 'SUCCEEDED', ended_at = %s WHERE id = %s", now, batch)
        return batch

    def reference(self, audio, team="alpha", voice="zero-shot", state="READY"):
        """A zero-shot voice that speaks from an audio."""
        self.sql(
            "INSERT INTO voices (team, id, engine, state, clips) VALUES (%s, %s, 'f5', %s, %s)",
            team,
            voice,
            state,
            json.dumps([{"audio": audio.name, "text": "hello"}]),
        )

    def source_task(self, audio: Audio):
        """The task of a conversion of an audio."""
        source = {"name": audio.name, "blob": audio.blob.model_dump(), "duration_s": 1.0}
        return {"kind": "rvc.convert", "team": audio.team, "audio": source, "voice": {"name": "v"}}
