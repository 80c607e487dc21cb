"""Batches: counted from the ends of their items, and ended when those have."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from services.common.errors import Kind, Reason, VoxfleetError
from services.metadata.app.feed import with_running
from services.metadata.model.jobs import Job, JobState
from services.metadata.model.page import Page
from services.metadata.ports.store import Store, Transaction

log = logging.getLogger(__name__)

_TICKS_AT_ONCE = 20_000
_FIRST_GOOD = Page(size=1, filters={"state": "SUCCEEDED"})


async def roll_up(store: Store) -> list[Job]:
    """Counts the ended items of batches, begins and ends batches; returns those that moved.

    An item's end leaves a row of its own; these are added up here, by one process at a time, so that a
    hundred thousand items never wait for their batch's row.
    """
    moved: list[Job] = []
    async with store.service() as tx:
        for batch_id in await tx.starting_batches():
            batch = await tx.lock_open_batch(batch_id)
            if batch is not None and batch.state is JobState.QUEUED:
                moved.append(await tx.change_state(batch, JobState.RUNNING, "first item began"))
        counted = await tx.add_ticks(_TICKS_AT_ONCE)
        running = await tx.items_running(counted) if counted else {}
        for batch_id in counted:
            batch = await tx.lock_open_batch(batch_id)
            if batch is not None:
                moved.append(await _count(tx, with_running(batch, running.get(batch_id, 0))))
    return moved


async def _count(tx: Transaction, batch: Job) -> Job:
    counts = batch.counts
    total = counts["total"]
    done = counts["succeeded"] + counts["failed"] + counts["cancelled"]
    progress = {
        "phase": "items",
        "step": done,
        "total_steps": total,
        "percent": 100.0 * done / total if total else 100.0,
        "metrics": {},
        "message": f"{done} of {total} items, {counts['failed']} failed",
    }
    await tx.set_batch_progress(batch.id, progress)
    if done >= total:
        return await _end(tx, batch, counts)
    # One that waits for another job has not begun, though items of it were cancelled.
    if batch.state is JobState.QUEUED and not batch.blockers and done > counts["failed"]:
        return await tx.change_state(batch, JobState.RUNNING, "first item began")
    return batch


async def _end(tx: Transaction, batch: Job, counts: Mapping[str, int]) -> Job:
    """SUCCEEDED with any good item, CANCELLED when it was asked to stop, FAILED only if every item failed."""
    items = await tx.list_jobs(batch.team, _FIRST_GOOD, batch=batch.id)
    made_with = items[0].result if items else {}
    result = {
        "weights": made_with.get("weights", ""),
        "weights_trained": made_with.get("weights_trained", False),
        "metrics": {key: float(value) for key, value in counts.items()},
    }
    error: Mapping[str, Any] | None = None
    if batch.state is JobState.CANCELLING:
        state, message = JobState.CANCELLED, "stopped as asked"
    elif counts["succeeded"] > 0 or counts["total"] == 0:
        state, message = JobState.SUCCEEDED, "all items ended"
    else:
        state, message = JobState.FAILED, "every item failed"
        failure = VoxfleetError(
            Reason.BATCH_ALL_FAILED, "every item failed: see each item's own error", kind=Kind.INVALID
        )
        error = failure.to_dict()
    return await tx.end_batch(batch, state, message, result=result, error=error) or batch
