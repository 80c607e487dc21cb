-- What GPUs are divided by.

-- name: put_worker_gpus
-- Nothing where the worker is gone already: its channel closed as this was on its way.
INSERT INTO worker_gpus (worker, facts, at)
SELECT worker, %(facts)s, voxfleet_now() FROM workers WHERE worker = %(worker)s
ON CONFLICT (worker) DO UPDATE SET facts = excluded.facts, at = excluded.at;

-- name: worker_gpus
SELECT g.facts, greatest(extract(epoch FROM voxfleet_now() - g.at), 0)::float8 AS age_s
FROM worker_gpus AS g JOIN workers AS w USING (worker)
WHERE w.last_seen > now() - interval '1 minute' ORDER BY g.at DESC;

-- name: lock_division
SELECT memory, extract(epoch FROM voxfleet_now())::float8 AS now_s FROM gpu_division FOR UPDATE SKIP LOCKED;

-- name: keep_division
UPDATE gpu_division SET memory = %(memory)s WHERE memory <> %(memory)s;

-- name: job_loads
-- By kind and class, what could be begun now, counted up to a bound that is shared out among the lanes: no pool
-- is so large that more would change the decision, and nothing here grows with the depth of a queue.
WITH RECURSIVE lane AS (
  (SELECT kind, priority_class, team FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0
   ORDER BY kind, priority_class, team LIMIT 1)
  UNION ALL
  SELECT next.* FROM lane CROSS JOIN LATERAL (
    SELECT kind, priority_class, team FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0
      AND (kind, priority_class, team) > (lane.kind, lane.priority_class, lane.team)
    ORDER BY kind, priority_class, team LIMIT 1
  ) AS next
)
SELECT lane.kind, lane.priority_class, sum(part.queued)::bigint AS queued,
  coalesce(max(part.waited_s), 0)::float8 AS waited_s
FROM lane CROSS JOIN LATERAL (
  SELECT count(*) AS queued, extract(epoch FROM voxfleet_now() - min(created_at)) AS waited_s
  FROM (
    SELECT created_at FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0
      AND kind = lane.kind AND priority_class = lane.priority_class AND team = lane.team
      AND not_before <= voxfleet_now()
    ORDER BY queue_key LIMIT (SELECT greatest(8, %(most)s / count(*)) FROM lane)
  ) AS first
) AS part
WHERE lane.kind = ANY(%(kinds)s) AND NOT lane.team = ANY(%(full)s) AND part.queued > 0
GROUP BY lane.kind, lane.priority_class;

-- name: waiting_trainings
-- Those that could be claimed, in their order, and those that were but hold nothing as far as anyone said.
SELECT id, gpus, extract(epoch FROM voxfleet_now() - created_at)::float8 AS waited_s FROM (
  (SELECT id, gpus, created_at FROM jobs
   WHERE state = 'QUEUED' AND NOT paused AND blockers = 0 AND kind = 'rvc.train'
     AND not_before <= voxfleet_now() AND NOT team = ANY(%(full)s)
   ORDER BY priority_class, team, queue_key LIMIT %(most)s)
  UNION ALL
  (SELECT id, gpus, created_at FROM jobs
   WHERE lease_token IS NOT NULL AND state = 'RUNNING' AND kind = 'rvc.train' AND NOT id = ANY(%(known)s))
) AS waiting;
