-- Pronunciation dictionaries. A lexicon is read and written whole, hence one row; the words are kept in the
-- order in which they were given, each as [grapheme, alias].
CREATE TABLE lexicons (
  team         text NOT NULL REFERENCES teams,
  id           text NOT NULL,
  display_name text NOT NULL DEFAULT '',
  language     text NOT NULL DEFAULT '',
  entries      jsonb NOT NULL DEFAULT '[]'
    CHECK (jsonb_typeof(entries) = 'array' AND jsonb_array_length(entries) <= 10000),
  created_at   timestamptz NOT NULL DEFAULT voxfleet_now(),
  updated_at   timestamptz NOT NULL DEFAULT voxfleet_now(),
  PRIMARY KEY (team, id)
);

GRANT SELECT, INSERT, UPDATE, DELETE ON lexicons TO voxfleet_tenant, voxfleet_worker;
ALTER TABLE lexicons ENABLE ROW LEVEL SECURITY;
ALTER TABLE lexicons FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON lexicons TO voxfleet_tenant
  USING (team = current_setting('voxfleet.team', true))
  WITH CHECK (team = current_setting('voxfleet.team', true));
CREATE POLICY worker ON lexicons TO voxfleet_worker USING (true) WITH CHECK (true);
