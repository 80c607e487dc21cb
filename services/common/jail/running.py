"""Runs a piece of work on files in a process of its own, jailed, and watches it.

Nothing that the child says is believed beyond its form: an answer is JSON of bounded size, a refusal is told
on as the file's own fault, an output is bytes that whoever asked reads as data.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import services
from services.common.errors import Kind, Reason, VoxfleetError, unavailable
from services.common.jail.work import ANSWER_BYTES, LOCKED, JailLimits, Ticket

_LOOK_S: Final = 0.1
_LOG_BYTES: Final = 4000
_REFUSAL_CHARS: Final = 1000
_ROOT: Final = Path(services.__file__).resolve().parent.parent


class BrokenError(Exception):
    """The work did not come to an end.

    ``cause`` is ``time``, ``memory`` or ``crash``; or ``start``, where it had not read a byte of its file and
    something else is at fault. The text says more.
    """

    def __init__(self, cause: str, text: str) -> None:
        super().__init__(text)
        self.cause = cause


async def run_jailed(
    work: str,
    *,
    inputs: Mapping[str, Path],
    outputs: Mapping[str, Path],
    facts: Mapping[str, Any] | None = None,
    limits: JailLimits | None = None,
) -> Mapping[str, Any]:
    """What a piece of work says of some files.

    Cancelling it ends the child. Outputs that are there after a failure mean nothing.

    Args:
        work: ``module:ATTRIBUTE`` of a :class:`~services.common.jail.work.Work`.
        inputs: files that it reads, by the names it knows them by.
        outputs: files that it writes; none of them may exist.
        facts: plain data for it.
        limits: what it may use.

    Returns:
        What it made, plain data of a process that may have been taken over: to be checked.

    Raises:
        BrokenError: it took too long, too much memory, or crashed.
        VoxfleetError: it refused the file; SERVICE_UNAVAILABLE where there is no jail on this machine.
    """
    limits = limits or JailLimits()
    async with AsyncExitStack() as stack:
        opened = {
            name: _opened(stack, path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            for name, path in inputs.items()
        }
        made = {
            name: _opened(stack, path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
            for name, path in outputs.items()
        }
        reading, writing = os.pipe()
        stack.callback(os.close, reading)
        log = stack.enter_context(tempfile.NamedTemporaryFile())  # noqa: SIM115 - the stack closes it
        ticket = Ticket(
            work,
            opened,
            made,
            writing,
            os.getpid(),
            facts or {},
            limits.memory_bytes,
            limits.cpu_s,
            limits.output_bytes,
            limits.landlock,
        )
        try:
            process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-P",
                "-m",
                "services.common.jail.child",
                json.dumps(asdict(ticket)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=_environment(),
                cwd="/",
                pass_fds=(*opened.values(), *made.values(), writing),
                start_new_session=True,
            )
        finally:
            os.close(writing)
        async with _ended(process):
            answer = await _answer(process, reading, limits)
        if answer is None:
            log.seek(0)
            last = log.read(_LOG_BYTES).decode(errors="replace").strip().rpartition("\n")[2]
            raise BrokenError("start", last or f"it ended with status {process.returncode}")
    return _judged(answer)


def _environment() -> dict[str, str]:
    """No secrets, one thread, and where the code is."""
    roots = [_ROOT, _ROOT / "protos" / "gen", _ROOT / "sdk"]
    # No more threads than one: none can be started once the jail is locked.
    single = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    return {
        "PYTHONPATH": os.pathsep.join(str(root) for root in roots),
        "PYTHONDONTWRITEBYTECODE": "1",
        **single,
    }


def _opened(stack: AsyncExitStack, path: Path, flags: int) -> int:
    number = os.open(path, flags, 0o600)
    stack.callback(os.close, number)
    return number


@asynccontextmanager
async def _ended(process: asyncio.subprocess.Process) -> AsyncIterator[None]:
    """Whatever happens, the child is gone afterwards."""
    try:
        yield
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        await asyncio.shield(process.wait())


async def _answer(
    process: asyncio.subprocess.Process, reading: int, limits: JailLimits
) -> Mapping[str, Any] | None:
    """The child's answer; None where it ended before it had read anything. Errors: BrokenError."""
    os.set_blocking(reading, False)
    loop = asyncio.get_running_loop()
    ends = loop.time() + limits.start_s
    said, locked = b"", False
    least_bytes = 0
    while True:
        ended = process.returncode is not None
        said = _read(reading, said)
        if not locked and said.startswith(LOCKED):
            said, locked = said[len(LOCKED) :], True
            ends = loop.time() + limits.wall_s
            least_bytes = _held_bytes(process.pid)
        if ended:
            break
        if loop.time() > ends:
            what = f"{limits.wall_s:g} s" if locked else f"{limits.start_s:g} s to start"
            raise BrokenError("time" if locked else "start", f"it took more than {what}")
        # Beside RLIMIT_DATA, which knows nothing of memory that is shared.
        if locked and _held_bytes(process.pid) - least_bytes > limits.memory_bytes:
            raise BrokenError("memory", f"it took more than {limits.memory_bytes >> 20} MiB")
        with suppress(TimeoutError):
            await asyncio.wait_for(process.wait(), _LOOK_S)
    if process.returncode in (-signal.SIGXCPU, -signal.SIGKILL) and locked:
        raise BrokenError("time", f"it took more than {limits.cpu_s} s of processor time, or was killed")
    if not locked and not said:
        return None
    try:
        answer = json.loads(said)
    except ValueError:
        raise BrokenError("crash", f"it ended with status {process.returncode}") from None
    return answer if isinstance(answer, dict) else {}


def _read(descriptor: int, before: bytes) -> bytes:
    """All that was said so far. Errors: BrokenError."""
    while True:
        try:
            piece = os.read(descriptor, 65536)
        except BlockingIOError:
            return before
        if not piece:
            return before
        before += piece
        if len(before) > ANSWER_BYTES:
            raise BrokenError("crash", "it says more than there is to say")


def _held_bytes(pid: int) -> int:
    """Memory of a process that no file stands behind."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith(("RssAnon:", "RssShmem:")))


def _judged(answer: Mapping[str, Any]) -> Mapping[str, Any]:
    match answer:
        case {"made": dict() as made}:
            return made
        case {"refused": [str() as reason, str() as message, dict() as metadata]}:
            known = Reason(reason) if reason in Reason.__members__ else Reason.MODEL_CORRUPT
            plain = {str(key)[:64]: str(value)[:_REFUSAL_CHARS] for key, value in metadata.items()}
            text = "".join(char if char.isprintable() else "?" for char in message[:_REFUSAL_CHARS])
            # Whatever the child thinks of it: the file is at fault, and no repeat mends that.
            raise VoxfleetError(known, text, kind=Kind.INVALID, metadata=plain)
        case {"unavailable": str() as why}:
            raise unavailable(
                Reason.SERVICE_UNAVAILABLE,
                f"files from outside are not opened here: {why[:_REFUSAL_CHARS]}",
                retry_after_s=60.0,
            )
        case {"broke": "memory"}:
            raise BrokenError("memory", "it needs more memory than is allowed")
        case {"broke": str() as what}:
            raise BrokenError("crash", what[:100])
    raise BrokenError("crash", "its answer is none")
