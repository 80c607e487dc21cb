-- Who of the workers' has GPUs, and what the process that divides them remembers from one decision to the next.

-- Rewritten whole by each worker, gone with it.
CREATE TABLE worker_gpus (
  worker text PRIMARY KEY REFERENCES workers ON DELETE CASCADE,
  facts  jsonb NOT NULL,
  at     timestamptz NOT NULL
) WITH (fillfactor = 50);

-- One row. Whoever has it locked decides; the others pass on what was decided.
CREATE TABLE gpu_division (
  single boolean PRIMARY KEY DEFAULT true CHECK (single),
  memory jsonb NOT NULL DEFAULT '{}'
) WITH (fillfactor = 50);
INSERT INTO gpu_division DEFAULT VALUES;

GRANT SELECT, INSERT, UPDATE, DELETE ON worker_gpus TO voxfleet_worker;
GRANT SELECT, UPDATE ON gpu_division TO voxfleet_worker;
