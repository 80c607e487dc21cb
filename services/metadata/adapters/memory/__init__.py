"""The ledger in memory, for tests and simulations: the same behaviour as in Postgres, nothing to start."""

from services.metadata.adapters.memory.database import Change, MemoryDatabase, MemoryWakeups, Step
from services.metadata.adapters.memory.store import MemoryStore

__all__ = ["Change", "MemoryDatabase", "MemoryStore", "MemoryWakeups", "Step"]
