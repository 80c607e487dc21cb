-- What goes after a time, by name. Run by raw psycopg; parameters are %(named)s.
--
-- Each decision that cannot be taken back is two statements of one transaction: the first locks the rows that
-- whoever begins to use the thing locks as well, the second, with a snapshot of its own, looks whether anybody
-- does. In one statement the look would be as old as the wait for the lock is long.

-- name: clock
SELECT voxfleet_now() AS now;

-- name: take_turn
-- One process among all in a period.
INSERT INTO watermarks (name, at) VALUES (%(name)s, voxfleet_now())
ON CONFLICT (name) DO UPDATE SET at = excluded.at
WHERE watermarks.at <= excluded.at - %(every_s)s * interval '1 second'
RETURNING at;

-- name: expired_audios
SELECT a.team, a.id, a.sha256, a.purpose, a.expires_at, r.size_bytes
FROM audios AS a JOIN artifacts AS r USING (team, sha256)
WHERE a.expires_at <= voxfleet_now() AND a.condemned_at IS NULL
  AND (a.expires_at, a.team, a.id) > (%(after)s::timestamptz, %(after_team)s, %(after_id)s)
ORDER BY a.expires_at, a.team, a.id LIMIT %(limit)s;

-- name: voiced_audios
-- Those of these audios that a voice speaks from, or is being trained on.
WITH page AS MATERIALIZED (
  SELECT * FROM unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, id)
), named AS MATERIALIZED (
  SELECT v.team, clip->>'audio' AS name FROM voices AS v CROSS JOIN LATERAL jsonb_array_elements(v.clips) AS clip
  WHERE v.team = ANY(%(teams)s::text[]) AND v.state <> 'DELETED'
  UNION ALL
  SELECT v.team, n.name FROM voices AS v CROSS JOIN LATERAL unnest(v.training_audios) AS n(name)
  WHERE v.team = ANY(%(teams)s::text[]) AND v.state = 'TRAINING'
)
SELECT p.team, p.id FROM page AS p
WHERE EXISTS (SELECT FROM named AS n WHERE n.team = p.team AND n.name = 'teams/' || p.team || '/audios/' || p.id);

-- name: awaited_content
-- Those of these contents that the task of a job names which has not ended, at whatever place in it.
WITH tasks AS (
  SELECT team, task FROM jobs WHERE state = 'QUEUED' AND NOT paused AND blockers = 0
    AND team = ANY(%(teams)s::text[])
  UNION ALL
  SELECT team, task FROM jobs WHERE lease_token IS NOT NULL AND team = ANY(%(teams)s::text[])
  UNION ALL
  SELECT team, task FROM jobs WHERE state = 'QUEUED' AND (paused OR blockers > 0) AND team = ANY(%(teams)s::text[])
), named AS MATERIALIZED (
  -- Each task is read once, however many contents are asked for; lines of one batch name the same few.
  SELECT DISTINCT t.team, found.sha256
  FROM tasks AS t CROSS JOIN LATERAL (SELECT jsonb_path_query(t.task, '$.**.sha256') #>> '{}' AS sha256) AS found
)
SELECT team, sha256 FROM named
WHERE (team, sha256) IN (SELECT * FROM unnest(%(teams)s::text[], %(shas)s::text[]));

-- name: condemn_audios
UPDATE audios AS a SET condemned_at = voxfleet_now()
FROM unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, id)
WHERE a.team = p.team AND a.id = p.id AND a.condemned_at IS NULL AND a.expires_at <= voxfleet_now();

-- name: lock_condemned_audios
SELECT team, id, sha256 FROM audios
WHERE condemned_at <= voxfleet_now() - %(second_look_s)s * interval '1 second'
ORDER BY condemned_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED;

-- name: restore_audios
UPDATE audios AS a SET condemned_at = NULL
FROM unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, id) WHERE a.team = p.team AND a.id = p.id;

-- name: delete_audios
DELETE FROM audios AS a USING unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, id)
WHERE a.team = p.team AND a.id = p.id;

-- name: due_artifacts
-- Condemned for long enough; those whose bytes another process said that it would delete only when it must
-- have died over that.
SELECT team, sha256, key, size_bytes, condemned_at FROM artifacts
WHERE condemned_at <= voxfleet_now() - %(second_look_s)s * interval '1 second' AND gone_at IS NULL
  AND (swept_at IS NULL OR swept_at <= voxfleet_now() - %(takeover_s)s * interval '1 second')
  AND (condemned_at, team, sha256) > (%(after)s::timestamptz, %(after_team)s, %(after_id)s)
ORDER BY condemned_at, team, sha256 LIMIT %(limit)s;

-- name: lock_artifacts
SELECT r.team, r.sha256, r.key, r.swept_at IS NOT NULL AS swept
FROM artifacts AS r JOIN unnest(%(teams)s::text[], %(shas)s::text[]) AS p(team, sha256)
  ON r.team = p.team AND r.sha256 = p.sha256
WHERE r.condemned_at <= voxfleet_now() - %(second_look_s)s * interval '1 second' AND r.gone_at IS NULL
  AND (r.swept_at IS NULL OR r.swept_at <= voxfleet_now() - %(takeover_s)s * interval '1 second')
ORDER BY r.team, r.sha256 FOR UPDATE OF r SKIP LOCKED;

-- name: referenced_artifacts
SELECT p.team, p.sha256 FROM unnest(%(teams)s::text[], %(shas)s::text[]) AS p(team, sha256)
WHERE EXISTS (SELECT FROM audios AS a WHERE a.team = p.team AND a.sha256 = p.sha256)
  OR EXISTS (SELECT FROM voices AS v WHERE v.team = p.team AND v.package_sha256 = p.sha256);

-- name: restore_artifacts
UPDATE artifacts AS r SET condemned_at = NULL
FROM unnest(%(teams)s::text[], %(shas)s::text[]) AS p(team, sha256)
WHERE r.team = p.team AND r.sha256 = p.sha256 AND r.swept_at IS NULL;

-- name: sweep_artifacts
UPDATE artifacts AS r SET swept_at = voxfleet_now()
FROM unnest(%(teams)s::text[], %(shas)s::text[]) AS p(team, sha256)
WHERE r.team = p.team AND r.sha256 = p.sha256
RETURNING r.swept_at;

-- name: note_gone
UPDATE artifacts AS r SET gone_at = voxfleet_now()
FROM unnest(%(teams)s::text[], %(shas)s::text[]) AS p(team, sha256)
WHERE r.team = p.team AND r.sha256 = p.sha256 AND r.swept_at = %(swept_at)s;

-- name: forget_gone
DELETE FROM artifacts WHERE (team, sha256) IN (
  SELECT team, sha256 FROM artifacts WHERE gone_at <= voxfleet_now() - %(grace_s)s * interval '1 second'
  ORDER BY gone_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED)
RETURNING sha256;

-- name: strays
-- Those of these objects that no row names. What stands under a name that is no team of ours is not ours.
SELECT k.key FROM unnest(%(teams)s::text[], %(areas)s::text[], %(owners)s::text[], %(keys)s::text[])
  AS k(team, area, owner, key) JOIN teams AS t ON t.id = k.team
WHERE CASE k.area
  WHEN 'sha256' THEN NOT EXISTS (SELECT FROM artifacts AS r WHERE r.team = k.team AND r.sha256 = k.owner)
  WHEN 'staging' THEN NOT EXISTS (SELECT FROM uploads AS u WHERE u.team = k.team AND u.id = k.owner)
  WHEN 'work' THEN NOT EXISTS (SELECT FROM jobs AS j WHERE j.id = k.owner) END;

-- name: adopt_strays
-- Content that no row names gets one, swept from the start: who commits the same content now waits for it.
INSERT INTO artifacts (team, sha256, size_bytes, media_type, key, condemned_at, swept_at)
SELECT k.team, k.owner, k.size_bytes, '', k.key, voxfleet_now(), voxfleet_now()
FROM unnest(%(teams)s::text[], %(owners)s::text[], %(keys)s::text[], %(sizes)s::bigint[])
  AS k(team, owner, key, size_bytes)
ON CONFLICT DO NOTHING
RETURNING team, sha256, key, swept_at;

-- name: condemn_unnamed
-- Rows that lost their last reference in a way that no trigger saw.
UPDATE artifacts AS r SET condemned_at = voxfleet_now()
FROM unnest(%(teams)s::text[], %(owners)s::text[]) AS k(team, owner)
WHERE r.team = k.team AND r.sha256 = k.owner AND r.condemned_at IS NULL
  AND NOT EXISTS (SELECT FROM audios AS a WHERE a.team = r.team AND a.sha256 = r.sha256)
  AND NOT EXISTS (SELECT FROM voices AS v WHERE v.team = r.team AND v.package_sha256 = r.sha256);

-- name: due_uploads
SELECT team, id, CASE WHEN audio_id = '' THEN durable_offset ELSE 0 END AS size_bytes, expires_at FROM uploads
WHERE expires_at <= voxfleet_now()
  AND (condemned_at IS NULL OR condemned_at <= voxfleet_now() - %(takeover_s)s * interval '1 second')
  AND (expires_at, team, id) > (%(after)s::timestamptz, %(after_team)s, %(after_id)s)
ORDER BY expires_at, team, id LIMIT %(limit)s;

-- name: condemn_uploads
-- One that is being committed is locked, and passed over.
WITH locked AS MATERIALIZED (
  SELECT u.team, u.id FROM uploads AS u JOIN unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, id)
    ON u.team = p.team AND u.id = p.id
  WHERE u.expires_at <= voxfleet_now()
    AND (u.condemned_at IS NULL OR u.condemned_at <= voxfleet_now() - %(takeover_s)s * interval '1 second')
  FOR UPDATE OF u SKIP LOCKED
)
UPDATE uploads AS u SET condemned_at = voxfleet_now() FROM locked AS l WHERE u.team = l.team AND u.id = l.id
RETURNING u.team, u.id, u.condemned_at;

-- name: delete_uploads
DELETE FROM uploads AS u USING unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, id)
WHERE u.team = p.team AND u.id = p.id AND u.condemned_at = %(condemned_at)s;

-- name: old_requests
-- A page of all, in the order of their key: no index serves this, and it is done a few times a day.
SELECT p.team, p.request_id, p.created_at <= voxfleet_now() - %(retain_s)s * interval '1 second'
  AND NOT EXISTS (SELECT FROM jobs AS j WHERE j.id = p.resource) AS due
FROM (SELECT * FROM requests WHERE (team, request_id) > (%(after_team)s, %(after_id)s)
      ORDER BY team, request_id LIMIT %(limit)s) AS p
ORDER BY p.team, p.request_id;

-- name: delete_requests
DELETE FROM requests AS q USING unnest(%(teams)s::text[], %(ids)s::text[]) AS p(team, request_id)
WHERE q.team = p.team AND q.request_id = p.request_id
  AND q.created_at <= voxfleet_now() - %(retain_s)s * interval '1 second';

-- name: due_jobs
-- Ids begin with the time at which they were made: of each team the range of those that are old enough, in the
-- index that its own lists use, holds little else than what is to go. An index on the time of the end would
-- cost every end of a job, for this alone. What is not added up as usage yet stays.
SELECT j.*, (SELECT coalesce(sum(c.size_bytes), 0) FROM job_checkpoints AS c WHERE c.job_id = j.id)::bigint
  AS size_bytes
FROM teams AS t CROSS JOIN LATERAL (
  SELECT team, id, kind, event_seq, updated_at, ended_at, (1 + event_seq + attempt)::integer AS rows
  FROM jobs
  WHERE team = t.id AND parent_id IS NULL AND id < %(before_id)s
    AND id > CASE WHEN t.id = %(after_team)s THEN %(after_id)s ELSE '' END
    AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
    AND ended_at <= voxfleet_now() - %(retain_s)s * interval '1 second'
    AND ended_at <= (SELECT at FROM watermarks WHERE name = 'usage')
    AND NOT EXISTS (SELECT FROM job_dependencies AS d WHERE d.depends_on = jobs.id)
  ORDER BY id LIMIT %(limit)s
) AS j
WHERE t.id >= %(after_team)s
ORDER BY t.id, j.id LIMIT %(limit)s;

-- name: items_left
SELECT team, id, kind, event_seq, updated_at, ended_at, (1 + event_seq + attempt)::integer AS rows,
  0::bigint AS size_bytes
FROM jobs WHERE parent_id = %(batch)s AND state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
ORDER BY item_index LIMIT %(limit)s;

-- name: archive_lines
SELECT j.id, jsonb_strip_nulls(jsonb_build_object(
  'schema', 1,
  'job', to_jsonb(j) - '{lease_token,lease_expires_at,queue_key,blockers,yield_asked,has_dependents,not_before}'::text[],
  'attempts', (SELECT jsonb_agg(to_jsonb(a) - '{job_id,team,kind}'::text[] ORDER BY a.attempt)
               FROM job_attempts AS a WHERE a.job_id = j.id),
  'events', (SELECT jsonb_agg(to_jsonb(e) - '{job_id,team}'::text[] ORDER BY e.seq)
             FROM job_events AS e WHERE e.job_id = j.id),
  'checkpoints', (SELECT jsonb_agg(to_jsonb(c) - '{job_id,team}'::text[] ORDER BY c.attempt, c.step)
                  FROM job_checkpoints AS c WHERE c.job_id = j.id)))::text AS line
FROM jobs AS j WHERE j.id = ANY(%(jobs)s) ORDER BY j.id;

-- name: lock_finished
-- Those that are as they were looked at.
SELECT j.id FROM jobs AS j
JOIN unnest(%(jobs)s::text[], %(seqs)s::bigint[], %(updated)s::timestamptz[]) AS f(id, event_seq, updated_at)
  ON j.id = f.id
WHERE j.event_seq = f.event_seq AND j.updated_at = f.updated_at
  AND j.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
ORDER BY j.id FOR UPDATE OF j SKIP LOCKED;

-- name: delete_finished
WITH going AS MATERIALIZED (
  SELECT id, team, kind, ended_at FROM jobs AS j
  WHERE id = ANY(%(jobs)s) AND NOT EXISTS (SELECT FROM job_dependencies AS d WHERE d.depends_on = j.id)
), attempts AS (
  DELETE FROM job_attempts WHERE job_id = ANY(ARRAY(SELECT id FROM going))
), events AS (
  DELETE FROM job_events WHERE job_id = ANY(ARRAY(SELECT id FROM going))
), retired AS (
  INSERT INTO retired_batches (id, team, ended_at)
  SELECT id, team, ended_at FROM going WHERE kind = 'batch' ON CONFLICT DO NOTHING
)
-- Checkpoints and dependencies of its own go by their foreign keys.
DELETE FROM jobs WHERE id = ANY(ARRAY(SELECT id FROM going)) RETURNING id;

-- name: retired_batches
SELECT team, id, ended_at FROM retired_batches WHERE id > %(after)s ORDER BY id LIMIT %(limit)s;

-- name: forget_batch
DELETE FROM retired_batches WHERE id = %(batch)s AND NOT EXISTS (SELECT FROM jobs WHERE parent_id = %(batch)s);
