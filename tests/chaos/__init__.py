"""The ledger's proofs on real processes: random kills, and an audit of the history that they left."""
