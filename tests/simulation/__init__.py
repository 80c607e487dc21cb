"""The ledger in worlds of their own: clocks that jump, networks that lose, processes that die; by a seed."""
