"""Start a program so that it cannot outlive its parent, then become that program.

Run as ``python -I -S launch.py DEATH_SIGNAL PARENT_PID IDENTITY PROGRAM ARG…``. It is a program of
its own, because the same calls in a ``preexec_fn`` would run Python between fork and exec inside a
process full of threads and gRPC state, which can deadlock. Only the standard library, for its speed.

IDENTITY is ``same``, ``userns`` (an ordinary uid inside a new user namespace: PostgreSQL refuses
root, and this needs no second account) or ``uid:N`` (become uid and gid N).
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path
from typing import NoReturn

PR_SET_PDEATHSIG = 1
CLONE_NEWUSER = 0x10000000
INNER_UID = 1000
EXIT_ORPHANED = 125
EXIT_IDENTITY_REFUSED = 126
EXIT_NOT_RUN = 127


def enter_user_namespace() -> None:
    """Move into a new user namespace in which the present uid and gid appear as an ordinary user's."""
    uid, gid = os.geteuid(), os.getegid()
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWUSER) != 0:
        raise OSError(ctypes.get_errno(), "unshare(CLONE_NEWUSER)")
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{INNER_UID} {uid} 1"),
        ("gid_map", f"{INNER_UID} {gid} 1"),
    ):
        Path(f"/proc/self/{name}").write_text(text, encoding="ascii")


def take_identity(identity: str) -> None:
    """Become who ``identity`` says, for good."""
    if identity == "userns":
        enter_user_namespace()
    elif identity.startswith("uid:"):
        uid = int(identity.removeprefix("uid:"))
        os.setgroups([])
        os.setgid(uid)
        os.setuid(uid)


def main(arguments: list[str]) -> NoReturn:
    """Take the identity, tie this process's life to its parent's, and exec the program."""
    death_signal, parent_pid, identity, *command = arguments
    try:
        take_identity(identity)
    except OSError as error:
        sys.stderr.write(f"launch: cannot take identity {identity}: {error}\n")
        sys.exit(EXIT_IDENTITY_REFUSED)
    # After the identity: a change of credentials clears the parent-death signal.
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, int(death_signal), 0, 0, 0)
    if os.getppid() != int(parent_pid):
        sys.exit(EXIT_ORPHANED)  # the parent died before the signal was set, so it would never come
    try:
        os.execvp(command[0], command)  # noqa: S606  # becoming the program is the point
    except OSError as error:
        sys.stderr.write(f"launch: cannot run {command[0]}: {error.strerror}\n")
        sys.exit(EXIT_NOT_RUN)


if __name__ == "__main__":
    main(sys.argv[1:])
