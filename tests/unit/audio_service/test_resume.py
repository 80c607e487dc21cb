"""Streams that are cut, resumed, taken over."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from services.audio.records import ResumeStep
from services.common.errors import Kind, Reason, VoxfleetError, unavailable
from tests.unit.audio_service.bench import (
    CHUNK_BYTES,
    PART_BYTES,
    TEAM,
    Bench,
    Hanging,
    cut_after,
    open_step,
    sha256,
    stream,
    until,
    upload_name,
)

NAME = upload_name("cut-me")


def resume(offset: int) -> ResumeStep:
    return ResumeStep(NAME, offset)


@pytest.mark.parametrize("size", [1, CHUNK_BYTES, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES + 777])
async def test_a_cut_stream_keeps_all_it_sent_and_nothing_but_that(bench, speech, size):
    await cut_after(bench, open_step("cut-me"), speech[:size])

    record = await bench.uploads.state(NAME)
    assert record.durable_offset == size
    assert record.committed_audio == ""
    assert bench.catalog.audios == {}
    staged = bench.stored()
    assert all(key.startswith(f"teams/{TEAM}/staging/cut-me/") for key in staged)
    assert b"".join(bench.store.get_bytes(key) for key in staged) == speech[:size]
    assert list(bench.scratch_dir.iterdir()) == []


async def test_a_resumed_upload_has_identical_bytes(bench, speech):
    offset = 0
    step = open_step("cut-me", size_bytes=len(speech), sha256=sha256(speech))
    for size in (1, 70_000, 5, 100_001):
        await cut_after(bench, step, speech[offset : offset + size])
        offset = (await bench.uploads.state(NAME)).durable_offset
        step = resume(offset)
    audio = await bench.uploads.upload(stream(step, speech[offset:]))
    assert audio.sha256 == sha256(speech)
    assert [bench.store.get_bytes(key) for key in bench.stored()] == [speech]


@pytest.mark.parametrize("wrong", [0, 69_999, 70_001, 10**9])
async def test_a_wrong_offset_is_refused_with_the_right_one(bench, speech, wrong):
    await cut_after(bench, open_step("cut-me"), speech[:70_000])
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(resume(wrong), speech[wrong:]))
    assert caught.value.reason is Reason.UPLOAD_OFFSET_MISMATCH
    assert caught.value.kind is Kind.OUT_OF_RANGE
    right = int((await bench.uploads.state(NAME)).durable_offset)
    assert caught.value.metadata["durable_offset"] == str(right) == "70000"
    audio = await bench.uploads.upload(stream(resume(right), speech[right:]))
    assert audio.sha256 == sha256(speech)


async def test_a_stream_that_ends_early_is_incomplete_and_can_go_on(bench, speech):
    step = open_step("cut-me", size_bytes=len(speech))
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(step, speech[:90_000]))
    assert caught.value.reason is Reason.UPLOAD_INCOMPLETE
    assert caught.value.metadata == {"durable_offset": "90000", "size_bytes": str(len(speech))}
    assert bench.catalog.audios == {}
    assert not any("/sha256/" in key for key in bench.stored())
    audio = await bench.uploads.upload(stream(resume(90_000), speech[90_000:]))
    assert audio.sha256 == sha256(speech)


async def test_more_than_was_announced_is_incomplete_and_not_kept(bench, speech):
    step = open_step("cut-me", size_bytes=len(speech))
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(step, speech + b"and more"))
    assert caught.value.reason is Reason.UPLOAD_INCOMPLETE
    assert (await bench.uploads.state(NAME)).durable_offset == len(speech)
    assert bench.catalog.audios == {}
    audio = await bench.uploads.upload(stream(resume(len(speech)), b""))
    assert audio.sha256 == sha256(speech)


async def test_a_newer_stream_takes_over_from_one_that_hangs(bench, speech):
    """A client that lost its network comes back before the service has noticed."""
    hanging = Hanging(open_step("cut-me"), speech[: PART_BYTES + 10])
    old = asyncio.create_task(bench.uploads.upload(hanging.messages()))
    await hanging.drained.wait()
    await until(lambda: bench.catalog.uploads[NAME].durable_offset >= PART_BYTES)

    audio = await bench.uploads.upload(stream(resume(PART_BYTES), speech[PART_BYTES:]))
    assert audio.sha256 == sha256(speech)
    with pytest.raises(VoxfleetError) as caught:
        await old
    assert caught.value.reason is Reason.UPLOAD_OFFSET_MISMATCH
    assert caught.value.kind is Kind.ABORTED


async def test_many_resumes_at_once_make_one_audio(bench, speech):
    await cut_after(bench, open_step("cut-me"), speech[:70_000])
    calls = [bench.uploads.upload(stream(resume(70_000), speech[70_000:])) for _ in range(5)]
    results = await asyncio.gather(*calls, return_exceptions=True)
    audios = [found for found in results if not isinstance(found, BaseException)]
    refused = [found for found in results if isinstance(found, BaseException)]
    assert audios
    assert {audio.name for audio in audios} == set(bench.catalog.audios)
    assert {audio.sha256 for audio in audios} == {sha256(speech)}
    assert {error.reason for error in refused} <= {Reason.UPLOAD_OFFSET_MISMATCH}


async def test_opening_an_id_that_is_being_uploaded_disturbs_nobody(bench, speech):
    hanging = Hanging(open_step("cut-me"), speech[:10])
    old = asyncio.create_task(bench.uploads.upload(hanging.messages()))
    await hanging.drained.wait()
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(open_step("cut-me"), speech))
    assert caught.value.reason is Reason.UPLOAD_OFFSET_MISMATCH
    assert not old.done()
    old.cancel()
    await asyncio.wait({old})
    assert (await bench.uploads.state(NAME)).durable_offset == 10


async def test_a_client_that_leaves_while_its_file_is_measured_finds_the_audio(bench, speech):
    measuring, go = asyncio.Event(), asyncio.Event()
    examine = bench.examiner.examine

    async def slow(path, **bounds):
        measuring.set()
        await go.wait()
        return await examine(path, **bounds)

    bench.examiner.examine = slow
    call = asyncio.create_task(bench.uploads.upload(stream(open_step("cut-me"), speech)))
    await measuring.wait()
    call.cancel()
    await asyncio.wait({call})
    again = asyncio.create_task(bench.uploads.upload(stream(resume(len(speech)), b"")))
    await asyncio.sleep(0)
    go.set()
    audio = await again
    assert audio.sha256 == sha256(speech)
    assert bench.catalog.commits == 1


async def test_a_part_that_fails_is_told_and_resumes_before_it(bench, speech):
    put = bench.store.put_bytes
    calls = 0

    def second_fails(key, data, **rest):
        nonlocal calls
        calls += 1
        if calls == 2:
            raise unavailable(Reason.STORAGE_UNAVAILABLE, "down")
        return put(key, data, **rest)

    bench.store.put_bytes = second_fails
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(open_step("cut-me"), speech))
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert (await bench.uploads.state(NAME)).durable_offset == PART_BYTES
    audio = await bench.uploads.upload(stream(resume(PART_BYTES), speech[PART_BYTES:]))
    assert audio.sha256 == sha256(speech)


async def test_an_expired_upload_is_told_so(bench, speech):
    await cut_after(bench, open_step("cut-me"), speech[:10])
    await bench.uploads.state(NAME)
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=25)
    bench.uploads._now = lambda: later
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(resume(10), speech[10:]))
    assert caught.value.reason is Reason.UPLOAD_EXPIRED


async def test_an_upload_that_expires_under_its_stream_leaves_no_part(bench, speech):
    async def messages():
        yield open_step("cut-me")
        yield speech[:10]
        del bench.catalog.uploads[NAME]
        yield speech[10:]

    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(messages())
    assert caught.value.reason is Reason.UPLOAD_NOT_FOUND
    assert bench.stored() == []


async def test_no_such_upload(bench):
    for call in (bench.uploads.upload(stream(resume(0), b"x")), bench.uploads.state(NAME)):
        with pytest.raises(VoxfleetError) as caught:
            await call
        assert caught.value.reason is Reason.UPLOAD_NOT_FOUND


async def test_a_second_opening_in_a_stream_is_refused_and_the_bytes_kept(bench, speech):
    async def messages():
        yield open_step("cut-me")
        yield speech[:500]
        yield open_step("cut-me")

    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(messages())
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert (await bench.uploads.state(NAME)).durable_offset == 500


@pytest.mark.parametrize(("announced", "commits"), [(False, 0), (True, 1)])
async def test_an_end_that_is_followed_by_a_cut_was_a_cut_unless_the_size_says_otherwise(
    tmp_path, speech, announced, commits
):
    """A proxy whose client was cut off ends its own stream in order, and cancels it just after."""
    bench = Bench(tmp_path, end_grace_s=30.0)
    ended = asyncio.Event()

    async def messages():
        yield open_step("cut-me", size_bytes=len(speech) if announced else 0)
        yield speech
        ended.set()

    call = asyncio.create_task(bench.uploads.upload(messages()))
    await ended.wait()
    await asyncio.sleep(0)
    call.cancel()
    await asyncio.wait({call})
    await bench.uploads.drain(30)
    assert (await bench.uploads.state(NAME)).durable_offset == len(speech)
    assert bench.catalog.drops == []
    assert bench.catalog.commits == commits
