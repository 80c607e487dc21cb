-- The job ledger: order of service, quotas, dependencies, retries that go elsewhere, attempts and events
-- that cost two rows a job, batches that are counted without a lock.

-- The ledger's clock. A test that needs another time sets voxfleet.now; nothing else does.
CREATE FUNCTION voxfleet_now() RETURNS timestamptz LANGUAGE sql STABLE AS
  $$ SELECT coalesce(nullif(current_setting('voxfleet.now', true), '')::timestamptz, now()) $$;

CREATE SEQUENCE job_seq;

ALTER TABLE jobs
  ADD seq             bigint NOT NULL DEFAULT nextval('job_seq'),
  ADD gpu_type        text NOT NULL DEFAULT '',
  ADD size            double precision NOT NULL DEFAULT 0 CHECK (size >= 0),
  ADD batch_scale     real NOT NULL DEFAULT 1 CHECK (batch_scale > 0 AND batch_scale <= 1),
  ADD node            text NOT NULL DEFAULT '',
  ADD avoid_nodes     text[] NOT NULL DEFAULT '{}',
  ADD blockers        integer NOT NULL DEFAULT 0 CHECK (blockers >= 0),
  ADD has_dependents  boolean NOT NULL DEFAULT false,
  ADD yield_asked     boolean NOT NULL DEFAULT false,
  ADD items_total     integer NOT NULL DEFAULT 0,
  ADD items_succeeded integer NOT NULL DEFAULT 0,
  ADD items_failed    integer NOT NULL DEFAULT 0,
  ADD items_cancelled integer NOT NULL DEFAULT 0,
  ADD expected        jsonb,
  ADD CHECK (priority BETWEEN -100 AND 100);
ALTER SEQUENCE job_seq OWNED BY jobs.seq;
-- The order within a lane (kind, class, team): priority first, then order of submission. One number, so that
-- a claimer can begin where the last one ended and pass over no dead row twice.
ALTER TABLE jobs ADD queue_key bigint NOT NULL
  GENERATED ALWAYS AS ((100 - priority)::bigint * 281474976710656 + seq) STORED;

-- A batch and its items come and go in one transaction; checking each item against its batch costs a look
-- per item.
ALTER TABLE jobs DROP CONSTRAINT jobs_parent_id_fkey;

DROP INDEX jobs_claimable;
CREATE INDEX jobs_claimable ON jobs (kind, priority_class, team, queue_key)
  WHERE state = 'QUEUED' AND NOT paused AND blockers = 0;
-- Without the time of expiry: a heartbeat changes no indexed column and so touches no index.
DROP INDEX jobs_leased;
CREATE INDEX jobs_leased ON jobs (team) WHERE lease_token IS NOT NULL;
ALTER TABLE jobs SET (fillfactor = 70, autovacuum_vacuum_insert_scale_factor = 0.05,
                      autovacuum_analyze_scale_factor = 0.02);

-- The transition table again, as the condition of the trigger that refuses: no function runs where a change
-- is legal. A test tries every pair.
DROP TRIGGER jobs_legal_transition ON jobs;
DROP FUNCTION refuse_illegal_transition();
DROP TABLE job_transitions;
CREATE FUNCTION refuse_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  RAISE EXCEPTION 'illegal job transition % -> %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
END $$;
CREATE TRIGGER jobs_legal_transition BEFORE UPDATE OF state ON jobs FOR EACH ROW
  WHEN (OLD.state IS DISTINCT FROM NEW.state AND NOT (
    (OLD.state = 'QUEUED' AND NEW.state IN ('RUNNING', 'SUCCEEDED', 'FAILED', 'CANCELLED'))
    OR (OLD.state = 'RUNNING' AND NEW.state IN ('QUEUED', 'CANCELLING', 'SUCCEEDED', 'FAILED'))
    OR (OLD.state = 'CANCELLING' AND NEW.state IN ('CANCELLED', 'SUCCEEDED', 'FAILED'))
    OR (OLD.state IN ('FAILED', 'CANCELLED') AND NEW.state = 'QUEUED')
    OR (OLD.state = 'SUCCEEDED' AND NEW.state = 'QUEUED' AND OLD.kind = 'batch')))
  EXECUTE FUNCTION refuse_transition();

-- An attempt is written once, when it ends; the one that runs stands in its job's row.
INSERT INTO job_events (job_id, seq, team, state, attempt, message)
SELECT id, event_seq + 1, team, state, attempt, 'ledger upgraded' FROM jobs WHERE lease_token IS NOT NULL;
UPDATE jobs SET event_seq = event_seq + 1 WHERE lease_token IS NOT NULL;
DELETE FROM job_attempts WHERE ended_at IS NULL;
ALTER TABLE job_attempts
  DROP CONSTRAINT job_attempts_job_id_fkey,
  ALTER ended_at SET NOT NULL,
  ALTER ended_at SET DEFAULT voxfleet_now(),
  ADD kind          text NOT NULL DEFAULT '',
  ADD node          text NOT NULL DEFAULT '',
  ADD outcome       text NOT NULL DEFAULT '',
  ADD failure_class text NOT NULL DEFAULT '',
  ADD gpus          real NOT NULL DEFAULT 0,
  ADD size          double precision NOT NULL DEFAULT 0,
  ADD batch_scale   real NOT NULL DEFAULT 1,
  ADD waited_s      double precision NOT NULL DEFAULT 0,
  ADD expected      jsonb;
-- Attempts are written in the order of their ends: a block range index finds the recent ones for nothing.
CREATE INDEX job_attempts_recent ON job_attempts USING brin (ended_at) WITH (pages_per_range = 16, autosummarize = on);
ALTER TABLE job_attempts SET (autovacuum_vacuum_insert_scale_factor = 0.05);
ALTER TABLE job_events DROP CONSTRAINT job_events_job_id_fkey;
ALTER TABLE job_events SET (autovacuum_vacuum_insert_scale_factor = 0.05);

CREATE TABLE job_dependencies (
  job_id     text NOT NULL REFERENCES jobs ON DELETE CASCADE,
  depends_on text NOT NULL,
  team       text NOT NULL,
  -- Once the other's end has been dealt with. The row stays: a job that is retried may have to wait anew.
  settled    boolean NOT NULL DEFAULT false,
  PRIMARY KEY (job_id, depends_on),
  CHECK (job_id <> depends_on)
);
CREATE INDEX job_dependencies_of ON job_dependencies (depends_on) WHERE NOT settled;

-- How the items of batches ended, one row per end: added up by one process, fought for by none.
CREATE TABLE batch_ticks (
  batch_id  text NOT NULL,
  team      text NOT NULL,
  succeeded integer NOT NULL DEFAULT 0,
  failed    integer NOT NULL DEFAULT 0,
  cancelled integer NOT NULL DEFAULT 0
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);

-- What a team may use; zero is no bound. A row of its own, so that a claim can lock it and no submit waits.
CREATE TABLE team_quotas (
  team                    text PRIMARY KEY REFERENCES teams ON DELETE CASCADE,
  max_gpus                double precision NOT NULL DEFAULT 0 CHECK (max_gpus >= 0),
  max_queued_jobs         bigint NOT NULL DEFAULT 0 CHECK (max_queued_jobs >= 0),
  max_gpu_seconds_per_day bigint NOT NULL DEFAULT 0 CHECK (max_gpu_seconds_per_day >= 0),
  weight                  double precision NOT NULL DEFAULT 1 CHECK (weight > 0)
);
INSERT INTO team_quotas (team, weight) SELECT id, weight FROM teams WHERE weight <> 1;
ALTER TABLE teams DROP COLUMN weight;

-- VOLATILE on purpose: it sees what was committed since the claiming statement began, so that two claimers
-- who locked a team's quota one after the other cannot both take its last GPU.
CREATE FUNCTION gpus_held(of_team text) RETURNS double precision LANGUAGE sql VOLATILE AS
  $$ SELECT coalesce(sum(gpus::float8), 0) FROM jobs WHERE team = of_team AND lease_token IS NOT NULL $$;
-- The same of many teams at once: to begin a function costs as much as to count for several teams.
CREATE FUNCTION gpus_held_by(teams text[]) RETURNS TABLE (team text, gpus double precision)
  LANGUAGE sql VOLATILE AS
  $$ SELECT j.team, sum(j.gpus::float8) FROM jobs AS j
     WHERE j.team = ANY(teams) AND j.lease_token IS NOT NULL GROUP BY j.team $$;

-- Nodes that take no new work, by an operator's word.
CREATE TABLE drained_nodes (
  node       text PRIMARY KEY,
  drained_at timestamptz NOT NULL DEFAULT now()
);

-- Which share of the GPUs belongs to whom: the trainer and the pools reconcile to it.
CREATE TABLE gpu_grants (
  pool       text PRIMARY KEY,
  gpus       double precision NOT NULL CHECK (gpus >= 0),
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- How long jobs of a kind and size take, and how far expected starts were off: exponentially weighted sums.
CREATE TABLE job_estimates (
  name       text PRIMARY KEY,
  state      jsonb NOT NULL,
  updated_at timestamptz NOT NULL DEFAULT now()
);

-- GPU-seconds by team and day, added up from attempts by one process.
CREATE TABLE gpu_usage (
  team        text NOT NULL,
  day         date NOT NULL,
  gpu_seconds double precision NOT NULL DEFAULT 0,
  jobs        bigint NOT NULL DEFAULT 0,
  PRIMARY KEY (team, day)
);
CREATE TABLE watermarks (
  name text PRIMARY KEY,
  at   timestamptz NOT NULL
);

GRANT SELECT, INSERT, UPDATE, DELETE ON job_dependencies, batch_ticks, team_quotas, drained_nodes, gpu_grants,
  job_estimates, gpu_usage, watermarks TO voxfleet_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON job_dependencies, batch_ticks TO voxfleet_tenant;
-- UPDATE, because that is what locking a row takes; no policy lets a tenant change one.
GRANT SELECT, UPDATE ON team_quotas TO voxfleet_tenant;
GRANT SELECT ON gpu_usage, drained_nodes TO voxfleet_tenant;
GRANT USAGE ON SEQUENCE job_seq TO voxfleet_tenant, voxfleet_worker;

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['job_dependencies', 'batch_ticks', 'team_quotas', 'gpu_usage'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format($p$CREATE POLICY tenant ON %I TO voxfleet_tenant
      USING (team = current_setting('voxfleet.team', true))
      WITH CHECK (team = current_setting('voxfleet.team', true) AND %L <> 'team_quotas')$p$, name, name);
    EXECUTE format('CREATE POLICY worker ON %I TO voxfleet_worker USING (true) WITH CHECK (true)', name);
  END LOOP;
END $$;
