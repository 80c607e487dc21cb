-- Jobs as their owners see them, by name. Run by raw psycopg; parameters are %(named)s.

-- name: insert_jobs
INSERT INTO jobs (id, team, kind, state, priority_class, priority, task, spec, display_name, labels,
                  parent_id, item_index, item_id, gpus, gpu_type, size, max_attempts, traceparent, error,
                  blockers, items_total, items_failed, expected, event_seq, created_at, updated_at, not_before,
                  ended_at)
SELECT n.id, %(team)s, n.kind, n.state, n.priority_class, n.priority, n.task, n.spec, n.display_name,
       n.labels, n.parent_id, n.item_index, n.item_id, n.gpus, n.gpu_type, n.size, n.max_attempts,
       n.traceparent, n.error, n.blockers, n.items_total, n.items_failed, n.expected, 1, voxfleet_now(), voxfleet_now(),
       voxfleet_now(), CASE WHEN n.state = 'FAILED' THEN voxfleet_now() END
FROM jsonb_to_recordset(%(jobs)s) AS n(id text, kind text, state text,
       priority_class smallint, priority integer, task jsonb, spec jsonb, display_name text, labels jsonb,
       parent_id text, item_index integer, item_id text, gpus real, gpu_type text, size float8,
       max_attempts integer, traceparent text, error jsonb, blockers integer, items_total integer,
       items_failed integer, expected jsonb);

-- name: insert_first_events
INSERT INTO job_events (job_id, seq, team, state, attempt, message, at)
SELECT n.id, 1, %(team)s, n.state, 0, '', voxfleet_now()
FROM jsonb_to_recordset(%(jobs)s) AS n(id text, state text);

-- name: make_staging
-- COPY is refused on a table with row-level security, whatever its policies: many items come through a
-- table of the session's own, and the rows are checked as any others are on their way from there.
CREATE TEMPORARY TABLE IF NOT EXISTS staged_items (
  id text, item_index integer, item_id text, state text, display_name text, size float8, task text,
  spec text, error text
) ON COMMIT DELETE ROWS;

-- name: copy_staging
COPY pg_temp.staged_items (id, item_index, item_id, state, display_name, size, task, spec, error)
FROM STDIN;

-- name: insert_staged
INSERT INTO jobs (id, team, kind, state, priority_class, priority, task, spec, display_name, parent_id,
                  item_index, item_id, gpus, gpu_type, size, max_attempts, traceparent, error, blockers,
                  event_seq, created_at, updated_at, not_before, ended_at)
SELECT s.id, %(team)s, %(kind)s, s.state, %(priority_class)s, %(priority)s, s.task::jsonb, s.spec::jsonb,
       s.display_name, %(parent_id)s, s.item_index, s.item_id, %(gpus)s, %(gpu_type)s, s.size,
       %(max_attempts)s, %(traceparent)s, s.error::jsonb,
       CASE WHEN s.state = 'QUEUED' THEN %(blockers)s ELSE 0 END, 1, voxfleet_now(), voxfleet_now(),
       voxfleet_now(), CASE WHEN s.state = 'FAILED' THEN voxfleet_now() END
FROM pg_temp.staged_items AS s;

-- name: insert_staged_events
INSERT INTO job_events (job_id, seq, team, state, attempt, message, at)
SELECT id, 1, %(team)s, state, 0, '', voxfleet_now() FROM pg_temp.staged_items;

-- name: lock_dependencies
-- Those that are named: locked, so that none ends between this look and our rows.
SELECT id, state FROM jobs WHERE team = %(team)s AND id = ANY(%(jobs)s) ORDER BY id FOR UPDATE;

-- name: insert_dependencies
INSERT INTO job_dependencies (job_id, depends_on, team)
SELECT job_id, depends_on, %(team)s FROM unnest(%(jobs)s::text[], %(depends_on)s::text[]) AS d(job_id, depends_on);

-- name: mark_dependents
UPDATE jobs SET has_dependents = true WHERE id = ANY(%(jobs)s) AND NOT has_dependents;

-- name: dependencies
SELECT j.* FROM job_dependencies AS d JOIN jobs AS j ON j.id = d.depends_on
WHERE d.job_id = %(job_id)s AND j.state <> 'SUCCEEDED' ORDER BY j.id;

-- name: settled_dependencies
-- Dependencies on jobs that have ended, of the jobs named or of all. A row is marked in the transaction that
-- deals with that end: a process that dies between the end and this look leaves it to the next.
UPDATE job_dependencies AS d SET settled = true FROM jobs AS on_job
WHERE d.ctid = ANY(ARRAY(
    SELECT w.ctid FROM job_dependencies AS w JOIN jobs AS j ON j.id = w.depends_on
    WHERE (%(jobs)s::text[] IS NULL OR w.depends_on = ANY(%(jobs)s::text[]))
      AND NOT w.settled AND j.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
    ORDER BY w.job_id, w.depends_on LIMIT %(limit)s FOR UPDATE OF w SKIP LOCKED))
  AND on_job.id = d.depends_on
RETURNING d.job_id, d.depends_on, d.team, on_job.state;

-- name: unblock
UPDATE jobs SET blockers = greatest(blockers - 1, 0), task = coalesce(%(task)s, task),
  not_before = voxfleet_now(), updated_at = voxfleet_now()
WHERE id = %(job_id)s RETURNING *;

-- name: unblock_items
-- The waiting items of a batch wait for what it waits for. Locked in the order of all who lock several.
UPDATE jobs SET blockers = %(blockers)s, not_before = voxfleet_now()
WHERE id = ANY(ARRAY(SELECT id FROM jobs
  WHERE parent_id = %(job_id)s AND state = 'QUEUED' AND blockers <> %(blockers)s ORDER BY id FOR UPDATE));

-- name: depend_again
-- A job that is retried waits for those of its dependencies that have not succeeded: they are to be settled
-- anew, the others are done with.
WITH named AS MATERIALIZED (
  SELECT d.job_id, d.depends_on, j.state = 'SUCCEEDED' AS done
  FROM job_dependencies AS d JOIN jobs AS j ON j.id = d.depends_on
  WHERE d.job_id = %(job_id)s ORDER BY d.depends_on FOR UPDATE OF d
), marked AS (
  UPDATE job_dependencies AS d SET settled = named.done FROM named
  WHERE d.job_id = named.job_id AND d.depends_on = named.depends_on
)
SELECT count(*) FILTER (WHERE NOT done) AS blockers FROM named;

-- name: blockers_of
SELECT blockers FROM jobs WHERE id = %(job_id)s;

-- name: insert_event
INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message, at)
VALUES (%(job_id)s, %(seq)s, %(team)s, %(state)s, %(phase)s, %(attempt)s, %(message)s, voxfleet_now());

-- name: get_job
SELECT * FROM jobs WHERE id = %(job_id)s AND team = %(team)s;

-- name: lock_job
SELECT * FROM jobs WHERE id = %(job_id)s AND team = %(team)s FOR UPDATE;

-- name: jobs_now
SELECT * FROM jobs WHERE id = ANY(%(jobs)s);

-- name: job_marks
-- What moves when anything of a job does.
SELECT id, event_seq, updated_at FROM jobs WHERE id = ANY(%(jobs)s);

-- name: change_state
UPDATE jobs SET state = %(state)s, updated_at = voxfleet_now(), event_seq = event_seq + 1,
  started_at = CASE WHEN %(state)s = 'RUNNING' THEN coalesce(started_at, voxfleet_now()) ELSE started_at END,
  ended_at = CASE WHEN %(final)s THEN voxfleet_now() END, error = %(error)s, waiting_reason = ''
WHERE id = %(job_id)s
RETURNING *;

-- name: requeue
UPDATE jobs SET state = 'QUEUED', updated_at = voxfleet_now(), event_seq = event_seq + 1, ended_at = NULL,
  error = NULL, waiting_reason = '', not_before = voxfleet_now(), paused = false, batch_scale = 1,
  avoid_nodes = '{}', expected = NULL, blockers = %(blockers)s, max_attempts = attempt + %(more_attempts)s
WHERE id = %(job_id)s
RETURNING *;

-- name: count_item
INSERT INTO batch_ticks (batch_id, team, succeeded, failed, cancelled)
SELECT parent_id, team, (state = 'SUCCEEDED')::integer, (state = 'FAILED')::integer,
  (state = 'CANCELLED')::integer
FROM jobs WHERE id = %(job_id)s AND parent_id IS NOT NULL;

-- name: uncount_item
-- An ended item that goes back to its batch is taken off what its batch counted: at once, not by a tick, so
-- that whoever adds up never finds all of them ended in between. Its own tick may be still to be added; then
-- the count is one too low until it is.
UPDATE jobs SET items_failed = items_failed - (%(state)s = 'FAILED')::integer,
  items_cancelled = items_cancelled - (%(state)s = 'CANCELLED')::integer
WHERE id = %(parent_id)s;

-- name: events_after
SELECT e.job_id, e.seq, e.state, e.phase, e.attempt, e.message, e.at
FROM unnest(%(jobs)s::text[], %(cursors)s::bigint[]) AS c(job_id, cursor) CROSS JOIN LATERAL (
  SELECT * FROM job_events WHERE job_events.job_id = c.job_id AND seq > c.cursor ORDER BY seq LIMIT 500
) AS e ORDER BY e.job_id, e.seq;

-- name: attempts
SELECT attempt, worker, started_at, ended_at, error, outcome, failure_class, node, batch_scale
FROM job_attempts WHERE job_id = %(job_id)s
UNION ALL
SELECT attempt, worker, started_at, NULL, NULL, '', '', node, batch_scale
FROM jobs WHERE id = %(job_id)s AND lease_token IS NOT NULL
ORDER BY attempt;

-- name: lock_submits
-- Not the quota's row, which claims lock: a long submit must not hold up what is running.
SELECT pg_advisory_xact_lock(hashtextextended('voxfleet submits of ' || %(team)s, 0));

-- name: count_queued
-- Two ranges of the index of what is claimable would miss what is paused or blocked: those of the team that
-- have not ended are counted, and no further than the bound.
SELECT count(*) AS queued FROM (
  SELECT FROM jobs WHERE team = %(team)s AND state = 'QUEUED' AND kind <> 'batch' LIMIT %(limit)s
) AS waiting;
