-- Retention: rows are condemned first and looked at again before anything is lost.

-- condemned_at: since when nobody may begin to use it; swept_at: since when its bytes may be gone, or going;
-- gone_at: since when they are gone for certain. A row stays for a while after that, so that whoever stored
-- the same bytes before they went, and names them only now, is told.
ALTER TABLE artifacts
  ALTER created_at SET DEFAULT voxfleet_now(),
  ADD condemned_at timestamptz,
  ADD swept_at     timestamptz,
  ADD gone_at      timestamptz,
  ADD CHECK (swept_at IS NULL OR condemned_at IS NOT NULL),
  ADD CHECK (gone_at IS NULL OR swept_at IS NOT NULL);
CREATE INDEX artifacts_condemned ON artifacts (condemned_at, team, sha256)
  WHERE condemned_at IS NOT NULL AND gone_at IS NULL;
CREATE INDEX artifacts_gone ON artifacts (gone_at) WHERE gone_at IS NOT NULL;

-- A condemned audio is there for nobody but the sweeper, which deletes it or brings it back.
ALTER TABLE audios ADD condemned_at timestamptz;
CREATE INDEX audios_expiring ON audios (expires_at, team, id)
  WHERE expires_at IS NOT NULL AND condemned_at IS NULL;
CREATE INDEX audios_condemned ON audios (condemned_at) WHERE condemned_at IS NOT NULL;

-- Since when the bytes of an expired upload are being deleted; its row goes after them.
ALTER TABLE uploads ADD condemned_at timestamptz, ALTER created_at SET DEFAULT voxfleet_now();
ALTER TABLE requests ALTER created_at SET DEFAULT voxfleet_now();

-- Whatever takes a reference from an artefact condemns it; the look that follows decides. So nothing has to
-- search all artefacts for those that nobody names.
CREATE FUNCTION condemn_artifact() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_TABLE_NAME = 'audios' THEN
    UPDATE artifacts SET condemned_at = voxfleet_now()
    WHERE team = OLD.team AND sha256 = OLD.sha256 AND condemned_at IS NULL;
  ELSE
    UPDATE artifacts SET condemned_at = voxfleet_now()
    WHERE team = OLD.team AND sha256 = OLD.package_sha256 AND condemned_at IS NULL;
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER audios_condemn AFTER DELETE ON audios FOR EACH ROW EXECUTE FUNCTION condemn_artifact();
CREATE TRIGGER voices_condemn AFTER UPDATE OF package_sha256 ON voices FOR EACH ROW
  WHEN (OLD.package_sha256 IS DISTINCT FROM NEW.package_sha256 AND OLD.package_sha256 IS NOT NULL)
  EXECUTE FUNCTION condemn_artifact();
CREATE TRIGGER voices_condemn_deleted AFTER DELETE ON voices FOR EACH ROW
  WHEN (OLD.package_sha256 IS NOT NULL) EXECUTE FUNCTION condemn_artifact();
UPDATE artifacts AS r SET condemned_at = voxfleet_now()
WHERE NOT EXISTS (SELECT FROM audios AS a WHERE a.team = r.team AND a.sha256 = r.sha256)
  AND NOT EXISTS (SELECT FROM voices AS v WHERE v.team = r.team AND v.package_sha256 = r.sha256);

-- Which jobs have not ended is told by two indexes there are, and this for the few that neither holds. No
-- change of a job that is claimed and ends puts anything into it.
CREATE INDEX jobs_held ON jobs (team) WHERE state = 'QUEUED' AND (paused OR blockers > 0);

-- Batches whose own row is gone and whose items go after it, in parts.
CREATE TABLE retired_batches (
  id         text PRIMARY KEY,
  team       text NOT NULL,
  ended_at   timestamptz NOT NULL,
  retired_at timestamptz NOT NULL DEFAULT voxfleet_now()
);
GRANT SELECT, INSERT, UPDATE, DELETE ON retired_batches TO voxfleet_worker;
