"""Many children together: started in the order of their dependencies, stopped in the reverse."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence

from services.common.errors import Reason, VoxfleetError, unavailable
from services.stack.process import POLL_S, Child, Component, State

_LONGEST_START_S = 600.0


class Supervisor:
    """The children of one stack.

    Args:
        on_change: told of every change of a child's state, one call at a time.
    """

    def __init__(self, on_change: Callable[[Child], None] = lambda child: None) -> None:
        self._children: dict[str, Child] = {}
        self._on_change = on_change
        self._telling = threading.Lock()
        self._progress = threading.Event()
        self._first_failure: VoxfleetError | None = None

    @property
    def children(self) -> Mapping[str, Child]:
        """Every child by name, in the order of addition."""
        return self._children

    def add(self, component: Component, *, after: Sequence[str] = ()) -> Child:
        """Take a component on; names in ``after`` that are not children (an outside S3) are passed over."""
        child = Child(
            component,
            after=[self._children[name] for name in after if name in self._children],
            on_change=self._tell,
        )
        self._children[child.name] = child
        return child

    def start(self) -> None:
        """Start everything and wait until all of it is ready.

        Errors: SERVICE_UNAVAILABLE with the end of the log of the first child that failed.
        """
        for child in self._children.values():
            child.start()
        deadline = time.monotonic() + _LONGEST_START_S
        while not all(child.state is State.READY for child in self._children.values()):
            if self._first_failure is not None:
                raise self._first_failure
            if time.monotonic() > deadline:
                late = [child.name for child in self._children.values() if child.state is not State.READY]
                raise unavailable(
                    Reason.SERVICE_UNAVAILABLE, f"not ready after {_LONGEST_START_S:g} s: {', '.join(late)}"
                )
            self._progress.wait(POLL_S)
            self._progress.clear()

    def stop(self) -> None:
        """Stop everything: first what nothing else was started after, and so on down."""
        waves = stop_waves(list(self._children.values()))
        for wave in waves:
            threads = [threading.Thread(target=child.stop, name=f"stop-{child.name}") for child in wave]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()

    def _tell(self, child: Child) -> None:
        with self._telling:
            # The first one: what waits for a failed child fails as well, and its message says less.
            self._first_failure = self._first_failure or child.failure
            self._on_change(child)
        self._progress.set()


def stop_waves(children: Sequence[Child]) -> list[list[Child]]:
    """The order to stop in: each wave holds the children that no child still running was started after."""
    left = list(children)
    waves: list[list[Child]] = []
    while left:
        needed = {other.name for child in left for other in child.after}
        wave = [child for child in left if child.name not in needed]
        waves.append(wave)
        left = [child for child in left if child.name in needed]
    return waves
