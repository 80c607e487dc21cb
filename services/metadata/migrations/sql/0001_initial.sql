-- The first schema. Roles and row-level security stand here from the start: every transaction takes
-- one of two roles, tenant (sees one team) or worker (sees all); the login role owns the tables.

DO $$ BEGIN CREATE ROLE voxfleet_tenant NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
DO $$ BEGIN CREATE ROLE voxfleet_worker NOLOGIN; EXCEPTION WHEN duplicate_object THEN NULL; END $$;
DO $$ BEGIN
  EXECUTE format('GRANT voxfleet_tenant, voxfleet_worker TO %I', current_user);
EXCEPTION WHEN OTHERS THEN
  -- A superuser needs no grant, and PostgreSQL 16+ refuses to grant a role to itself.
  IF NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) THEN RAISE; END IF;
END $$;

CREATE TABLE teams (
  id           text PRIMARY KEY CHECK (id ~ '^[a-z0-9][a-z0-9-]{1,38}[a-z0-9]$'),
  display_name text NOT NULL DEFAULT '',
  weight       double precision NOT NULL DEFAULT 1 CHECK (weight > 0),
  created_at   timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE api_keys (
  team         text NOT NULL REFERENCES teams,
  id           text NOT NULL,
  token_sha256 text NOT NULL UNIQUE CHECK (length(token_sha256) = 64),
  display_name text NOT NULL DEFAULT '',
  operator     boolean NOT NULL DEFAULT false,
  created_at   timestamptz NOT NULL DEFAULT now(),
  revoked_at   timestamptz,
  PRIMARY KEY (team, id)
);

-- Every create that carries a request_id: a repeat finds its first answer here.
CREATE TABLE requests (
  team        text NOT NULL REFERENCES teams,
  request_id  text NOT NULL,
  method      text NOT NULL,
  fingerprint text NOT NULL,
  resource    text NOT NULL,
  created_at  timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (team, request_id)
);

CREATE TABLE artifacts (
  team       text NOT NULL REFERENCES teams,
  sha256     text NOT NULL CHECK (length(sha256) = 64),
  size_bytes bigint NOT NULL CHECK (size_bytes >= 0),
  media_type text NOT NULL,
  key        text NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (team, sha256)
);

CREATE TABLE uploads (
  team           text NOT NULL REFERENCES teams,
  id             text NOT NULL,
  spec           jsonb NOT NULL,
  durable_offset bigint NOT NULL DEFAULT 0 CHECK (durable_offset >= 0),
  audio_id       text NOT NULL DEFAULT '',
  created_at     timestamptz NOT NULL DEFAULT now(),
  expires_at     timestamptz NOT NULL,
  PRIMARY KEY (team, id)
);
CREATE INDEX uploads_expiring ON uploads (expires_at);

CREATE TABLE audios (
  team         text NOT NULL REFERENCES teams,
  id           text NOT NULL,
  display_name text NOT NULL DEFAULT '',
  purpose      text NOT NULL,
  sha256       text NOT NULL,
  measures     jsonb NOT NULL DEFAULT '{}',
  assessment   jsonb NOT NULL DEFAULT '{}',
  labels       jsonb NOT NULL DEFAULT '{}',
  provenance   jsonb NOT NULL DEFAULT '{}',
  source_audio text NOT NULL DEFAULT '',
  job_id       text NOT NULL DEFAULT '',
  created_at   timestamptz NOT NULL DEFAULT now(),
  expires_at   timestamptz,
  PRIMARY KEY (team, id),
  FOREIGN KEY (team, sha256) REFERENCES artifacts
);
CREATE INDEX audios_by_artifact ON audios (team, sha256);
CREATE INDEX audios_by_job ON audios (job_id) WHERE job_id <> '';

CREATE TABLE voices (
  team            text NOT NULL REFERENCES teams,
  id              text NOT NULL,
  display_name    text NOT NULL DEFAULT '',
  engine          text NOT NULL,
  state           text NOT NULL CHECK (state IN ('TRAINING', 'READY', 'FAILED', 'DELETED')),
  languages       text[] NOT NULL DEFAULT '{}',
  clips           jsonb NOT NULL DEFAULT '[]',
  training_audios text[] NOT NULL DEFAULT '{}',
  job_id          text NOT NULL DEFAULT '',
  bundle          text NOT NULL DEFAULT '',
  content_encoder text NOT NULL DEFAULT '',
  rate_hz         integer NOT NULL DEFAULT 0,
  weights_licence text NOT NULL DEFAULT '',
  weights_trained boolean NOT NULL DEFAULT false,
  consent         text NOT NULL DEFAULT '',
  labels          jsonb NOT NULL DEFAULT '{}',
  metrics         jsonb NOT NULL DEFAULT '{}',
  package_sha256  text,
  created_at      timestamptz NOT NULL DEFAULT now(),
  deleted_at      timestamptz,
  PRIMARY KEY (team, id),
  FOREIGN KEY (team, package_sha256) REFERENCES artifacts
);
CREATE INDEX voices_by_package ON voices (team, package_sha256) WHERE package_sha256 IS NOT NULL;

CREATE TABLE jobs (
  id               text PRIMARY KEY,
  team             text NOT NULL REFERENCES teams,
  kind             text NOT NULL,
  state            text NOT NULL CHECK (state IN
                     ('QUEUED', 'RUNNING', 'CANCELLING', 'SUCCEEDED', 'FAILED', 'CANCELLED')),
  waiting_reason   text NOT NULL DEFAULT '',
  priority_class   smallint NOT NULL CHECK (priority_class BETWEEN 1 AND 4),
  priority         integer NOT NULL DEFAULT 0,
  task             jsonb NOT NULL,
  spec             jsonb NOT NULL DEFAULT '{}',
  display_name     text NOT NULL DEFAULT '',
  labels           jsonb NOT NULL DEFAULT '{}',
  parent_id        text REFERENCES jobs,
  item_index       integer NOT NULL DEFAULT 0,
  item_id          text NOT NULL DEFAULT '',
  gpus             real NOT NULL DEFAULT 0,
  paused           boolean NOT NULL DEFAULT false,
  not_before       timestamptz NOT NULL DEFAULT now(),
  attempt          integer NOT NULL DEFAULT 0,
  max_attempts     integer NOT NULL DEFAULT 4,
  lease_token      uuid,
  lease_expires_at timestamptz,
  worker           text NOT NULL DEFAULT '',
  phase            text NOT NULL DEFAULT '',
  progress         jsonb NOT NULL DEFAULT '{}',
  result           jsonb NOT NULL DEFAULT '{}',
  error            jsonb,
  event_seq        bigint NOT NULL DEFAULT 0,
  traceparent      text NOT NULL DEFAULT '',
  created_at       timestamptz NOT NULL DEFAULT now(),
  started_at       timestamptz,
  ended_at         timestamptz,
  updated_at       timestamptz NOT NULL DEFAULT now(),
  -- A lease is held exactly while an attempt runs. A batch is never leased.
  CHECK (kind = 'batch' OR (lease_token IS NOT NULL) = (state IN ('RUNNING', 'CANCELLING')))
) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_cost_delay = 0);
CREATE INDEX jobs_claimable ON jobs (kind, priority_class, priority DESC, created_at, item_index)
  WHERE state = 'QUEUED' AND NOT paused;
CREATE INDEX jobs_leased ON jobs (lease_expires_at) WHERE lease_token IS NOT NULL;
CREATE INDEX jobs_of_batch ON jobs (parent_id, item_index) WHERE parent_id IS NOT NULL;
CREATE INDEX jobs_of_team ON jobs (team, id DESC) WHERE parent_id IS NULL;
CREATE INDEX jobs_open_batches ON jobs (id)
  WHERE kind = 'batch' AND state IN ('QUEUED', 'RUNNING', 'CANCELLING');

CREATE TABLE job_transitions (
  from_state text NOT NULL,
  to_state   text NOT NULL,
  PRIMARY KEY (from_state, to_state)
);
INSERT INTO job_transitions VALUES
  ('QUEUED', 'RUNNING'), ('QUEUED', 'CANCELLED'), ('QUEUED', 'SUCCEEDED'), ('QUEUED', 'FAILED'),
  ('RUNNING', 'QUEUED'), ('RUNNING', 'CANCELLING'), ('RUNNING', 'SUCCEEDED'), ('RUNNING', 'FAILED'),
  ('CANCELLING', 'CANCELLED'), ('CANCELLING', 'SUCCEEDED'), ('CANCELLING', 'FAILED'),
  ('FAILED', 'QUEUED'), ('CANCELLED', 'QUEUED');

CREATE FUNCTION refuse_illegal_transition() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF NOT EXISTS (SELECT FROM job_transitions WHERE from_state = OLD.state AND to_state = NEW.state) THEN
    RAISE EXCEPTION 'illegal job transition % -> %', OLD.state, NEW.state USING ERRCODE = 'check_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER jobs_legal_transition BEFORE UPDATE OF state ON jobs
  FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state) EXECUTE FUNCTION refuse_illegal_transition();

CREATE TABLE job_attempts (
  job_id     text NOT NULL REFERENCES jobs ON DELETE CASCADE,
  attempt    integer NOT NULL,
  team       text NOT NULL,
  worker     text NOT NULL,
  started_at timestamptz NOT NULL DEFAULT now(),
  ended_at   timestamptz,
  error      jsonb,
  PRIMARY KEY (job_id, attempt)
);

CREATE TABLE job_events (
  job_id  text NOT NULL REFERENCES jobs ON DELETE CASCADE,
  seq     bigint NOT NULL,
  team    text NOT NULL,
  state   text NOT NULL,
  phase   text NOT NULL DEFAULT '',
  attempt integer NOT NULL,
  message text NOT NULL DEFAULT '',
  at      timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (job_id, seq)
);

CREATE TABLE job_checkpoints (
  job_id     text NOT NULL REFERENCES jobs ON DELETE CASCADE,
  step       bigint NOT NULL,
  attempt    integer NOT NULL,
  team       text NOT NULL,
  epoch      integer NOT NULL,
  key        text NOT NULL,
  sha256     text NOT NULL,
  size_bytes bigint NOT NULL,
  created_at timestamptz NOT NULL DEFAULT now(),
  PRIMARY KEY (job_id, step, attempt)
);

CREATE TABLE workers (
  worker         text PRIMARY KEY,
  queue          text NOT NULL,
  node           text NOT NULL,
  version        text NOT NULL,
  free           jsonb NOT NULL DEFAULT '{}',
  nodes          jsonb NOT NULL DEFAULT '[]',
  default_bundle text NOT NULL DEFAULT '',
  last_seen      timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE bundles (
  name        text PRIMARY KEY,
  manifest    jsonb NOT NULL,
  accepted_by text NOT NULL DEFAULT '',
  created_at  timestamptz NOT NULL DEFAULT now()
);

CREATE TABLE usage_records (
  team       text NOT NULL REFERENCES teams,
  voice      text NOT NULL,
  audio_s    double precision NOT NULL,
  work_s     double precision NOT NULL,
  characters integer NOT NULL,
  at         timestamptz NOT NULL DEFAULT now()
);
CREATE INDEX usage_by_team ON usage_records (team, at);

GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO voxfleet_worker;
GRANT SELECT, INSERT, UPDATE, DELETE ON requests, artifacts, uploads, audios, voices, jobs, job_attempts,
  job_events, job_checkpoints, usage_records TO voxfleet_tenant;
GRANT SELECT ON teams, bundles, workers, job_transitions TO voxfleet_tenant;
GRANT SELECT, INSERT, UPDATE ON api_keys TO voxfleet_tenant;

DO $$
DECLARE name text;
BEGIN
  FOREACH name IN ARRAY ARRAY['api_keys', 'requests', 'artifacts', 'uploads', 'audios', 'voices', 'jobs',
                              'job_attempts', 'job_events', 'job_checkpoints', 'usage_records'] LOOP
    EXECUTE format('ALTER TABLE %I ENABLE ROW LEVEL SECURITY', name);
    EXECUTE format('ALTER TABLE %I FORCE ROW LEVEL SECURITY', name);
    EXECUTE format($p$CREATE POLICY tenant ON %I TO voxfleet_tenant
      USING (team = current_setting('voxfleet.team', true))
      WITH CHECK (team = current_setting('voxfleet.team', true))$p$, name);
    EXECUTE format('CREATE POLICY worker ON %I TO voxfleet_worker USING (true) WITH CHECK (true)', name);
  END LOOP;
END $$;
ALTER TABLE teams ENABLE ROW LEVEL SECURITY;
ALTER TABLE teams FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON teams TO voxfleet_tenant USING (id = current_setting('voxfleet.team', true));
CREATE POLICY worker ON teams TO voxfleet_worker USING (true) WITH CHECK (true);
