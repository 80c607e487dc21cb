"""Real child processes, killed, stopped and starved."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import numpy as np
import pytest

from services.audio.adapters.process_examiner import ProcessExaminer
from services.common.errors import Reason, VoxfleetError
from tests.unit.audio_service.bench import encoded, tone, until

BOUNDS = {"max_duration_s": 600.0, "max_channels": 2}


@pytest.fixture(scope="module")
def wav(tmp_path_factory):
    path = tmp_path_factory.mktemp("examiner") / "tone.wav"
    path.write_bytes(encoded(tone(1)))
    return path


@pytest.fixture
async def examiner():
    made = ProcessExaminer(workers=1, time_limit_s=60.0, memory_bytes=0)
    yield made
    made.close()


def is_stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


async def test_a_child_answers_dies_hangs_and_is_replaced(examiner, wav, tmp_path):
    """One child for all of it: each start costs a second of imports."""
    child = examiner._children[0]
    found = await examiner.examine(wav, **BOUNDS)
    assert found.media_type == "audio/wav"
    assert found.measures.duration_s == pytest.approx(1.0)
    assert await examiner.outline(wav, 3) == pytest.approx((0.2, 0.2, 0.2), abs=0.01)
    first = child.pid

    # What it refuses, it refuses in the words of the decoder, and lives on.
    bad = tmp_path / "bad"
    bad.write_bytes(b"hello" * 100)
    with pytest.raises(VoxfleetError) as caught:
        await examiner.examine(bad, **BOUNDS)
    assert caught.value.reason is Reason.INVALID_FORMAT
    assert "supported_formats" in caught.value.metadata
    assert child.pid == first

    # Killed between two files, it is replaced, and the file is measured.
    os.kill(first, signal.SIGKILL)
    assert (await examiner.examine(wav, **BOUNDS)).measures.duration_s == pytest.approx(1.0)
    second = child.pid
    assert second != first

    # One that hangs is killed at its time limit, and the file refused.
    os.kill(second, signal.SIGSTOP)
    await until(lambda: is_stopped(second))
    examiner._time_limit_s = 0.2
    with pytest.raises(VoxfleetError) as caught:
        await examiner.examine(wav, **BOUNDS)
    assert caught.value.reason is Reason.INVALID_FORMAT
    assert "0.2 s" in caught.value.message
    await until(lambda: not Path(f"/proc/{second}").exists())


async def test_a_file_that_kills_every_child_is_refused_and_the_service_lives(examiner, wav, monkeypatch):
    """A crash is what a hostile file would do to the decoder."""
    await examiner.warm()
    child = examiner._children[0]
    asked = []
    ensure = child._ensure

    def ensure_and_kill():
        connection = ensure()
        asked.append(child.pid)
        os.kill(child.pid, signal.SIGSEGV)
        child._process.join()
        return connection

    monkeypatch.setattr(child, "_ensure", ensure_and_kill)
    with pytest.raises(VoxfleetError) as caught:
        await examiner.examine(wav, **BOUNDS)
    assert caught.value.reason is Reason.INVALID_FORMAT
    assert "crash" in caught.value.message
    assert len(set(asked)) == 2
    monkeypatch.setattr(child, "_ensure", ensure)
    assert (await examiner.examine(wav, **BOUNDS)).media_type == "audio/wav"


async def test_a_caller_that_gives_up_does_not_break_the_next(examiner, wav):
    await examiner.warm()
    calls = [asyncio.create_task(examiner.examine(wav, **BOUNDS)) for _ in range(3)]
    await asyncio.sleep(0)
    calls[0].cancel()
    calls[1].cancel()
    assert (await calls[2]).measures.duration_s == pytest.approx(1.0)
    assert (await examiner.outline(wav, 2)) == pytest.approx((0.2, 0.2), abs=0.01)


async def test_a_child_has_bounded_memory(tmp_path):
    """A small file of a great many samples: FLAC of silence."""
    limit = 500 * 2**20
    made = ProcessExaminer(workers=1, time_limit_s=60.0, memory_bytes=limit)
    bomb = tmp_path / "bomb.flac"
    bomb.write_bytes(encoded(np.zeros((200 * 48_000, 2), np.int16), 48_000, "FLAC"))
    assert bomb.stat().st_size < 5 * 2**20
    try:
        with pytest.raises(VoxfleetError) as caught:
            await made.examine(bomb, max_duration_s=1800.0, max_channels=2)
    finally:
        made.close()
    assert caught.value.reason is Reason.INVALID_FORMAT
