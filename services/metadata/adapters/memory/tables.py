"""Tables of immutable rows with row locks, and sessions over them: READ COMMITTED, in memory.

A session reads what is committed. What it writes stands apart until it commits: nobody else sees it, and a
roll-back forgets it. A row is locked before it is written, and stays so until its session ends; who wants it
meanwhile waits, or passes it over. Two sessions that wait for one another are found, and the later of them
fails.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from services.common.errors import Reason, internal, unavailable

K = TypeVar("K", bound=Hashable)
R = TypeVar("R")


class Index(Generic[K, R]):
    """Keys of rows by something of theirs: where to look, in no order that means anything."""

    def __init__(self, of: Callable[[R], Hashable]) -> None:
        self._of = of
        self._keys: dict[Hashable, dict[K, None]] = {}

    def move(self, key: K, before: R | None, after: R | None) -> None:
        """Keeps up with a change of a row. What a row is filed under None for is not filed."""
        was = None if before is None else self._of(before)
        now = None if after is None else self._of(after)
        if was == now:
            return
        if was is not None:
            del self._keys[was][key]
            if not self._keys[was]:
                del self._keys[was]
        if now is not None:
            self._keys.setdefault(now, {})[key] = None

    def keys(self, value: Hashable) -> Iterable[K]:
        """The keys that are filed under a value."""
        return self._keys.get(value, ())

    def values(self) -> Iterable[Any]:
        """What keys are filed under."""
        return self._keys.keys()


class Table(Generic[K, R]):
    """Rows as they were last committed, and who holds the lock of which."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.rows: dict[K, R] = {}
        self.locks: dict[K, Session] = {}
        self._indexes: list[Index[K, R]] = []

    def index(self, of: Callable[[R], Hashable]) -> Index[K, R]:
        """Adds an index; the table must be empty."""
        assert not self.rows
        self._indexes.append(Index(of))
        return self._indexes[-1]

    def apply(self, key: K, after: R | None) -> R | None:
        """Makes a row what it is to be; returns what it was."""
        before = self.rows.get(key)
        if after is None:
            self.rows.pop(key, None)
        else:
            self.rows[key] = after
        for index in self._indexes:
            index.move(key, before, after)
        return before


@dataclass(frozen=True, slots=True)
class Change:
    """What a commit did to one row; None where there was none, or is none any more."""

    table: str
    key: Any
    before: Any
    after: Any


class Session:
    """One transaction's view, its locks and what it wrote.

    Args:
        now: its time, the same from its beginning to its end.
        team: the one team that it sees; empty: all.
    """

    def __init__(self, now: dt.datetime, team: str) -> None:
        self.now = now
        self.team = team
        self._written: dict[Table[Any, Any], dict[Any, Any]] = {}
        self._held: list[tuple[Table[Any, Any], Any]] = []
        self._waits_for: Session | None = None
        self._ended: asyncio.Event | None = None

    def get(self, table: Table[K, R], key: K) -> R | None:
        """A row as this session sees it."""
        written = self._written.get(table)
        if written is not None and key in written:
            found: R | None = written[key]
            return found
        return table.rows.get(key)

    def scan(self, table: Table[K, R]) -> Iterator[tuple[K, R]]:
        """Every row as this session sees it, the committed ones first."""
        written = self._written.get(table, {})
        for key, row in list(table.rows.items()):
            seen = written.get(key, row)
            if seen is not None:
                yield key, seen
        for key, row in list(written.items()):
            if row is not None and key not in table.rows:
                yield key, row

    def look(self, table: Table[K, R], index: Index[K, R], value: Hashable) -> list[tuple[K, R]]:
        """Rows that are filed under a value, and all that this session wrote: the caller picks."""
        keys = dict.fromkeys(index.keys(value))
        keys.update(dict.fromkeys(self._written.get(table, {})))
        return [(key, row) for key in keys if (row := self.get(table, key)) is not None]

    def try_lock(self, table: Table[K, R], key: K) -> bool:
        """Locks a row until this session ends, unless another has it."""
        owner = table.locks.get(key)
        if owner is None:
            table.locks[key] = self
            self._held.append((table, key))
        return owner is None or owner is self

    async def lock(self, table: Table[K, R], key: K) -> R | None:
        """Locks a row, waiting for whoever has it; returns what it is by then.

        Errors: DATABASE_UNAVAILABLE where that one waits for this session.
        """
        while not self.try_lock(table, key):
            owner: Session | None = table.locks[key]
            assert owner is not None
            ended = owner.ended()
            self._waits_for = owner
            while owner is not None:
                if owner is self:
                    self._waits_for = None
                    raise unavailable(
                        Reason.DATABASE_UNAVAILABLE, f"deadlock over {table.name}: try again shortly"
                    )
                owner = owner._waits_for  # noqa: SLF001 - of its own class
            try:
                await ended.wait()
            finally:
                self._waits_for = None
        return self.get(table, key)

    async def lock_all(
        self, table: Table[K, R], keys: Iterable[K], still: Callable[[R], bool]
    ) -> list[tuple[K, R]]:
        """Locks rows one after the other; returns those of which something still holds."""
        found = []
        for key in keys:
            row = await self.lock(table, key)
            if row is not None and still(row):
                found.append((key, row))
        return found

    def put(self, table: Table[K, R], key: K, row: R | None) -> None:
        """Writes a row that this session has locked; None deletes it."""
        if table.locks.get(key) is not self:
            raise internal(f"{table.name} {key!r} was written without its lock")
        self._written.setdefault(table, {})[key] = row

    async def insert(self, table: Table[K, R], key: K, row: R) -> bool:
        """Makes a row; False where there is one, be it one that another has just committed."""
        if await self.lock(table, key) is not None:
            return False
        self.put(table, key, row)
        return True

    def commit(self) -> list[Change]:
        """Makes what was written visible, all at once, and lets go of the locks."""
        changes = [
            Change(table.name, key, table.apply(key, row), row)
            for table, rows in self._written.items()
            for key, row in rows.items()
        ]
        self.roll_back()
        return changes

    def roll_back(self) -> None:
        """Forgets what was written and lets go of the locks."""
        self._written.clear()
        for table, key in self._held:
            del table.locks[key]
        self._held.clear()
        if self._ended is not None:
            self._ended.set()

    def ended(self) -> asyncio.Event:
        """Is set when this session has ended."""
        if self._ended is None:
            self._ended = asyncio.Event()
        return self._ended
