"""A command works beside the thread that an interrupt strikes."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator

import pytest

from voxfleet.cli.interrupts import interruptible


@pytest.fixture(autouse=True)
def own_handler() -> Iterator[None]:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_what_it_raises_comes_through() -> None:
    def fail() -> None:
        raise SystemExit(7)

    with pytest.raises(SystemExit, match="7"):
        interruptible(fail, lambda: None)


def test_it_runs_in_another_thread() -> None:
    ran: list[threading.Thread] = []
    interruptible(lambda: ran.append(threading.current_thread()), lambda: None)
    assert ran[0] is not threading.main_thread()


def test_an_interrupt_stops_it_and_lets_it_clean_up() -> None:
    stopped, cleaned = threading.Event(), threading.Event()

    def work() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        try:
            assert stopped.wait(30)
        finally:
            cleaned.set()

    with pytest.raises(KeyboardInterrupt):
        interruptible(work, stopped.set)
    assert cleaned.is_set()
    assert signal.getsignal(signal.SIGINT) is signal.SIG_DFL, "the next one ends the process"
