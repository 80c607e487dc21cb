"""Ctrl-C that ends a command wherever it is.

Python raises KeyboardInterrupt between any two steps of the main thread. In the midst of gRPC's own locking
that leaves a lock taken for ever, or given back twice, and then the channel cannot be closed any more. So a
command works in a thread of its own, and the main thread, which the interrupt strikes, only waits for it.
"""

from __future__ import annotations

import contextvars
import signal
import threading
from collections.abc import Callable

_LOOK_S = 0.5
"""Where waiting for a thread cannot be interrupted (Windows), the interrupt is noticed so often."""
_GRACE_S = 5.0


def interruptible(function: Callable[[], None], stop: Callable[[], None]) -> None:
    """Runs a function, and raises what it raises.

    After a first interrupt a second one ends the process at once.

    Args:
        function: runs in a thread of its own.
        stop: makes it end early, from this thread.

    Raises:
        KeyboardInterrupt: once the function was stopped, or did not stop in a few seconds.
    """
    failures: list[BaseException] = []
    context = contextvars.copy_context()

    def work() -> None:
        try:
            context.run(function)
        except BaseException as error:  # noqa: BLE001 - raised again by the thread that waits
            failures.append(error)

    worker = threading.Thread(target=work, name="command", daemon=True)
    try:
        worker.start()
        while worker.is_alive():
            worker.join(_LOOK_S)
    except KeyboardInterrupt:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Beside: closing a channel in the midst of a call has been seen to wait for ever.
        stopper = threading.Thread(target=stop, name="stop", daemon=True)
        stopper.start()
        stopper.join(_GRACE_S)
        # It may not even have begun.
        if worker.is_alive():
            worker.join(_GRACE_S)
        raise
    if failures:
        raise failures[0]
