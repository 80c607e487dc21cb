"""What a jail holds back, tried from inside."""

import asyncio
import os
import struct
from pathlib import Path

import pytest

from services.common.errors import FailureClass, Kind, Reason, VoxfleetError
from services.common.jail import kernel
from services.common.jail.running import BrokenError, run_jailed
from services.common.jail.work import JailLimits
from tests.polling import until

WORKS = "tests.unit.jail.works"


async def jailed(work, tmp_path, *, facts=None, outputs=None, **limits):
    source = tmp_path / "in"
    source.write_bytes(b"abc")
    found = outputs if outputs is not None else {"out": tmp_path / "out"}
    return await run_jailed(
        f"{WORKS}:{work}", inputs={"in": source}, outputs=found, facts=facts, limits=JailLimits(**limits)
    )


async def test_it_reads_its_input_and_writes_its_output(tmp_path, monkeypatch):
    monkeypatch.setenv("VOXFLEET_S3_SECRET_KEY", "secret")
    made = await jailed("COPY", tmp_path, facts={"say": "hello"})
    assert (made["size"], made["said"]) == (3, "hello")
    assert (tmp_path / "out").read_bytes() == b"cba"
    assert not [name for name in made["environment"] if "VOXFLEET" in name or "SECRET" in name]


@pytest.mark.parametrize("landlock", [True, False])
async def test_there_is_no_way_out_with_the_second_layer_or_without(tmp_path, landlock):
    facts = {"path": str(tmp_path / "made"), "parent": os.getpid()}
    made = await jailed("TRIES", tmp_path, facts=facts, landlock=landlock)
    # system() says by its status that nothing could be started.
    assert made.pop("system") != "0"
    # Python says so of limits by a ValueError.
    assert made.pop("limits") in ("ValueError", "PermissionError")
    assert set(made.values()) <= {"PermissionError", "OSError"}, made
    assert not (tmp_path / "made").exists()


async def test_fifty_gigabytes_are_refused(tmp_path):
    with pytest.raises(BrokenError, match="memory") as caught:
        await jailed("ALLOCATES", tmp_path, memory_bytes=1 << 30)
    assert caught.value.cause == "memory"


async def test_shared_memory_is_counted_too(tmp_path):
    with pytest.raises(BrokenError) as caught:
        await jailed("SHARES", tmp_path, memory_bytes=64 << 20)
    assert caught.value.cause == "memory"


@pytest.mark.parametrize(("work", "limits"), [("LOOPS", {"cpu_s": 1}), ("SLEEPS", {"wall_s": 0.5})])
async def test_what_never_ends_is_ended(tmp_path, work, limits):
    with pytest.raises(BrokenError) as caught:
        await jailed(work, tmp_path, **limits)
    assert caught.value.cause == "time"


@pytest.mark.parametrize("work", ["CRASHES", "FAILS", "TALKS"])
async def test_a_crash_is_told_from_a_refusal(tmp_path, work):
    with pytest.raises(BrokenError) as caught:
        await jailed(work, tmp_path)
    assert caught.value.cause == "crash"


async def test_a_refusal_comes_through_as_the_files_fault_without_control_characters(tmp_path):
    with pytest.raises(VoxfleetError) as caught:
        await jailed("REFUSES", tmp_path)
    error = caught.value
    assert (error.reason, error.kind, error.failure) == (
        Reason.MODEL_CORRUPT,
        Kind.INVALID,
        FailureClass.INPUT,
    )
    assert error.message == "no such thing?[31m"
    assert error.metadata == {"file": "it"}


async def test_an_output_has_an_end(tmp_path):
    with pytest.raises(BrokenError):
        await jailed("WRITES", tmp_path, output_bytes=1 << 20)
    assert (tmp_path / "out").stat().st_size <= 1 << 20


async def test_no_output_replaces_a_file_and_no_input_is_a_link(tmp_path):
    (tmp_path / "out").write_bytes(b"mine")
    with pytest.raises(FileExistsError):
        await jailed("COPY", tmp_path, facts={"say": ""})
    (tmp_path / "link").symlink_to(tmp_path / "out")
    with pytest.raises(OSError):
        await run_jailed(f"{WORKS}:COPY", inputs={"in": tmp_path / "link"}, outputs={})
    assert (tmp_path / "out").read_bytes() == b"mine"


async def test_a_cancelled_call_leaves_no_child(tmp_path):
    before = _children()
    task = asyncio.create_task(jailed("SLEEPS", tmp_path, wall_s=600.0))
    await asyncio.to_thread(until, lambda: bool(_children() - before))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not _children() - before


def _verdict(program: bytes, arch: int, number: int, third: int = 0) -> int:
    """What a filter says of a system call: Linux' classic BPF, as far as the filter uses it."""
    at, value = 0, 0
    while True:
        code, hit, miss, operand = struct.unpack_from("<HBBI", program, 8 * at)
        at += 1
        if code == kernel._LD:
            value = {0: number, 4: arch, 32: third}[operand]
        elif code == kernel._JEQ:
            at += hit if value == operand else miss
        elif code == kernel._JSET:
            at += hit if value & operand else miss
        else:
            return operand


@pytest.mark.parametrize("machine", kernel._ARCHES)
def test_the_filter_of_each_processor_allows_its_list_and_no_more(machine):
    column, arch = kernel._ARCHES[machine]
    allowed = [numbers[column] for numbers in kernel._ALLOWED.values()]
    mapping = [numbers[column] for numbers in kernel._MAPPING.values()]
    program = kernel._program(arch, allowed, mapping)
    refused = kernel._ERRNO | kernel._EPERM
    for number in range(600):
        wanted = kernel._ALLOW if number in allowed or number in mapping else refused
        assert _verdict(program, arch, number) == wanted, number
        # The 32-bit names of the same calls, on x86-64.
        assert _verdict(program, arch, number | 0x40000000) == refused
    for number in mapping:
        assert _verdict(program, arch, number, third=7) == refused
    assert _verdict(program, arch ^ 1, allowed[0]) == kernel._KILL_PROCESS


async def test_without_a_filter_of_system_calls_nothing_is_opened(tmp_path, monkeypatch):
    """On a machine that the filter does not know, the refusal says so."""
    monkeypatch.setattr(kernel.platform, "machine", lambda: "riscv64")
    with pytest.raises(kernel.JailUnavailableError, match="riscv64"):
        kernel._filter_calls()


def _children():
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())
