-- Queues, workers, quotas, and what the scheduler learns, by name.

-- name: lanes
-- A loose index scan: one descent for each lane, however deep the lanes are.
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
SELECT kind, priority_class, team FROM lane WHERE kind <> 'batch';

-- name: lane_depths
SELECT kind, priority_class, team, count(*) AS queued, sum(size)::float8 AS size, sum(gpus)::float8 AS gpus,
  extract(epoch FROM voxfleet_now() - min(created_at))::float8 AS oldest_wait_s
FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0 AND kind <> 'batch'
GROUP BY kind, priority_class, team;

-- name: running_jobs
SELECT id, kind, priority_class, priority, team, gpus, size, node, yield_asked,
  extract(epoch FROM voxfleet_now() - started_at)::float8 AS elapsed_s
FROM jobs WHERE lease_token IS NOT NULL;

-- name: queue_depths
-- Two partial indexes hold what waits and what is leased; a look at states alone would scan every job there
-- ever was. Paused jobs wait for their owner, not for us.
SELECT kind, priority_class, sum(queued)::bigint AS queued, sum(running)::bigint AS running,
  coalesce(max(oldest_wait_s), 0)::float8 AS oldest_wait_s
FROM (
  SELECT kind, priority_class, count(*) AS queued, 0 AS running,
    extract(epoch FROM voxfleet_now() - min(created_at)) AS oldest_wait_s
  FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0 AND kind <> 'batch'
  GROUP BY kind, priority_class
  UNION ALL
  SELECT kind, priority_class, 0, count(*), 0 FROM jobs WHERE lease_token IS NOT NULL
  GROUP BY kind, priority_class
) AS parts
GROUP BY kind, priority_class ORDER BY kind, priority_class;

-- name: queue_place
-- How many of the lane are before it: a range of the index of what is claimable, bounded.
SELECT count(*) AS place FROM (
  SELECT FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0 AND kind = %(kind)s
    AND priority_class = %(priority_class)s AND team = %(team)s AND queue_key < %(queue_key)s LIMIT 100000
) AS before;

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

-- name: quota_uses
-- GPU-seconds of today: what is added up, what ended since, what runs. Without the middle part a team at its
-- bound would have room again for the seconds between the end of an attempt and the adding up.
WITH unadded AS MATERIALIZED (
  SELECT team, sum(gpus * extract(epoch FROM ended_at
    - greatest(started_at, date_trunc('day', voxfleet_now(), 'UTC'))))::float8 AS gpu_seconds
  FROM job_attempts
  WHERE ended_at > coalesce((SELECT at FROM watermarks WHERE name = 'usage'), '2000-01-01T00:00:00Z')
    AND ended_at >= date_trunc('day', voxfleet_now(), 'UTC')
    AND EXISTS (SELECT FROM team_quotas WHERE max_gpu_seconds_per_day > 0)
  GROUP BY team
)
SELECT q.*, coalesce(held.gpus, 0)::float8 AS gpus, coalesce(u.gpu_seconds, 0) + coalesce(unadded.gpu_seconds, 0)
  + coalesce((SELECT sum(j.gpus * extract(epoch FROM voxfleet_now()
      - greatest(j.started_at, date_trunc('day', voxfleet_now(), 'UTC'))))
    FROM jobs AS j WHERE j.team = q.team AND j.lease_token IS NOT NULL), 0)::float8 AS gpu_seconds
FROM team_quotas AS q
LEFT JOIN gpus_held_by(ARRAY(SELECT team FROM team_quotas)) AS held ON held.team = q.team
LEFT JOIN unadded ON unadded.team = q.team
LEFT JOIN gpu_usage AS u ON u.team = q.team AND u.day = (voxfleet_now() AT TIME ZONE 'UTC')::date;

-- name: get_quota
SELECT * FROM team_quotas WHERE team = %(team)s;

-- name: put_quota
INSERT INTO team_quotas (team, max_gpus, max_queued_jobs, max_gpu_seconds_per_day, weight)
VALUES (%(team)s, %(max_gpus)s, %(max_queued_jobs)s, %(max_gpu_seconds_per_day)s, %(weight)s)
ON CONFLICT (team) DO UPDATE SET max_gpus = excluded.max_gpus, max_queued_jobs = excluded.max_queued_jobs,
  max_gpu_seconds_per_day = excluded.max_gpu_seconds_per_day, weight = excluded.weight;

-- name: usage
-- GPU-seconds held within the span, to the second: whole days from what is added up; the parts of days at its
-- ends, what ended since the adding up, and what runs from the attempts themselves. No attempt is taken to have
-- lasted longer than a week.
WITH bounds AS MATERIALIZED (
  SELECT %(start)s::timestamptz AS since, %(end)s::timestamptz AS until,
    date_trunc('day', %(start)s::timestamptz - interval '1 microsecond', 'UTC') + interval '24 hours' AS first_day,
    date_trunc('day', %(end)s::timestamptz, 'UTC') AS last_day,
    coalesce((SELECT at FROM watermarks WHERE name = 'usage'), '2000-01-01T00:00:00Z') AS added
), edges AS MATERIALIZED (
  SELECT * FROM (
    SELECT since, CASE WHEN first_day <= last_day THEN first_day ELSE until END AS until, added FROM bounds
    UNION ALL SELECT last_day, until, added FROM bounds WHERE first_day <= last_day
  ) AS e WHERE since < until
), parts AS (
  SELECT u.gpu_seconds, u.jobs FROM bounds AS b JOIN gpu_usage AS u ON u.team = %(team)s
    AND u.day >= (b.first_day AT TIME ZONE 'UTC')::date AND u.day < (b.last_day AT TIME ZONE 'UTC')::date
  UNION ALL
  SELECT a.gpus * greatest(0, extract(epoch FROM least(a.ended_at, e.until) - greatest(a.started_at, e.since))),
    (a.ended_at >= e.since AND a.ended_at < e.until AND a.outcome IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))::integer
  FROM edges AS e JOIN job_attempts AS a ON a.team = %(team)s
    AND a.ended_at >= e.since AND a.ended_at < e.until + interval '7 days' AND a.ended_at <= e.added
  UNION ALL
  SELECT a.gpus * greatest(0, extract(epoch FROM least(a.ended_at, b.until) - greatest(a.started_at, b.since))),
    (a.ended_at >= b.since AND a.ended_at < b.until AND a.outcome IN ('SUCCEEDED', 'FAILED', 'CANCELLED'))::integer
  FROM bounds AS b JOIN job_attempts AS a ON a.team = %(team)s AND a.ended_at > b.added AND a.ended_at >= b.since
  UNION ALL
  SELECT j.gpus * greatest(0, extract(epoch FROM least(voxfleet_now(), b.until) - greatest(j.started_at, b.since))),
    0
  FROM bounds AS b JOIN jobs AS j ON j.team = %(team)s AND j.lease_token IS NOT NULL
)
SELECT coalesce(sum(gpu_seconds), 0)::float8 AS gpu_seconds, coalesce(sum(jobs), 0)::bigint AS jobs,
  coalesce((SELECT sum(audio_s) FROM usage_records WHERE team = %(team)s
    AND at >= %(start)s AND at < %(end)s), 0) AS audio_s,
  coalesce((SELECT sum(size_bytes) FROM artifacts WHERE team = %(team)s AND gone_at IS NULL), 0)::bigint AS stored_bytes
FROM parts;

-- name: watermark
SELECT at FROM watermarks WHERE name = %(name)s FOR UPDATE;

-- name: make_watermark
INSERT INTO watermarks (name, at)
SELECT %(name)s, coalesce((SELECT min(ended_at) FROM job_attempts) - interval '1 microsecond',
  voxfleet_now() - interval '1 second')
WHERE NOT EXISTS (SELECT FROM watermarks WHERE name = %(name)s)
ON CONFLICT (name) DO NOTHING;

-- name: add_up_usage
-- Attempts that ended between the last look and a while ago: a transaction that is still open may yet commit
-- one that is older, but none holds its end for as long. What an attempt held over midnight counts to each day
-- its part. The audio that jobs made goes into one record for each team and look.
WITH span AS MATERIALIZED (
  SELECT w.at AS since, least(voxfleet_now() - %(lag_s)s * interval '1 second', w.at + interval '1 hour') AS until
  FROM watermarks AS w WHERE w.name = 'usage' FOR UPDATE SKIP LOCKED
), recent AS MATERIALIZED (
  SELECT a.*, j.priority_class, CASE
    WHEN a.outcome = 'SUCCEEDED' AND a.kind IN ('rvc.convert', 'f5.item', 'f5.convert')
    THEN j.result->'metrics' END AS made
  FROM span CROSS JOIN LATERAL (
    SELECT * FROM job_attempts WHERE ended_at > span.since AND ended_at <= span.until
  ) AS a LEFT JOIN jobs AS j ON j.id = a.job_id
), held AS (
  SELECT r.team, (d.day AT TIME ZONE 'UTC')::date AS day,
    r.gpus * greatest(0, extract(epoch FROM least(r.ended_at, d.day + interval '24 hours')
      - greatest(r.started_at, d.day))) AS gpu_seconds,
    (r.outcome IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
      AND r.ended_at >= d.day AND r.ended_at < d.day + interval '24 hours')::integer AS jobs
  FROM recent AS r CROSS JOIN LATERAL generate_series(
    date_trunc('day', least(r.started_at, r.ended_at), 'UTC'), r.ended_at, interval '24 hours') AS d(day)
), added AS (
  INSERT INTO gpu_usage (team, day, gpu_seconds, jobs)
  SELECT team, day, sum(gpu_seconds), sum(jobs) FROM held GROUP BY 1, 2
  ON CONFLICT (team, day) DO UPDATE SET gpu_seconds = gpu_usage.gpu_seconds + excluded.gpu_seconds,
    jobs = gpu_usage.jobs + excluded.jobs
), spoken AS (
  INSERT INTO usage_records (team, voice, audio_s, work_s, characters, at)
  SELECT team, '', sum((made->>'audio_s')::float8), coalesce(sum((made->>'work_s')::float8), 0), 0, max(ended_at)
  FROM recent WHERE jsonb_typeof(made->'audio_s') = 'number' GROUP BY team
), moved AS (
  UPDATE watermarks SET at = greatest(span.since, span.until) FROM span WHERE name = 'usage'
)
SELECT kind, coalesce(priority_class, 3) AS priority_class, size, outcome, waited_s, expected,
  extract(epoch FROM ended_at - started_at)::float8 AS duration_s, attempt
FROM recent ORDER BY ended_at LIMIT %(limit)s;

-- name: drained_nodes
SELECT node FROM drained_nodes;

-- name: drain_node
INSERT INTO drained_nodes (node) VALUES (%(node)s) ON CONFLICT DO NOTHING;

-- name: undrain_node
DELETE FROM drained_nodes WHERE node = %(node)s;

-- name: grants
SELECT pool, gpus FROM gpu_grants;

-- name: put_grants
INSERT INTO gpu_grants (pool, gpus) SELECT * FROM unnest(%(pools)s::text[], %(gpus)s::float8[])
ON CONFLICT (pool) DO UPDATE SET gpus = excluded.gpus, updated_at = now()
WHERE gpu_grants.gpus <> excluded.gpus;

-- name: ask_to_yield
UPDATE jobs SET yield_asked = true, updated_at = voxfleet_now()
WHERE id = ANY(%(jobs)s) AND state = 'RUNNING' AND NOT yield_asked;

-- name: load_estimates
SELECT state FROM job_estimates WHERE name = %(name)s;

-- name: save_estimates
INSERT INTO job_estimates (name, state) VALUES (%(name)s, %(state)s)
ON CONFLICT (name) DO UPDATE SET state = excluded.state, updated_at = now();

-- name: notify
SELECT pg_notify(%(channel)s, payload) FROM unnest(%(payloads)s::text[]) AS payload;
