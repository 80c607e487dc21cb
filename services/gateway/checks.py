"""Collects all that is wrong with a request, to be said at once."""

from __future__ import annotations

from collections.abc import Iterable

from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError


class Checks:
    """Collects what is wrong with a request."""

    def __init__(self) -> None:
        self._violations: list[FieldViolation] = []
        self._reason: Reason | None = None
        self._metadata: dict[str, object] = {}

    def wrong(
        self, field: str, description: str, reason: Reason = Reason.INVALID_ARGUMENT, **metadata: object
    ) -> None:
        """Notes a violation; the first reason other than INVALID_ARGUMENT names the whole error."""
        self._violations.append(FieldViolation(field, description))
        if self._reason in (None, Reason.INVALID_ARGUMENT):
            self._reason = reason
        self._metadata |= metadata

    def within(self, field: str, value: float, low: float, high: float) -> None:
        """Notes a number outside of ``low`` to ``high``."""
        if not low <= value <= high:
            self.wrong(field, f"must be from {low:g} to {high:g}, not {value:g}")

    def one_of(self, field: str, value: str, allowed: tuple[str, ...]) -> None:
        """Notes a word that is not one of those allowed."""
        if value not in allowed:
            self.wrong(field, f"must be one of {', '.join(filter(None, allowed))}, not {value[:40]!r}")

    def note(self, violations: Iterable[FieldViolation]) -> None:
        """Notes what others found wrong."""
        for violation in violations:
            self.wrong(violation.field, violation.description)

    def finish(self) -> None:
        """Raises what was noted, if anything."""
        if self._violations:
            text = "; ".join(f"{v.field}: {v.description}" for v in self._violations)
            raise VoxfleetError(
                self._reason or Reason.INVALID_ARGUMENT,
                text,
                kind=Kind.INVALID,
                metadata=self._metadata,
                violations=self._violations,
            )
