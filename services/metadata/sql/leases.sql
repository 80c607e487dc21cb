-- The workers' side of the ledger, by name. Run by raw psycopg; parameters are %(named)s. Each is one
-- statement that may stand alone, and each write checks the fence: id, attempt, and the lease's own token.

-- name: claim
-- Leases up to count[i] jobs of lane i to worker[i], from the queue key after[i] on: a claimer that begins where
-- the last one ended passes over no row that is dead but cannot be removed yet. SKIP LOCKED lets claimers pass
-- one another. No lane stands twice, so that a job's lane tells whose it is.
--
-- A quota of GPUs is hard: its row is locked (who cannot have the lock at once claims nothing of that team),
-- and only then what the team holds is counted, by a function that sees what was committed meanwhile.
WITH lane AS MATERIALIZED (
  SELECT * FROM unnest(%(workers)s::text[], %(nodes)s::text[], %(kinds)s::text[], %(classes)s::smallint[],
                       %(teams)s::text[], %(counts)s::integer[], %(after)s::bigint[])
    AS l(worker, node, kind, class, team, count, after)
), bounded AS MATERIALIZED (
  SELECT team FROM team_quotas WHERE max_gpus > 0 AND team = ANY(%(teams)s::text[])
), gate AS MATERIALIZED (
  SELECT team, max_gpus FROM team_quotas WHERE max_gpus > 0 AND team = ANY(%(teams)s::text[])
  FOR NO KEY UPDATE SKIP LOCKED
), part AS (
  -- Each team's bound, what it holds and what is picked, one below the other: a single sort tells what fits,
  -- where a join would compare every lane with every team.
  SELECT team, NULL::tid AS place, -1::bigint AS queue_key, 0::float8 AS gpus, 0::float8 AS bound,
    NULL::text AS worker, NULL::text AS node
  FROM bounded
  UNION ALL
  SELECT team, NULL, -1, 0, max_gpus, NULL, NULL FROM gate
  UNION ALL
  SELECT team, NULL, -1, gpus, NULL, NULL, NULL FROM gpus_held_by(ARRAY(SELECT team FROM gate))
  UNION ALL
  SELECT lane.team, j.ctid, j.queue_key, j.gpus, NULL, lane.worker, lane.node
  FROM lane CROSS JOIN LATERAL (
    SELECT ctid, gpus, queue_key FROM jobs
    WHERE state = 'QUEUED' AND NOT paused AND blockers = 0
      AND kind = lane.kind AND priority_class = lane.class AND team = lane.team AND queue_key > lane.after
      AND not_before <= voxfleet_now()
      AND gpus <= %(max_gpus)s AND (gpu_type = '' OR gpu_type = ANY(%(gpu_types)s::text[]))
      -- Elsewhere than where it failed, for a while; then anywhere rather than nowhere.
      AND (avoid_nodes = '{}' OR NOT lane.node = ANY(avoid_nodes)
           OR not_before <= voxfleet_now() - interval '30 seconds')
    ORDER BY queue_key LIMIT lane.count FOR UPDATE SKIP LOCKED
  ) AS j
), fitting AS MATERIALIZED (
  SELECT place, worker, node FROM (
    SELECT place, worker, node, sum(gpus) OVER held AS gpus, max(bound) OVER held AS bound
    FROM part WINDOW held AS (PARTITION BY team ORDER BY queue_key)
  ) AS summed
  -- Thirds of a GPU are rounded, and many are added up.
  WHERE place IS NOT NULL AND (bound IS NULL OR gpus <= bound + 0.001)
), claimed AS (
  UPDATE jobs SET state = 'RUNNING', waiting_reason = '', attempt = attempt + 1,
    -- Salted with one random number a claim: asking the kernel for one a job costs more than its index.
    lease_token = left(encode(sha256(convert_to(id || (SELECT gen_random_uuid()), 'UTF8')), 'hex'), 32)::uuid,
    lease_expires_at = voxfleet_now() + %(lease_s)s * interval '1 second',
    worker = fitting.worker, node = fitting.node, started_at = voxfleet_now(), updated_at = voxfleet_now(),
    phase = '', yield_asked = false, event_seq = event_seq + 1
  -- By place: the rows are locked, so that they stay where they are; one that moved between our snapshot and
  -- the lock is passed over until the next look.
  FROM fitting WHERE jobs.ctid = fitting.place
  RETURNING team, id, kind, priority_class, task, parent_id, item_id, attempt, lease_token, queue_key, gpus,
            size, batch_scale, avoid_nodes, traceparent, event_seq, state, jobs.worker
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, attempt, message, at)
  SELECT id, event_seq, team, state, attempt, 'started by ' || worker, voxfleet_now() FROM claimed
)
SELECT team, id, kind, priority_class, task::text, coalesce(parent_id, '') AS parent_id, item_id, attempt,
  lease_token::text, queue_key, gpus, size, batch_scale, avoid_nodes, traceparent
FROM claimed ORDER BY priority_class, queue_key;

-- name: heartbeat
-- Extends the leases that still hold; what is not returned was lost. A change of phase is an event. Rows are
-- locked in one order by all who lock several, so that none waits for another in a circle.
WITH beats AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(%(beats)s)
    AS b(job_id text, attempt integer, lease_token uuid, progress jsonb)
), held AS MATERIALIZED (
  SELECT j.id, b.progress, coalesce(b.progress->>'phase', j.phase) AS new_phase,
         b.progress IS NOT NULL AND coalesce(b.progress->>'phase', '') <> j.phase AS changed
  FROM jobs AS j JOIN beats AS b ON j.id = b.job_id
  WHERE j.attempt = b.attempt AND j.lease_token = b.lease_token
  ORDER BY j.id FOR UPDATE OF j
), kept AS (
  UPDATE jobs SET lease_expires_at = voxfleet_now() + %(lease_s)s * interval '1 second',
    updated_at = voxfleet_now(), progress = coalesce(held.progress, jobs.progress), phase = held.new_phase,
    event_seq = jobs.event_seq + CASE WHEN held.changed THEN 1 ELSE 0 END
  FROM held WHERE jobs.id = held.id
  RETURNING jobs.id, jobs.team, jobs.state, jobs.phase, jobs.attempt, jobs.paused, jobs.yield_asked,
            jobs.event_seq, jobs.lease_token, held.changed
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message, at)
  SELECT id, event_seq, team, state, phase, attempt, 'phase ' || phase, voxfleet_now() FROM kept WHERE changed
)
SELECT id, state, attempt, paused OR yield_asked AS give_back, lease_token::text AS lease_token FROM kept;

-- name: lock_leases
-- The rows under fences that still hold. The locks hold off expiry until we end.
SELECT j.*, j.lease_token::text AS token
FROM jobs AS j JOIN unnest(%(jobs)s::text[], %(attempts)s::integer[], %(tokens)s::uuid[])
  AS f(job_id, attempt, lease_token) ON j.id = f.job_id
WHERE j.attempt = f.attempt AND j.lease_token = f.lease_token
ORDER BY j.id FOR UPDATE OF j;

-- name: finish
-- Ends attempts: the job's new state, the attempt's record, the event, and for an item the tick that its
-- batch is counted by. An end whose fence is stale changes nothing.
WITH ends AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(%(ends)s) AS e(job_id text, attempt integer, lease_token uuid, state text,
    outcome text, message text, error jsonb, result jsonb, failure_class text, waiting_reason text,
    delay_s float8, more_attempts integer, batch_scale real, avoid_node text, final boolean)
), held AS MATERIALIZED (
  SELECT e.*, j.started_at, j.worker, j.node AS at_node, j.batch_scale AS had_scale,
    j.created_at AS asked_at, j.expected AS foretold
  FROM jobs AS j JOIN ends AS e ON j.id = e.job_id
  WHERE j.attempt = e.attempt AND j.lease_token = e.lease_token
  ORDER BY j.id FOR UPDATE OF j
), changed AS (
  UPDATE jobs SET state = held.state, lease_token = NULL, lease_expires_at = NULL, yield_asked = false,
    updated_at = voxfleet_now(), ended_at = CASE WHEN held.final THEN voxfleet_now() END,
    waiting_reason = held.waiting_reason,
    not_before = voxfleet_now() + held.delay_s * interval '1 second',
    result = coalesce(held.result, jobs.result),
    error = CASE WHEN held.final OR held.waiting_reason = 'BACK_OFF' THEN held.error END,
    max_attempts = jobs.max_attempts + held.more_attempts,
    batch_scale = coalesce(held.batch_scale, jobs.batch_scale),
    avoid_nodes = CASE WHEN held.avoid_node = '' THEN jobs.avoid_nodes
      ELSE (held.avoid_node || array_remove(jobs.avoid_nodes, held.avoid_node))[1:3] END,
    event_seq = jobs.event_seq + 1
  FROM held WHERE jobs.id = held.job_id
  RETURNING jobs.*, held.message, held.outcome, held.failure_class, held.error AS why, held.at_node,
    held.started_at AS began_at, held.had_scale, held.asked_at, held.foretold, held.final
), attempts AS (
  INSERT INTO job_attempts (job_id, attempt, team, worker, started_at, ended_at, error, kind, node, outcome,
    failure_class, gpus, size, batch_scale, waited_s, expected)
  SELECT id, attempt, team, worker, began_at, voxfleet_now(), why, kind, at_node, outcome, failure_class,
    gpus, size, had_scale, extract(epoch FROM began_at - asked_at),
    CASE WHEN attempt = 1 THEN foretold END
  FROM changed
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message, at)
  SELECT id, event_seq, team, state, phase, attempt, message, voxfleet_now() FROM changed
), ticks AS (
  INSERT INTO batch_ticks (batch_id, team, succeeded, failed, cancelled)
  SELECT parent_id, team, (state = 'SUCCEEDED')::integer, (state = 'FAILED')::integer,
    (state = 'CANCELLED')::integer
  FROM changed WHERE parent_id IS NOT NULL AND final
)
SELECT * FROM changed ORDER BY id;

-- name: succeed
-- Ends attempts well that made no rows, as `finish` would: nearly all ends are such, so this one reads and
-- returns only what it needs. The fence stands in the update itself, which waits for whoever has the row and
-- then looks again; rows are taken in the order of their ids.
WITH ends AS MATERIALIZED (
  SELECT * FROM unnest(%(jobs)s::text[], %(attempts)s::integer[], %(tokens)s::uuid[], %(results)s::jsonb[])
    WITH ORDINALITY AS e(job_id, attempt, lease_token, result, place) ORDER BY job_id
), done AS (
  UPDATE jobs AS j SET state = 'SUCCEEDED', lease_token = NULL, lease_expires_at = NULL, yield_asked = false,
    updated_at = voxfleet_now(), ended_at = voxfleet_now(), waiting_reason = '', error = NULL,
    result = coalesce(e.result, j.result), event_seq = j.event_seq + 1
  FROM ends AS e WHERE j.id = e.job_id AND j.attempt = e.attempt AND j.lease_token = e.lease_token
  RETURNING e.place, j.id, j.team, j.kind, j.state, j.parent_id, j.has_dependents, j.attempt, j.worker, j.node,
    j.started_at, j.gpus, j.size, j.batch_scale, j.created_at, j.expected, j.event_seq, j.phase
), attempts AS (
  INSERT INTO job_attempts (job_id, attempt, team, worker, started_at, ended_at, kind, node, outcome, gpus,
    size, batch_scale, waited_s, expected)
  SELECT id, attempt, team, worker, started_at, voxfleet_now(), kind, node, 'SUCCEEDED', gpus,
    size, batch_scale, extract(epoch FROM started_at - created_at),
    CASE WHEN attempt = 1 THEN expected END
  FROM done
), events AS (
  INSERT INTO job_events (job_id, seq, team, state, phase, attempt, message, at)
  SELECT id, event_seq, team, state, phase, attempt, 'done', voxfleet_now() FROM done
), ticks AS (
  INSERT INTO batch_ticks (batch_id, team, succeeded)
  SELECT parent_id, team, 1 FROM done WHERE parent_id IS NOT NULL
)
SELECT place, team, id, kind, coalesce(parent_id, '') AS parent_id, has_dependents FROM done;

-- name: expired
SELECT *, lease_token::text AS token FROM jobs
WHERE lease_token IS NOT NULL AND lease_expires_at < voxfleet_now()
ORDER BY id LIMIT %(limit)s FOR UPDATE SKIP LOCKED;

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
