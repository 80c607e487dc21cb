-- Webhooks, and the outbox that their deliveries leave by.

-- The secret stands in clear: it signs every delivery.
CREATE TABLE webhooks (
  team         text NOT NULL REFERENCES teams ON DELETE CASCADE,
  id           text NOT NULL UNIQUE,
  url          text NOT NULL,
  states       text[] NOT NULL DEFAULT '{}',
  secret       text NOT NULL,
  created_at   timestamptz NOT NULL DEFAULT voxfleet_now(),
  -- Failed deliveries since the last that arrived; from a few on the whole webhook rests now and then, so that
  -- a receiver that is gone costs next to nothing.
  failures     integer NOT NULL DEFAULT 0,
  paused_until timestamptz,
  last_error   text NOT NULL DEFAULT '',
  last_error_at timestamptz,
  disabled_at  timestamptz,
  PRIMARY KEY (team, id)
);

-- A row is written by the transaction that changed the job, and holds the job as it was then. No foreign key:
-- deleting a webhook with a long backlog is quick, and a sweep removes what is left.
CREATE TABLE webhook_deliveries (
  id         text PRIMARY KEY DEFAULT gen_random_uuid()::text,
  team       text NOT NULL,
  webhook_id text NOT NULL,
  state      text NOT NULL,
  job        jsonb NOT NULL,
  created_at timestamptz NOT NULL DEFAULT voxfleet_now(),
  due_at     timestamptz NOT NULL DEFAULT voxfleet_now(),
  claims     integer NOT NULL DEFAULT 0,
  attempts   integer NOT NULL DEFAULT 0,
  outcome    text NOT NULL DEFAULT '' CHECK (outcome IN ('', 'DELIVERED', 'DEAD')),
  status     integer NOT NULL DEFAULT 0,
  error      text NOT NULL DEFAULT '',
  done_at    timestamptz,
  CHECK ((outcome = '') = (done_at IS NULL))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX webhook_deliveries_open ON webhook_deliveries (webhook_id, due_at) WHERE done_at IS NULL;
CREATE INDEX webhook_deliveries_dead ON webhook_deliveries (webhook_id) WHERE outcome = 'DEAD';
CREATE INDEX webhook_deliveries_done ON webhook_deliveries (done_at) WHERE done_at IS NOT NULL;

-- Two flags that a WHEN clause can read, which no table is: was a webhook ever made, and one that hears of
-- other states than final ones. Until then a change of a job's state costs the look at a flag. They are taken
-- before the webhook is committed and never go back; a flag that is up costs a look into webhooks, no more.
CREATE SEQUENCE webhooks_of_ends;
CREATE SEQUENCE webhooks_of_changes;

CREATE FUNCTION queue_webhooks() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  -- By itself, since to begin an INSERT costs more than to find that there is nothing to insert.
  IF EXISTS (SELECT FROM webhooks WHERE team = NEW.team) THEN
    INSERT INTO webhook_deliveries (team, webhook_id, state, job)
    SELECT NEW.team, w.id, NEW.state, jsonb_build_object(
        'id', NEW.id, 'kind', NEW.kind, 'display_name', NEW.display_name, 'labels', NEW.labels,
        'attempt', NEW.attempt, 'error', NEW.error, 'result', NEW.result - 'curve',
        'created_at', NEW.created_at, 'started_at', NEW.started_at, 'ended_at', NEW.ended_at,
        'traceparent', NEW.traceparent, 'items', NEW.items_total, 'succeeded', NEW.items_succeeded,
        'failed', NEW.items_failed, 'cancelled', NEW.items_cancelled)
    FROM webhooks AS w
    WHERE w.team = NEW.team AND w.disabled_at IS NULL
      AND (NEW.state = ANY (w.states)
           OR w.states = '{}' AND NEW.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED'));
  END IF;
  RETURN NULL;
END $$;

-- A trigger, so that every path is caught, plain SQL too. Items of a batch are passed over first: they are
-- many, and their batch speaks for them.
CREATE TRIGGER jobs_to_webhooks AFTER UPDATE OF state ON jobs FOR EACH ROW
  WHEN (NEW.parent_id IS NULL AND OLD.state IS DISTINCT FROM NEW.state
    AND CASE WHEN NEW.state IN ('SUCCEEDED', 'FAILED', 'CANCELLED')
             THEN pg_sequence_last_value('webhooks_of_ends')
             ELSE pg_sequence_last_value('webhooks_of_changes') END IS NOT NULL)
  EXECUTE FUNCTION queue_webhooks();

GRANT SELECT, INSERT, UPDATE, DELETE ON webhooks, webhook_deliveries TO voxfleet_worker;
GRANT SELECT, INSERT, DELETE ON webhooks TO voxfleet_tenant;
-- What a tenant's own cancellation puts there; and how many there are. To change them is the worker's.
GRANT SELECT, INSERT ON webhook_deliveries TO voxfleet_tenant;
GRANT SELECT, USAGE ON SEQUENCE webhooks_of_ends, webhooks_of_changes TO voxfleet_tenant, voxfleet_worker;

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['webhooks', 'webhook_deliveries'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format($p$CREATE POLICY tenant ON %I TO voxfleet_tenant
      USING (team = current_setting('voxfleet.team', true))
      WITH CHECK (team = current_setting('voxfleet.team', true))$p$, name);
    EXECUTE format('CREATE POLICY worker ON %I TO voxfleet_worker USING (true) WITH CHECK (true)', name);
  END LOOP;
END $$;
