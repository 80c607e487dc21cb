"""What the exit codes mean, and what to do about an error. Documented in ``docs/reference/cli.md``."""

from __future__ import annotations

from typing import Final

from voxfleet.client.errors import JobCancelled, JobFailed, VoxfleetError

OK: Final = 0
FAILED: Final = 1
USAGE: Final = 2
NOT_FOUND: Final = 3
INVALID: Final = 4
DENIED: Final = 5
UNAVAILABLE: Final = 6
JOB_FAILED: Final = 7
JOB_CANCELLED: Final = 8
CONFLICT: Final = 9
EXHAUSTED: Final = 10
INTERRUPTED: Final = 130

_OF_CODE: Final = {
    "CLIENT_CONFIGURATION": USAGE,
    "NOT_FOUND": NOT_FOUND,
    "INVALID_ARGUMENT": INVALID,
    "OUT_OF_RANGE": INVALID,
    "UNAUTHENTICATED": DENIED,
    "PERMISSION_DENIED": DENIED,
    "UNAVAILABLE": UNAVAILABLE,
    "DEADLINE_EXCEEDED": UNAVAILABLE,
    "FAILED_PRECONDITION": CONFLICT,
    "ALREADY_EXISTS": CONFLICT,
    "ABORTED": CONFLICT,
    "RESOURCE_EXHAUSTED": EXHAUSTED,
}

_HINTS: Final = {
    "UNAUTHENTICATED": "check the token: `voxfleet config` shows where it comes from",
    "PERMISSION_DENIED": "this key may not do that; an operator's key may",
    "UNAVAILABLE": "check the endpoint (`voxfleet config`) and whether the server is up, then repeat",
    "DEADLINE_EXCEEDED": "repeat with a longer --timeout",
    "ALREADY_EXISTS": "choose another id",
    "RESOURCE_EXHAUSTED": "`voxfleet fleet quota` shows the limits; repeat later",
    "INTERNAL": "a defect of the server: give an operator the trace id",
    "UNIMPLEMENTED": "the server has not built this yet: `voxfleet fleet show` tells its version",
}


def exit_code(error: VoxfleetError) -> int:
    """The exit code of an error."""
    if isinstance(error, JobCancelled):
        return JOB_CANCELLED
    if isinstance(error, JobFailed):
        return JOB_FAILED
    return _OF_CODE.get(error.code, FAILED)


def hint(error: VoxfleetError) -> str:
    """What to do, where the message does not say it itself."""
    if isinstance(error, JobFailed):
        job_id = error.job.name.rpartition("/")[2]
        return f"`voxfleet job show {job_id}` tells its attempts; `voxfleet job retry {job_id}` runs it again"
    if error.retry_after_s:
        return f"repeat after {error.retry_after_s:g} s"
    return _HINTS.get(error.code, "")
