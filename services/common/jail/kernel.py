"""What a process gives up for good: rights, system calls, files, memory.

The numbers are those of Linux' ``uapi`` headers: ``seccomp.h``, ``bpf_common.h``, ``audit.h``,
``landlock.h``, ``prctl.h`` and the system call tables of x86-64 and arm64.
"""

from __future__ import annotations

import ctypes
import os
import platform
import resource
import signal
import struct
from pathlib import Path

_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_SECCOMP, _PR_SET_NO_NEW_PRIVS = 1, 4, 22, 38
_SECCOMP_MODE_FILTER = 2
_ARCHES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

# Reading and writing what is open already, memory, time, ends: nothing that opens, connects, starts, signals.
_ALLOWED: dict[str, tuple[int, int]] = {
    "read": (0, 63),
    "write": (1, 64),
    "close": (3, 57),
    "fstat": (5, 80),
    "lseek": (8, 62),
    "munmap": (11, 215),
    "brk": (12, 214),
    "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135),
    "rt_sigreturn": (15, 139),
    "pread64": (17, 67),
    "pwrite64": (18, 68),
    "readv": (19, 65),
    "writev": (20, 66),
    "sched_yield": (24, 124),
    "mremap": (25, 216),
    "madvise": (28, 233),
    "getpid": (39, 172),
    "exit": (60, 93),
    "fsync": (74, 82),
    "ftruncate": (77, 46),
    "gettimeofday": (96, 169),
    "getrusage": (98, 165),
    "sigaltstack": (131, 132),
    "gettid": (186, 178),
    "futex": (202, 98),
    "sched_getaffinity": (204, 123),
    "restart_syscall": (219, 128),
    "clock_gettime": (228, 113),
    "clock_getres": (229, 114),
    "clock_nanosleep": (230, 115),
    "exit_group": (231, 94),
    "newfstatat": (262, 79),
    "getrandom": (318, 278),
}
_MAPPING: dict[str, tuple[int, int]] = {"mmap": (9, 222), "mprotect": (10, 226)}
"""Allowed where what is mapped is not to be executed."""
_PROT_EXEC = 4

_LD, _JEQ, _JSET, _RET = 0x20, 0x15, 0x45, 0x06
_KILL_PROCESS, _ERRNO, _ALLOW = 0x80000000, 0x00050000, 0x7FFF0000
_EPERM = 1
_AT_NUMBER, _AT_ARCH, _AT_THIRD_ARGUMENT = 0, 4, 32

_LANDLOCK_CREATE, _LANDLOCK_RESTRICT = 444, 446
_LANDLOCK_VERSION = 1
# How many accesses to files each version of the interface knows; those to the network came with the fourth.
_FILE_BITS = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
_NETWORK_BITS = 2


class JailUnavailableError(Exception):
    """This kernel lacks a layer without which no untrusted file is opened."""


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


_libc = ctypes.CDLL(None, use_errno=True)


def die_with(parent: int) -> None:
    """Lets this process be killed as soon as the one that started it is gone."""
    _prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def bound_resources(*, memory_bytes: int, cpu_s: int, output_bytes: int) -> None:
    """Limits from here on, beyond what is used already; lower ones cannot be raised again.

    Memory is bounded by what a process may write to (RLIMIT_DATA): torch maps gigabytes of address space
    that it never touches.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    cpu_s += int(used.ru_utime + used.ru_stime) + 1
    for kind, most in (
        (resource.RLIMIT_DATA, _data_bytes() + memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_NPROC, 0),
        (resource.RLIMIT_MSGQUEUE, 0),
        (resource.RLIMIT_MEMLOCK, 0),
    ):
        hard = resource.getrlimit(kind)[1]
        bound = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(kind, (bound, bound))
    hard = resource.getrlimit(resource.RLIMIT_CPU)[1]
    if hard == resource.RLIM_INFINITY or hard > cpu_s:
        # First a signal that tells what it was; who ignores that is killed.
        resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s + 2))
    # A write beyond the limit is an error, not a signal that ends without a word.
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)


def lock(*, landlock: bool = True) -> bool:
    """Gives up new rights, files and system calls, for good.

    Returns:
        Whether Landlock holds as well: it is the second layer, and not every kernel has it.

    Raises:
        JailUnavailableError: there is no seccomp, or no filter for this processor.
    """
    _prctl(_PR_SET_DUMPABLE, 0)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)
    held = landlock and _restrict_files()
    _filter_calls()
    return held


def _restrict_files() -> bool:
    """A Landlock domain without a rule: no file can be opened, no port used. False where there is none."""
    version = _libc.syscall(_LANDLOCK_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint(_LANDLOCK_VERSION))
    if version < 1:
        return False
    files = (1 << _FILE_BITS.get(version, max(_FILE_BITS.values()))) - 1
    network = (1 << _NETWORK_BITS) - 1 if version >= 4 else 0
    attributes = struct.pack("<QQ", files, network) if version >= 4 else struct.pack("<Q", files)
    rules = _libc.syscall(_LANDLOCK_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint(0))
    if rules < 0:
        return False
    try:
        return bool(_libc.syscall(_LANDLOCK_RESTRICT, ctypes.c_int(rules), ctypes.c_uint(0)) == 0)
    finally:
        os.close(rules)


def _filter_calls() -> None:
    machine = platform.machine()
    if machine not in _ARCHES:
        raise JailUnavailableError(f"there is no filter of system calls for {machine}")
    column, arch = _ARCHES[machine]
    code = _program(
        arch,
        [numbers[column] for numbers in _ALLOWED.values()],
        [numbers[column] for numbers in _MAPPING.values()],
    )
    program = _Program(len(code) // 8, code)
    try:
        _prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, ctypes.byref(program))
    except OSError as error:
        raise JailUnavailableError(f"this kernel filters no system calls: {error.strerror}") from error


def _program(arch: int, allowed: list[int], mapping: list[int]) -> bytes:
    """The filter. What is not allowed fails with EPERM; another architecture's calls end the process."""
    total = len(allowed) + len(mapping)
    steps = [
        (_LD, 0, 0, _AT_ARCH),
        (_JEQ, 1, 0, arch),
        (_RET, 0, 0, _KILL_PROCESS),
        (_LD, 0, 0, _AT_NUMBER),
        # A hit jumps over the rest of the list, and the refusal behind it.
        *((_JEQ, total - at, 0, number) for at, number in enumerate(allowed)),
        *((_JEQ, len(mapping) - at + 1, 0, number) for at, number in enumerate(mapping)),
        (_RET, 0, 0, _ERRNO | _EPERM),
        (_RET, 0, 0, _ALLOW),
        (_LD, 0, 0, _AT_THIRD_ARGUMENT),
        (_JSET, 0, 1, _PROT_EXEC),
        (_RET, 0, 0, _ERRNO | _EPERM),
        (_RET, 0, 0, _ALLOW),
    ]
    return b"".join(struct.pack("<HBBI", *step) for step in steps)


def _prctl(option: int, *arguments: object) -> None:
    padded = [*arguments, *([0] * (4 - len(arguments)))]
    values = [ctypes.c_ulong(value) if isinstance(value, int) else value for value in padded]
    if _libc.prctl(ctypes.c_int(option), *values) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def _data_bytes() -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmData:"):
            return int(line.split()[1]) * 1024
    return 0
