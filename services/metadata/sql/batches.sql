-- Batches, by name: what became of their items, and their ends.

-- name: cancel_items
-- Items that wait end at once; items that run are asked to stop. Locked in the order of heartbeats, so that
-- the two never wait for one another.
WITH locked AS MATERIALIZED (
  SELECT id FROM jobs WHERE parent_id = %(job_id)s AND state IN ('QUEUED', 'RUNNING')
  ORDER BY id LIMIT %(limit)s FOR UPDATE
), changed AS (
  UPDATE jobs SET state = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE 'CANCELLING' END,
    ended_at = CASE WHEN state = 'QUEUED' THEN voxfleet_now() END, updated_at = voxfleet_now(),
    event_seq = event_seq + 1
  FROM locked WHERE jobs.id = locked.id
  RETURNING jobs.id, team, state, phase, attempt, event_seq
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message, at)
  SELECT id, event_seq, team, state, phase, attempt, 'batch cancelled', voxfleet_now() FROM changed
), ticks AS (
  INSERT INTO batch_ticks (batch_id, team, cancelled)
  SELECT %(job_id)s, team, count(*) FROM changed WHERE state = 'CANCELLED' GROUP BY team
)
SELECT count(*) AS cancelled FROM changed;

-- name: retry_items
WITH locked AS MATERIALIZED (
  SELECT id, state AS was FROM jobs
  WHERE parent_id = %(job_id)s AND state IN ('FAILED', 'CANCELLED') AND task->>'kind' <> 'batch'
  ORDER BY id FOR UPDATE
), changed AS (
  UPDATE jobs SET state = 'QUEUED', ended_at = NULL, error = NULL, waiting_reason = '',
    updated_at = voxfleet_now(), not_before = voxfleet_now(), paused = false, batch_scale = 1, avoid_nodes = '{}',
    max_attempts = attempt + %(more_attempts)s, event_seq = event_seq + 1
  FROM locked WHERE jobs.id = locked.id
  RETURNING jobs.id, team, kind, priority_class, phase, attempt, event_seq, was
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message, at)
  SELECT id, event_seq, team, 'QUEUED', phase, attempt, 'retried with its batch', voxfleet_now() FROM changed
), uncounted AS (
  -- At once, not by a tick: whoever adds up must not find all of them ended in between.
  UPDATE jobs SET items_failed = items_failed - back.failed, items_cancelled = items_cancelled - back.cancelled
  FROM (SELECT count(*) FILTER (WHERE was = 'FAILED') AS failed,
               count(*) FILTER (WHERE was = 'CANCELLED') AS cancelled FROM changed) AS back
  WHERE jobs.id = %(job_id)s
)
SELECT DISTINCT kind, priority_class, team FROM changed;

-- name: pause_items
-- Those that run are told with their next heartbeat.
UPDATE jobs SET paused = %(paused)s, updated_at = voxfleet_now(),
  waiting_reason = CASE WHEN %(paused)s THEN 'PAUSED' ELSE '' END
WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE parent_id = %(job_id)s AND state IN ('QUEUED', 'RUNNING')
                     ORDER BY id FOR UPDATE));

-- name: set_items_priority
-- Also of those that run or have ended badly: they may come back to the queue.
UPDATE jobs SET priority = %(priority)s
WHERE id = ANY(ARRAY(SELECT id FROM jobs WHERE parent_id = %(job_id)s AND state <> 'SUCCEEDED'
                     ORDER BY id FOR UPDATE));

-- name: next_item
-- By the index of what is claimable: what is before it there is of the same team.
SELECT * FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0 AND kind = %(kind)s
  AND priority_class = %(priority_class)s AND team = %(team)s AND parent_id = %(job_id)s
ORDER BY queue_key LIMIT 1;

-- name: lanes_of_batch
SELECT DISTINCT kind, priority_class, team FROM jobs WHERE parent_id = %(job_id)s AND state = 'QUEUED';

-- name: take_ticks
-- One process adds up at a time: the lock is held to the end of its transaction.
WITH taken AS MATERIALIZED (
  SELECT ctid FROM batch_ticks LIMIT %(limit)s FOR UPDATE SKIP LOCKED
), gone AS (
  DELETE FROM batch_ticks WHERE ctid = ANY(ARRAY(SELECT ctid FROM taken))
  RETURNING batch_id, succeeded, failed, cancelled
), added AS (
  SELECT batch_id, sum(succeeded) AS succeeded, sum(failed) AS failed, sum(cancelled) AS cancelled
  FROM gone GROUP BY batch_id
)
UPDATE jobs SET items_succeeded = items_succeeded + added.succeeded,
  items_failed = items_failed + added.failed, items_cancelled = items_cancelled + added.cancelled
FROM added WHERE jobs.id = added.batch_id
RETURNING jobs.id;

-- name: try_lock
SELECT pg_try_advisory_xact_lock(%(lock)s) AS held;

-- name: starting_batches
-- Few jobs are leased at a time; each looks at its batch once.
SELECT DISTINCT b.id FROM jobs AS item JOIN jobs AS b ON b.id = item.parent_id
WHERE item.lease_token IS NOT NULL AND item.parent_id IS NOT NULL AND b.state = 'QUEUED';

-- name: unended_batches
-- All of their items have ended, and they have not: items that were bad from the start leave no tick.
SELECT id FROM jobs WHERE kind = 'batch' AND state IN ('QUEUED', 'RUNNING', 'CANCELLING')
  AND items_succeeded + items_failed + items_cancelled >= items_total
ORDER BY id LIMIT 1000;

-- name: lock_open_batch
SELECT * FROM jobs WHERE id = %(job_id)s AND state IN ('QUEUED', 'RUNNING', 'CANCELLING')
FOR UPDATE SKIP LOCKED;

-- name: batch_progress
UPDATE jobs SET progress = %(progress)s, updated_at = voxfleet_now() WHERE id = %(job_id)s;


-- name: running_by_batch
SELECT parent_id, count(*) AS running FROM jobs
WHERE lease_token IS NOT NULL AND parent_id = ANY(%(batches)s) GROUP BY parent_id;

-- name: end_batch
-- Under the batch's lock, and so after the commit of whoever brought an item back: what that left is here to
-- be counted first.
UPDATE jobs SET state = %(state)s, updated_at = voxfleet_now(), ended_at = voxfleet_now(),
  result = %(result)s, error = %(error)s, event_seq = event_seq + 1, waiting_reason = ''
WHERE id = %(job_id)s AND NOT EXISTS (SELECT FROM batch_ticks WHERE batch_id = %(job_id)s)
RETURNING *;
