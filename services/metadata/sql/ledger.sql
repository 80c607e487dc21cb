-- The ledger's statements, by name. Run by raw psycopg; parameters are %(named)s.

-- name: insert_jobs
-- A row per element of each array; children of a batch come in one statement of up to 1,000.
INSERT INTO jobs (id, team, kind, state, priority_class, task, spec, display_name, labels, parent_id,
                  item_index, item_id, gpus, max_attempts, traceparent, error, event_seq, ended_at)
SELECT n.id, %(team)s, n.kind, n.state, n.priority_class, n.task, n.spec, n.display_name, n.labels,
       n.parent_id, n.item_index, n.item_id, n.gpus, n.max_attempts, n.traceparent, n.error, 1,
       CASE WHEN n.state = 'FAILED' THEN now() END
FROM jsonb_to_recordset(%(jobs)s) AS n(id text, kind text, state text, priority_class smallint, task jsonb,
       spec jsonb, display_name text, labels jsonb, parent_id text, item_index integer, item_id text,
       gpus real, max_attempts integer, traceparent text, error jsonb);

-- name: insert_first_events
INSERT INTO job_events (job_id, seq, team, state, attempt, message)
SELECT n.id, 1, %(team)s, n.state, 0, ''
FROM jsonb_to_recordset(%(jobs)s) AS n(id text, state text);

-- name: claim
-- One statement: picks up to free[i] jobs of kinds[i], highest class first, and leases them. SKIP LOCKED
-- lets many claimers pass one another; the partial index holds the queued rows in this very order.
WITH picked AS (
  SELECT j.id FROM unnest(%(kinds)s::text[], %(free)s::integer[]) AS w(kind, free)
  CROSS JOIN LATERAL (
    SELECT id FROM jobs
    WHERE state = 'QUEUED' AND NOT paused AND jobs.kind = w.kind AND not_before <= now()
    ORDER BY priority_class, priority DESC, created_at, item_index
    LIMIT w.free FOR UPDATE SKIP LOCKED
  ) AS j
), claimed AS (
  UPDATE jobs SET state = 'RUNNING', waiting_reason = '', attempt = attempt + 1,
    lease_token = gen_random_uuid(), lease_expires_at = now() + %(lease_s)s * interval '1 second',
    worker = %(worker)s, started_at = now(), updated_at = now(), phase = '', event_seq = event_seq + 1
  -- An array, not a join: the planner thinks that LIMIT w.free takes a tenth of the queue, and would scan
  -- every job there ever was to join with it.
  WHERE id = ANY(ARRAY(SELECT id FROM picked))
  RETURNING jobs.*
), attempts AS (
  INSERT INTO job_attempts (job_id, attempt, team, worker)
  SELECT id, attempt, team, worker FROM claimed
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, attempt, message)
  SELECT id, event_seq, team, state, attempt, 'started by ' || worker FROM claimed
)
SELECT * FROM claimed ORDER BY priority_class, priority DESC, created_at, item_index;

-- name: heartbeat
-- Extends the leases that still hold; what is not returned was lost. A change of phase is an event.
WITH beats AS (
  SELECT * FROM jsonb_to_recordset(%(beats)s)
    AS b(job_id text, attempt integer, lease_token uuid, progress jsonb)
), held AS (
  SELECT j.id, b.progress, coalesce(b.progress->>'phase', j.phase) AS new_phase,
         b.progress IS NOT NULL AND coalesce(b.progress->>'phase', '') <> j.phase AS changed
  FROM jobs AS j JOIN beats AS b ON j.id = b.job_id
  WHERE j.attempt = b.attempt AND j.lease_token = b.lease_token
  ORDER BY j.id FOR UPDATE OF j
), kept AS (
  UPDATE jobs SET lease_expires_at = now() + %(lease_s)s * interval '1 second', updated_at = now(),
    progress = coalesce(held.progress, jobs.progress), phase = held.new_phase,
    event_seq = jobs.event_seq + CASE WHEN held.changed THEN 1 ELSE 0 END
  FROM held WHERE jobs.id = held.id
  RETURNING jobs.id, jobs.team, jobs.state, jobs.phase, jobs.attempt, jobs.paused, jobs.event_seq,
            jobs.parent_id, jobs.lease_token, held.changed
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message)
  SELECT id, event_seq, team, state, phase, attempt, 'phase ' || phase FROM kept WHERE changed
)
SELECT id, state, attempt, paused, changed, lease_token::text AS lease_token, parent_id FROM kept;

-- name: lock_lease
-- The row under a fence, or nothing where the fence is stale. FOR UPDATE holds off expiry until we end.
SELECT * FROM jobs
WHERE id = %(job_id)s AND attempt = %(attempt)s AND lease_token = %(lease_token)s::uuid
FOR UPDATE;

-- name: end_attempt
UPDATE jobs SET state = %(state)s, lease_token = NULL, lease_expires_at = NULL, updated_at = now(),
  ended_at = CASE WHEN %(state)s = 'QUEUED' THEN NULL ELSE now() END,
  waiting_reason = %(waiting_reason)s, not_before = now() + %(delay_s)s * interval '1 second',
  result = coalesce(%(result)s, result), error = %(error)s, event_seq = event_seq + 1,
  max_attempts = max_attempts + %(more_attempts)s
WHERE id = %(job_id)s
RETURNING *;

-- name: close_attempt
UPDATE job_attempts SET ended_at = now(), error = %(error)s
WHERE job_id = %(job_id)s AND attempt = %(attempt)s AND ended_at IS NULL;

-- name: insert_event
INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message)
VALUES (%(job_id)s, %(seq)s, %(team)s, %(state)s, %(phase)s, %(attempt)s, %(message)s);

-- name: expired
SELECT * FROM jobs WHERE lease_token IS NOT NULL AND lease_expires_at < now()
ORDER BY lease_expires_at LIMIT 500 FOR UPDATE SKIP LOCKED;

-- name: lock_job
SELECT * FROM jobs WHERE id = %(job_id)s AND team = %(team)s FOR UPDATE;

-- name: change_state
UPDATE jobs SET state = %(state)s, updated_at = now(), event_seq = event_seq + 1,
  started_at = CASE WHEN %(state)s = 'RUNNING' THEN coalesce(started_at, now()) ELSE started_at END,
  ended_at = CASE WHEN %(final)s THEN now() END, error = %(error)s, waiting_reason = ''
WHERE id = %(job_id)s
RETURNING *;

-- name: requeue
UPDATE jobs SET state = 'QUEUED', updated_at = now(), event_seq = event_seq + 1, ended_at = NULL,
  error = NULL, waiting_reason = '', not_before = now(), paused = false,
  max_attempts = attempt + %(more_attempts)s
WHERE id = %(job_id)s
RETURNING *;

-- name: cancel_items
-- Items that wait end at once; items that run are asked to stop. Locked in the order of heartbeats, so that
-- the two never wait for one another.
WITH locked AS (
  SELECT id FROM jobs WHERE parent_id = %(job_id)s AND state IN ('QUEUED', 'RUNNING')
  ORDER BY id FOR UPDATE
), changed AS (
  UPDATE jobs SET state = CASE WHEN state = 'QUEUED' THEN 'CANCELLED' ELSE 'CANCELLING' END,
    ended_at = CASE WHEN state = 'QUEUED' THEN now() END, updated_at = now(), event_seq = event_seq + 1
  FROM locked WHERE jobs.id = locked.id
  RETURNING jobs.id, team, state, phase, attempt, event_seq
)
INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message)
SELECT id, event_seq, team, state, phase, attempt, 'batch cancelled' FROM changed;

-- name: get_job
SELECT * FROM jobs WHERE id = %(job_id)s AND team = %(team)s;

-- name: batch_counts
SELECT parent_id, count(*) AS total, count(*) FILTER (WHERE state = 'QUEUED') AS queued,
  count(*) FILTER (WHERE state IN ('RUNNING', 'CANCELLING')) AS running,
  count(*) FILTER (WHERE state = 'SUCCEEDED') AS succeeded,
  count(*) FILTER (WHERE state = 'FAILED') AS failed,
  count(*) FILTER (WHERE state = 'CANCELLED') AS cancelled
FROM jobs WHERE parent_id = ANY(%(batches)s) GROUP BY parent_id;

-- name: open_batches
SELECT * FROM jobs WHERE kind = 'batch' AND state IN ('QUEUED', 'RUNNING', 'CANCELLING')
ORDER BY id LIMIT 1000;

-- name: lock_open_batch
SELECT * FROM jobs WHERE id = %(job_id)s AND state IN ('QUEUED', 'RUNNING', 'CANCELLING')
FOR UPDATE SKIP LOCKED;

-- name: batch_progress
UPDATE jobs SET progress = %(progress)s, updated_at = now() WHERE id = %(job_id)s;

-- name: events_after
SELECT seq, state, phase, attempt, message, at FROM job_events
WHERE job_id = %(job_id)s AND seq > %(cursor)s ORDER BY seq LIMIT 500;

-- name: attempts
SELECT attempt, worker, started_at, ended_at, error FROM job_attempts
WHERE job_id = %(job_id)s ORDER BY attempt;

-- name: queue_position
-- How many are before it in its own kind's order, each part a range of the index of what can be claimed;
-- bounded, so that a deep queue costs no scan.
SELECT count(*) AS position FROM (
  SELECT 1 FROM jobs WHERE state = 'QUEUED' AND NOT paused AND kind = %(kind)s
    AND priority_class < %(priority_class)s
  UNION ALL
  SELECT 1 FROM jobs WHERE state = 'QUEUED' AND NOT paused AND kind = %(kind)s
    AND priority_class = %(priority_class)s AND priority > %(priority)s
  UNION ALL
  SELECT 1 FROM jobs WHERE state = 'QUEUED' AND NOT paused AND kind = %(kind)s
    AND priority_class = %(priority_class)s AND priority = %(priority)s
    AND (created_at, item_index) < (%(created_at)s, %(item_index)s)
  LIMIT 10000
) AS before;

-- name: insert_checkpoint
INSERT INTO job_checkpoints (job_id, step, attempt, team, epoch, key, sha256, size_bytes)
VALUES (%(job_id)s, %(step)s, %(attempt)s, %(team)s, %(epoch)s, %(key)s, %(sha256)s, %(size_bytes)s)
ON CONFLICT (job_id, step, attempt) DO NOTHING;

-- name: drop_old_checkpoints
-- The newest attempt's come first: where it had to start anew, its low steps are the good ones.
DELETE FROM job_checkpoints WHERE job_id = %(job_id)s AND (step, attempt) NOT IN (
  SELECT step, attempt FROM job_checkpoints WHERE job_id = %(job_id)s
  ORDER BY attempt DESC, step DESC LIMIT %(keep)s)
RETURNING key;

-- name: checkpoints
SELECT job_id, step, attempt, epoch, key, sha256, size_bytes, created_at FROM job_checkpoints
WHERE job_id = ANY(%(jobs)s) ORDER BY job_id, attempt DESC, step DESC;

-- name: upsert_worker
INSERT INTO workers (worker, queue, node, version, free, nodes, default_bundle, last_seen)
VALUES (%(worker)s, %(queue)s, %(node)s, %(version)s, %(free)s, %(nodes)s, %(default_bundle)s, now())
ON CONFLICT (worker) DO UPDATE SET free = excluded.free, nodes = excluded.nodes,
  default_bundle = excluded.default_bundle, last_seen = now();

-- name: delete_worker
DELETE FROM workers WHERE worker = %(worker)s;

-- name: live_workers
SELECT w.*, (SELECT count(*) FROM jobs WHERE jobs.lease_token IS NOT NULL AND jobs.worker = w.worker) AS running
FROM workers AS w WHERE last_seen > now() - interval '1 minute' ORDER BY queue, worker;

-- name: queue_depths
-- Two partial indexes hold what waits and what is leased; a look at states alone would scan every job there
-- ever was. Paused jobs wait for their owner, not for us.
SELECT kind, priority_class, sum(queued)::bigint AS queued, sum(running)::bigint AS running,
  coalesce(max(oldest_wait_s), 0)::float8 AS oldest_wait_s
FROM (
  SELECT kind, priority_class, count(*) AS queued, 0 AS running,
    extract(epoch FROM now() - min(created_at)) AS oldest_wait_s
  FROM jobs WHERE state = 'QUEUED' AND NOT paused AND kind <> 'batch' GROUP BY kind, priority_class
  UNION ALL
  SELECT kind, priority_class, 0, count(*), 0 FROM jobs WHERE lease_token IS NOT NULL
  GROUP BY kind, priority_class
) AS parts
GROUP BY kind, priority_class ORDER BY kind, priority_class;

-- name: notify
SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) AS payload;
