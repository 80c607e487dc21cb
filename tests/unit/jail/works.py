"""What a hostile file might do, run in a jail by ``test_jail``."""

import _thread
import ctypes
import mmap
import os
import resource
import socket
import sys
import time
from pathlib import Path

from services.common.errors import Reason, invalid
from services.common.jail.work import Work


def _nothing():
    pass


def _copy(inputs, outputs, facts):
    data = inputs["in"].read()
    outputs["out"].write(data[::-1])
    return {"size": len(data), "said": facts["say"], "environment": sorted(os.environ)}


def _tries(inputs, outputs, facts):
    """What becomes of each way out: the name of the error, or what it gave."""

    def tried(way):
        try:
            return repr(way())
        except (OSError, ValueError) as error:
            return type(error).__name__

    return {
        "system": tried(lambda: os.system(f"touch {facts['path']}")),
        "fork": tried(os.fork),
        "exec": tried(lambda: os.execv(sys.executable, [sys.executable, "-c", ""])),
        "socket": tried(socket.socket),
        "open": tried(Path("/etc/hostname").read_text),
        "write": tried(lambda: Path(facts["path"]).write_text("x")),
        "environ of the parent": tried(Path(f"/proc/{facts['parent']}/environ").read_text),
        "kill": tried(lambda: os.kill(facts["parent"], 0)),
        "list": tried(lambda: list(Path("/").iterdir())),
        "code": tried(lambda: mmap.mmap(-1, 4096, prot=mmap.PROT_READ | mmap.PROT_EXEC)),
        "thread": tried(_start_thread),
        "limits": tried(lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (9, 9))),
    }


def _start_thread():
    try:
        _thread.start_new_thread(_nothing, ())
    except RuntimeError as error:
        raise OSError from error


def _allocates(inputs, outputs, facts):
    return {"got": len(bytearray(50 << 30))}


def _shares(inputs, outputs, facts):
    shared = mmap.mmap(-1, 1 << 30)
    for page in range(0, 1 << 30, 4096):
        shared[page] = 1
    return {"got": len(shared)}


def _loops(inputs, outputs, facts):
    while True:
        pass


def _sleeps(inputs, outputs, facts):
    while True:
        time.sleep(1000)


def _crashes(inputs, outputs, facts):
    ctypes.string_at(0)
    return {}


def _fails(inputs, outputs, facts):
    raise ValueError("as a library might")


def _refuses(inputs, outputs, facts):
    raise invalid(Reason.MODEL_CORRUPT, "no such thing\x1b[31m", file="it")


def _writes(inputs, outputs, facts):
    block = bytes(1 << 20)
    for _ in range(64):
        outputs["out"].write(block)
    return {}


def _talks(inputs, outputs, facts):
    return {"much": "x" * (1 << 20)}


COPY, TRIES, ALLOCATES, SHARES = (Work(_nothing, run) for run in (_copy, _tries, _allocates, _shares))
LOOPS, SLEEPS, CRASHES, FAILS = (Work(_nothing, run) for run in (_loops, _sleeps, _crashes, _fails))
REFUSES, WRITES, TALKS = (Work(_nothing, run) for run in (_refuses, _writes, _talks))
