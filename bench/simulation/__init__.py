"""A month of a cluster, replayed: the scheduling code of the ledger against synthetic traces."""
