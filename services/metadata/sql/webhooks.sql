-- Webhooks and the outbox, by name. Run by raw psycopg; parameters are %(named)s.

-- name: lock_webhooks
-- Two that make a team's last webhook at once: the second counts what the first has committed.
SELECT pg_advisory_xact_lock(hashtextextended('voxfleet webhooks of ' || %(team)s, 0));

-- name: insert_webhook
INSERT INTO webhooks (team, id, url, states, secret)
SELECT %(team)s, %(id)s, %(url)s, %(states)s, %(secret)s
WHERE (SELECT count(*) FROM webhooks WHERE team = %(team)s) < %(most)s
RETURNING id;

-- name: raise_flags
-- Before the webhook is committed: whoever sees it sees the flags.
SELECT nextval('webhooks_of_ends'), CASE WHEN %(changes)s THEN nextval('webhooks_of_changes') END;

-- name: arm_webhooks
SELECT CASE WHEN pg_sequence_last_value('webhooks_of_ends') IS NULL THEN nextval('webhooks_of_ends') END,
  CASE WHEN pg_sequence_last_value('webhooks_of_changes') IS NULL THEN nextval('webhooks_of_changes') END
FROM (SELECT bool_or(NOT states <@ ARRAY['SUCCEEDED', 'FAILED', 'CANCELLED']) AS changes FROM webhooks) AS w
WHERE changes IS NOT NULL;

-- name: get_webhook
SELECT * FROM webhooks WHERE team = %(team)s AND id = %(id)s;

-- name: list_webhooks
SELECT w.*, p.pending, g.given_up
FROM (SELECT * FROM webhooks WHERE team = %(team)s AND id > %(after)s ORDER BY id LIMIT %(limit)s) AS w
CROSS JOIN LATERAL (SELECT count(*) AS pending FROM (
  SELECT FROM webhook_deliveries WHERE webhook_id = w.id AND done_at IS NULL LIMIT %(counted)s) AS open) AS p
CROSS JOIN LATERAL (SELECT count(*) AS given_up FROM (
  SELECT FROM webhook_deliveries WHERE webhook_id = w.id AND outcome = 'DEAD' LIMIT %(counted)s) AS dead) AS g
ORDER BY w.id;

-- name: delete_webhook
DELETE FROM webhooks WHERE team = %(team)s AND id = %(id)s RETURNING id;

-- name: plan_by_indexes
-- To the end of the transaction: whatever the statistics say of an outbox that was small a minute ago.
SELECT set_config('enable_seqscan', 'off', true), set_config('jit', 'off', true);

-- name: claim_deliveries
-- From webhook to webhook by way of the index of open deliveries, however many wait at each; of each no more
-- than it has room for; and of those the ones whose team, then whose webhook, has the least in flight. What is
-- claimed is due again after the lease.
WITH RECURSIVE waiting(id) AS (
  (SELECT webhook_id FROM webhook_deliveries WHERE done_at IS NULL ORDER BY webhook_id LIMIT 1)
  UNION ALL
  SELECT (SELECT d.webhook_id FROM webhook_deliveries AS d
          WHERE d.done_at IS NULL AND d.webhook_id > waiting.id ORDER BY d.webhook_id LIMIT 1)
  FROM waiting WHERE waiting.id IS NOT NULL
), room AS MATERIALIZED (
  SELECT w.id, w.team, w.url, w.secret, coalesce(b.busy, 0) AS busy, coalesce(t.busy, 0) AS team_busy,
    CASE WHEN w.failures = 0 THEN %(per_webhook)s ELSE 1 END - coalesce(b.busy, 0) AS free
  FROM waiting JOIN webhooks AS w USING (id)
  LEFT JOIN unnest(%(webhooks)s::text[], %(in_webhooks)s::integer[]) AS b(id, busy) ON b.id = w.id
  LEFT JOIN unnest(%(teams)s::text[], %(in_teams)s::integer[]) AS t(team, busy) ON t.team = w.team
  WHERE w.disabled_at IS NULL AND (w.paused_until IS NULL OR w.paused_until <= voxfleet_now())
), due AS MATERIALIZED (
  SELECT room.*, d.delivery, d.due_at FROM room CROSS JOIN LATERAL (
    SELECT id AS delivery, due_at FROM webhook_deliveries
    WHERE webhook_id = room.id AND done_at IS NULL AND due_at <= voxfleet_now()
    ORDER BY due_at LIMIT greatest(room.free, 0) FOR UPDATE SKIP LOCKED
  ) AS d
), turns AS (
  SELECT *, busy + row_number() OVER (PARTITION BY id ORDER BY due_at) AS turn FROM due
), places AS (
  SELECT *, team_busy + row_number() OVER (PARTITION BY team ORDER BY turn, due_at) AS place FROM turns
), picked AS MATERIALIZED (
  SELECT * FROM places WHERE place <= %(per_team)s ORDER BY place, due_at LIMIT %(slots)s
)
UPDATE webhook_deliveries AS d
SET claims = d.claims + 1, due_at = voxfleet_now() + %(lease_s)s * interval '1 second'
FROM picked WHERE d.id = picked.delivery
RETURNING d.id, d.team, d.webhook_id, d.state, d.job, d.created_at, d.attempts, d.claims, picked.url,
  picked.secret, extract(epoch FROM voxfleet_now() - d.created_at)::float8 AS age_s;

-- name: end_deliveries
-- Of a webhook that fails without end each failure from the fifth on makes a rest, up to ten minutes. The
-- webhooks are locked in one order, so that two processes do not wait for one another in a circle.
WITH ends AS MATERIALIZED (
  SELECT * FROM jsonb_to_recordset(%(ends)s) AS e(id text, webhook_id text, claims integer, outcome text,
    status integer, error text, delay_s float8, arrived boolean, gone boolean)
), locked AS MATERIALIZED (
  SELECT id FROM webhooks WHERE id IN (SELECT webhook_id FROM ends) ORDER BY id FOR UPDATE
), ended AS (
  UPDATE webhook_deliveries AS d SET outcome = e.outcome, status = e.status, error = e.error,
    attempts = d.attempts + 1,
    due_at = CASE WHEN e.outcome = '' THEN voxfleet_now() + e.delay_s * interval '1 second' ELSE d.due_at END,
    done_at = CASE WHEN e.outcome <> '' THEN voxfleet_now() END
  FROM ends AS e WHERE d.id = e.id AND d.claims = e.claims AND d.done_at IS NULL
  RETURNING d.webhook_id, e.arrived, e.gone, CASE WHEN NOT e.arrived THEN
    CASE WHEN e.error = '' THEN 'HTTP ' || e.status ELSE e.error END END AS said
), sums AS (
  SELECT webhook_id, bool_or(arrived) AS arrived, count(*)::integer AS failed, bool_or(gone) AS gone,
    max(said) AS said
  FROM ended GROUP BY webhook_id
), noted AS (
  UPDATE webhooks AS w SET failures = CASE WHEN s.arrived THEN 0 ELSE w.failures + s.failed END,
    paused_until = CASE WHEN NOT s.arrived AND w.failures + s.failed >= 5 THEN voxfleet_now()
      + least(600, 5 * 2 ^ least(w.failures + s.failed - 5, 20)) * interval '1 second' END,
    disabled_at = CASE WHEN s.gone THEN voxfleet_now() ELSE w.disabled_at END,
    last_error = coalesce(s.said, w.last_error),
    last_error_at = CASE WHEN s.said IS NULL THEN w.last_error_at ELSE voxfleet_now() END
  FROM sums AS s, locked
  WHERE w.id = s.webhook_id AND locked.id = w.id AND (w.failures > 0 OR s.said IS NOT NULL)
)
SELECT count(*)::integer AS ended FROM ended;

-- name: give_up_deliveries
-- What is too old and waits for a webhook that rests; a delivery that is tried is given up by who tries it.
-- Of each webhook the front of its queue is looked at, however long that is.
UPDATE webhook_deliveries SET outcome = 'DEAD', done_at = voxfleet_now(),
  error = 'its webhook failed for too long to be tried'
WHERE id = ANY(ARRAY(
  SELECT d.id FROM webhooks AS w CROSS JOIN LATERAL (
    SELECT id, created_at FROM webhook_deliveries
    WHERE webhook_id = w.id AND done_at IS NULL AND due_at <= voxfleet_now()
    ORDER BY due_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED
  ) AS d
  WHERE w.failures > 0 AND d.created_at < voxfleet_now() - %(give_up_s)s * interval '1 second'
  LIMIT %(limit)s))
RETURNING id;

-- name: drop_ended
DELETE FROM webhook_deliveries WHERE id = ANY(ARRAY(
  SELECT id FROM webhook_deliveries WHERE done_at < voxfleet_now() - %(keep_s)s * interval '1 second'
  ORDER BY done_at LIMIT %(limit)s FOR UPDATE SKIP LOCKED))
RETURNING id;

-- name: drop_orphans
-- Open deliveries of webhooks that were deleted, or want no more.
WITH RECURSIVE waiting(id) AS (
  (SELECT webhook_id FROM webhook_deliveries WHERE done_at IS NULL ORDER BY webhook_id LIMIT 1)
  UNION ALL
  SELECT (SELECT d.webhook_id FROM webhook_deliveries AS d
          WHERE d.done_at IS NULL AND d.webhook_id > waiting.id ORDER BY d.webhook_id LIMIT 1)
  FROM waiting WHERE waiting.id IS NOT NULL
)
DELETE FROM webhook_deliveries WHERE id = ANY(ARRAY(
  SELECT d.id FROM waiting CROSS JOIN LATERAL (
    SELECT id FROM webhook_deliveries WHERE webhook_id = waiting.id AND done_at IS NULL
    LIMIT %(limit)s FOR UPDATE SKIP LOCKED
  ) AS d
  WHERE waiting.id IS NOT NULL
    AND NOT EXISTS (SELECT FROM webhooks AS w WHERE w.id = waiting.id AND w.disabled_at IS NULL)
  LIMIT %(limit)s))
RETURNING id;

-- name: backlog
SELECT count(*)::integer AS count,
  coalesce(extract(epoch FROM voxfleet_now() - min(created_at)), 0)::float8 AS oldest_s
FROM (SELECT created_at FROM webhook_deliveries WHERE done_at IS NULL LIMIT 100000) AS open;
