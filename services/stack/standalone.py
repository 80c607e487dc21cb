"""Run one component without the rest of the stack, as tests do."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field

from services.stack.process import Child, ProcessSpec


@dataclass(frozen=True, kw_only=True)
class Standalone(abc.ABC):
    """A component that can also be started and stopped by hand.

    The thread that waits for the process belongs to this process: when it ends, so does the child.
    """

    _running: list[Child] = field(default_factory=list, init=False, repr=False, compare=False)

    @property
    @abc.abstractmethod
    def spec(self) -> ProcessSpec:
        """How to run it."""

    @abc.abstractmethod
    def prepare(self) -> None:
        """Make ready what it needs on disk; called before every start."""

    @abc.abstractmethod
    def is_ready(self) -> bool:
        """Whether it answers."""

    @abc.abstractmethod
    def clean_up(self) -> None:
        """Remove what nobody needs again, when it has ended for good."""

    def start(self, timeout_s: float = 120.0) -> None:
        """Run it until it answers.

        Errors: SERVICE_UNAVAILABLE with the end of its log.
        """
        child = Child(self, restart=False)
        self._running.append(child)
        child.start()
        child.wait_ready(timeout_s)

    def stop(self) -> None:
        """End what :meth:`start` began, and everything that it started."""
        while self._running:
            self._running.pop().stop()

    @property
    def pid(self) -> int | None:
        """The process that :meth:`start` began, None where there is none."""
        return self._running[-1].pid if self._running else None
