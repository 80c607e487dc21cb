"""What Ray raises, as ours: the error inside, or what the loss of a process means for an attempt."""

from __future__ import annotations

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError, internal


def from_ray(error: BaseException) -> VoxfleetError:
    """The VoxfleetError that a remote call raised, or the one that Ray's own failure amounts to.

    A dead worker or node is WORKER_LOST of class NODE (try elsewhere), a worker that Ray's memory
    monitor killed is of class RESOURCE, a full object store or a late answer is TRANSIENT.
    """
    import ray.exceptions as ray_errors

    inner = _inner(error)
    if inner is not None:
        return inner
    if isinstance(error, ray_errors.OutOfMemoryError):
        return _lost("Ray ended a worker because its node ran out of memory", error, FailureClass.RESOURCE)
    if isinstance(error, ray_errors.RuntimeEnvSetupError):
        return internal(f"a worker could not be set up: {error}")
    if isinstance(error, ray_errors.TaskCancelledError):
        return VoxfleetError(Reason.CANCELLED, "the call was cancelled", kind=Kind.CANCELLED)
    if isinstance(error, ray_errors.RayTaskError):
        return internal(f"a worker raised {type(error.cause).__name__}: {error.cause}")
    if isinstance(
        error, ray_errors.GetTimeoutError | ray_errors.ObjectStoreFullError | ray_errors.OutOfDiskError
    ):
        return _lost("a worker's answer did not come", error, FailureClass.TRANSIENT)
    if isinstance(error, ray_errors.RayError):
        return _lost("a worker or its node died", error, FailureClass.NODE)
    if isinstance(error, ConnectionError | TimeoutError):
        return _lost("Ray does not answer", error, FailureClass.NODE)
    return internal(f"{type(error).__name__}: {error}")


def _inner(error: BaseException | None) -> VoxfleetError | None:
    """The VoxfleetError in a chain of RayTaskErrors: a call that called a call has several."""
    from ray.exceptions import RayTaskError

    # Ray's wrapper is of the cause's class as well, without having been made by its constructor.
    while isinstance(error, RayTaskError):
        error = error.cause
    return error if isinstance(error, VoxfleetError) else None


def _lost(what: str, error: BaseException, failure: FailureClass) -> VoxfleetError:
    detail = " ".join(str(error).split())[:300]
    return VoxfleetError(
        Reason.WORKER_LOST,
        f"{what}: {detail}" if detail else what,
        kind=Kind.UNAVAILABLE,
        metadata={"ray_error": type(error).__name__},
        retry_after_s=5.0,
        user_message="A machine was lost while it worked on this. The work is tried again.",
        failure=failure,
    )
