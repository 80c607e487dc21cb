"""The queues that :mod:`bench.ledger` compares, each behind the same small port."""
