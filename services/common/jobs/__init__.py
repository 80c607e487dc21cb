"""The worker's side of the ledger: what tasks are, and how a worker process takes and ends them."""
