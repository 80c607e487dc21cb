"""Who calls, and under which request id: set by the interceptor, read anywhere below it."""

from __future__ import annotations

import contextvars
from dataclasses import dataclass
from typing import Final

from services.common.errors import Kind, Reason, VoxfleetError

TOKEN_HEADER: Final = "x-voxfleet-service-token"  # noqa: S105 - the header's name, not a secret
TEAM_HEADER: Final = "x-voxfleet-team"
KEY_HEADER: Final = "x-voxfleet-key"
OPERATOR_HEADER: Final = "x-voxfleet-operator"
REQUEST_ID_HEADER: Final = "x-request-id"


@dataclass(frozen=True, slots=True)
class Caller:
    """The principal behind a call.

    ``team`` is empty where a service calls in its own name (a worker); such a call sees all teams.
    """

    team: str = ""
    key: str = ""
    operator: bool = False
    request_id: str = ""

    @property
    def is_service(self) -> bool:
        """Whether a service calls in its own name."""
        return not self.team

    def headers(self) -> tuple[tuple[str, str], ...]:
        """As metadata of a call between services."""
        return (
            (TEAM_HEADER, self.team),
            (KEY_HEADER, self.key),
            (OPERATOR_HEADER, "1" if self.operator else "0"),
            (REQUEST_ID_HEADER, self.request_id),
        )


_current: contextvars.ContextVar[Caller | None] = contextvars.ContextVar("voxfleet_caller", default=None)


def current_caller() -> Caller:
    """The caller of the RPC being served; a service in its own name outside of one."""
    return _current.get() or Caller()


def set_caller(caller: Caller) -> None:
    """Sets the caller for the present task."""
    _current.set(caller)


def require_operator() -> Caller:
    """The caller, who must be an operator. Errors: PERMISSION_DENIED."""
    caller = current_caller()
    if not (caller.operator or caller.is_service):
        raise VoxfleetError(
            Reason.PERMISSION_DENIED,
            "this method is for operators: use an operator's key",
            kind=Kind.FORBIDDEN,
        )
    return caller
