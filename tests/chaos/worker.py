"""A worker process of a chaos run: takes real leases, stores real bytes, and dies where it is told to.

It is the product's own worker loop and gRPC adapter around a handler that needs no engine. Around the commit
it has four places at which a file called ``fuse-NAME`` makes it kill itself: see :data:`POINTS`. What it was
told goes to a journal that outlives it, so that an audit can hold the ledger to every answer it gave.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import os
import random
import signal
from collections import Counter
from pathlib import Path

from services.common import telemetry
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.model import content_key
from services.common.artifacts.ports import ArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jobs.grpc_ledger import GrpcLedger
from services.common.jobs.model import (
    AttemptStopped,
    AudioOutput,
    Capacity,
    Fence,
    Outcome,
    Progress,
    Released,
    StopKind,
    Succeeded,
)
from services.common.jobs.tasks import Blob, ConvertTask, SpeakTask
from services.common.jobs.worker import Attempt, Worker
from services.common.names import new_id
from services.common.rpc.channel import service_channel

POINTS = ("before-put", "after-put", "in-commit", "after-commit")
"""Where a worker can be made to die: before its bytes are stored; after, before it asks to commit; while the
commit is on its way; once it has been answered."""

_PLACES = {"f5.item": 5, "rvc.convert": 2}
_ROUNDS = 20
_CHUNK = bytes(64 * 1024)

# Of a hundred attempts, how many end so. The rest go well.
_MISHAPS = (
    (5, FailureClass.TRANSIENT, Reason.STORAGE_UNAVAILABLE, Kind.UNAVAILABLE),
    (3, FailureClass.RESOURCE, Reason.GPU_OUT_OF_MEMORY, Kind.EXHAUSTED),
    (3, FailureClass.NODE, Reason.WORKER_LOST, Kind.UNAVAILABLE),
    (2, FailureClass.INPUT, Reason.AUDIO_SILENT, Kind.INVALID),
    (2, FailureClass.PERMANENT, Reason.CONVERSION_FAILED, Kind.INTERNAL),
)
_REPEATED = 0.2
_STUBBORN = 0.5


class Journal:
    """One JSON object a line; each is one write to the kernel, which keeps it when the process dies."""

    def __init__(self, path: Path, worker: str) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._worker = worker

    def write(self, what: str, fence: Fence, **facts: str) -> None:
        """Keeps that something happened to an attempt."""
        line = {"what": what, "job": fence.job_id, "attempt": fence.attempt, "worker": self._worker, **facts}
        os.write(self._file, (json.dumps(line) + "\n").encode())


class Fuse:
    """Kills this process at the place that a file names."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def is_at(self, point: str) -> bool:
        """Whether the process is to die here."""
        try:
            return self._path.read_text() == point
        except FileNotFoundError:
            return False

    def blow(self) -> None:
        """Dies at once, as by ``kill -9``; the file goes first, so that the next process lives."""
        self._path.unlink(missing_ok=True)
        os.kill(os.getpid(), signal.SIGKILL)

    def pass_by(self, point: str) -> None:
        """Dies here, if it is to."""
        if self.is_at(point):
            self.blow()


class ChaosLedger(GrpcLedger):
    """The product's adapter, which also notes every answer and sometimes asks twice, as networks do."""

    journal: Journal
    fuse: Fuse
    chance: random.Random
    mischief: bool

    async def succeed(self, fence: Fence, outcome: Outcome) -> None:
        """Ends an attempt; may die of it."""
        released = isinstance(outcome, Released)
        call = asyncio.create_task(super().succeed(fence, outcome))
        if not released and self.fuse.is_at("in-commit"):
            # Somewhere between the request's first byte and the answer's last.
            await asyncio.wait({call}, timeout=self.chance.uniform(0.0, 0.03))
            self.fuse.blow()
        await self._noted(fence, "released" if released else "succeeded", call)
        if not released:
            self.fuse.pass_by("after-commit")
        if self.mischief and self.chance.random() < _REPEATED:
            # The attempt has ended, and that was said: no second end may pass, whatever it brings.
            await self._repeat(fence, Succeeded() if released else outcome)

    async def fail(self, fence: Fence, error: VoxfleetError) -> None:
        """Ends an attempt badly."""
        await self._noted(fence, "failed", asyncio.create_task(super().fail(fence, error)))
        if self.mischief and self.chance.random() < _REPEATED:
            await self._repeat(fence, Succeeded())

    async def cancelled(self, fence: Fence) -> None:
        """Ends an attempt that was stopped as asked."""
        await self._noted(fence, "cancelled", asyncio.create_task(super().cancelled(fence)))

    async def _noted(self, fence: Fence, how: str, call: asyncio.Task[None]) -> None:
        try:
            await call
        except VoxfleetError as error:
            self.journal.write("refused", fence, reason=error.reason.value)
            raise
        self.journal.write("ended", fence, how=how)

    async def _repeat(self, fence: Fence, outcome: Outcome) -> None:
        try:
            await super().succeed(fence, outcome)
        except VoxfleetError as error:
            if error.reason is Reason.LEASE_LOST:
                self.journal.write("stale refused", fence)
            return
        self.journal.write("stale accepted", fence)


class Handler:
    """The work of one lease: hash, hold the place for a while, store, report.

    Args:
        store: where the artefact goes.
        journal: what is noted.
        fuse: where it dies.
        seed: decides what becomes of each attempt.
        pace_s: how long an attempt holds its place, at most.
        mischief: whether attempts fail, and stragglers commit although they lost their lease.
    """

    def __init__(
        self, store: ArtifactStore, journal: Journal, fuse: Fuse, *, seed: str, pace_s: float, mischief: bool
    ) -> None:
        self._store = store
        self._journal = journal
        self._fuse = fuse
        self._seed = seed
        self._pace_s = pace_s
        self._mischief = mischief
        self._running: Counter[str] = Counter()
        self.ledger: ChaosLedger

    def capacity(self) -> Capacity:
        """What could be taken now."""
        return Capacity({kind: max(0, most - self._running[kind]) for kind, most in _PLACES.items()})

    async def __call__(self, attempt: Attempt) -> Outcome:
        """Does the work of one lease; see :mod:`services.common.jobs.worker`."""
        kind = attempt.lease.task.kind
        self._running[kind] += 1
        try:
            return await self._work(attempt)
        finally:
            self._running[kind] -= 1

    async def _work(self, attempt: Attempt) -> Outcome:
        fence = attempt.lease.fence
        chance = random.Random(f"{self._seed}/{fence.job_id}/{fence.attempt}")
        self._journal.write("begun", fence)
        attempt.report(Progress("hash", 0, _ROUNDS))
        digest = hashlib.sha256(f"{fence}".encode())
        for number in range(_ROUNDS):
            digest.update(_CHUNK)
            if number % 5 == 0:
                await asyncio.sleep(0)  # others' turn
        with contextlib.suppress(TimeoutError):
            # A place on a GPU is held, not used by this process: told to stop, it is left at once.
            async with asyncio.timeout(chance.uniform(0.0, self._pace_s)):
                await attempt.wait_stop()
        stubborn = self._mischief and attempt.stop_kind is StopKind.LOST and chance.random() < _STUBBORN
        if not stubborn:
            attempt.check_stop()
        self._mishap(chance)
        attempt.report(Progress("store", _ROUNDS, _ROUNDS, percent=95.0))
        made = await self._store_output(attempt, digest.hexdigest())
        if stubborn or (attempt.stop_kind is StopKind.LOST and self._mischief):
            # It cannot know that another attempt runs; the fence must.
            with contextlib.suppress(VoxfleetError):
                await self.ledger.succeed(fence, made)
            raise AttemptStopped
        return made

    def _mishap(self, chance: random.Random) -> None:
        if not self._mischief:
            return
        draw = chance.uniform(0.0, 100.0)
        for share, failure, reason, kind in _MISHAPS:
            if draw < share:
                raise VoxfleetError(reason, f"a mishap of class {failure.value}", kind=kind, failure=failure)
            draw -= share

    async def _store_output(self, attempt: Attempt, digest: str) -> Succeeded:
        lease = attempt.lease
        task = lease.task
        assert isinstance(task, SpeakTask | ConvertTask)
        # Every attempt makes other bytes: two that both became visible would show.
        data = f"{lease.job} attempt {lease.fence.attempt} {lease.fence.lease_token} {digest}".encode()
        team = task.team
        key = content_key(team, hashlib.sha256(data).hexdigest())
        self._fuse.pass_by("before-put")
        stored = await asyncio.to_thread(self._store.put_bytes, key, data, media_type="audio/flac")
        self._fuse.pass_by("after-put")
        blob = Blob(key=key, sha256=stored.sha256, size_bytes=stored.size_bytes, media_type=stored.media_type)
        audio = AudioOutput(
            blob=blob,
            duration_s=1.0,
            rate_hz=24_000,
            channels=1,
            codec="flac",
            display_name="chaos",
            engine="chaos",
            weights="chaos",
            weights_trained=False,
            weights_licence="",
            seed=1,
            voice=task.voice.name,
        )
        return Succeeded(audios=(audio,), weights="chaos")


async def work(options: argparse.Namespace) -> None:
    """Works until killed."""
    name = f"{options.name}-{new_id()}"
    journal = Journal(options.directory / f"journal-{options.name}.jsonl", name)
    fuse = Fuse(options.directory / f"fuse-{options.name}")
    store = MinioArtifactStore(S3Settings.from_environ(os.environ))
    handler = Handler(store, journal, fuse, seed=options.seed, pace_s=options.pace, mischief=options.mischief)
    channel = service_channel(os.environ["VOXFLEET_METADATA_ADDRESS"], os.environ["VOXFLEET_SERVICE_TOKEN"])
    ledger = ChaosLedger(channel, worker=name, queue="inference", node=options.name, version="chaos")
    ledger.journal, ledger.fuse, ledger.mischief = journal, fuse, options.mischief
    ledger.chance = random.Random(f"{options.seed}/{name}")
    handler.ledger = ledger
    worker = Worker(ledger, handler, handler.capacity, heartbeat_s=0.5, reconnect_s=0.2)
    await worker.run()


def main() -> None:
    """Reads the command line and works."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos.worker", description=__doc__)
    parser.add_argument("--name", required=True, help="of the node that it pretends to be")
    parser.add_argument("--directory", required=True, type=Path, help="for its journal and its fuse")
    parser.add_argument("--seed", default="0")
    parser.add_argument("--pace", type=float, default=0.5, help="seconds an attempt holds its place, at most")
    parser.add_argument("--mischief", action="store_true", help="fail, repeat, commit too late")
    options = parser.parse_args()
    telemetry.configure_logging("chaos-worker", "INFO", as_json=False)
    asyncio.run(work(options))


if __name__ == "__main__":
    main()
