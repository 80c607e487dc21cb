"""Garbage: gone when no row names it, never when one does."""

from __future__ import annotations

import asyncio
import datetime as dt

import pytest

from services.audio.records import Garbage
from services.common.errors import Reason, VoxfleetError, unavailable
from tests.unit.audio_service.bench import cut_after, open_step, sha256, stream, until, upload_name


async def test_an_expired_upload_goes_with_its_parts(bench, speech):
    await cut_after(bench, open_step("cut-me"), speech[:100_000])
    await bench.uploads.state(upload_name("cut-me"))
    await bench.send(speech)
    kept = [key for key in bench.stored() if "/sha256/" in key]
    assert len(bench.stored()) > len(kept) == 1

    assert await bench.collector.collect() == 0
    later = dt.datetime.now(dt.UTC) + dt.timedelta(hours=25)
    bench.catalog.now = lambda: later
    assert await bench.collector.collect() >= 1
    assert bench.stored() == kept


async def test_content_goes_with_its_last_audio(bench, speech):
    first, second = await bench.send(speech), await bench.send(speech)
    bench.catalog.delete_audio(first.name)
    await bench.collector.collect()
    assert len(bench.stored()) == 1
    bench.catalog.delete_audio(second.name)
    await bench.collector.collect()
    assert bench.stored() == []


async def test_what_could_not_be_deleted_is_tried_again(bench, speech):
    audio = await bench.send(speech)
    bench.catalog.delete_audio(audio.name)
    delete = bench.store.delete

    def broken(key):
        raise unavailable(Reason.STORAGE_UNAVAILABLE, "down")

    bench.store.delete = broken
    with pytest.raises(VoxfleetError):
        await bench.collector.collect()
    assert len(bench.stored()) == 1
    bench.store.delete = delete
    assert await bench.collector.collect() == 1
    assert bench.stored() == []


async def test_bytes_committed_again_while_they_are_collected_stay(bench, speech):
    """The key is taken as garbage between an upload's PUT and its commit."""
    audio = await bench.send(speech)
    bench.catalog.delete_audio(audio.name)
    commit = bench.catalog.commit_audio
    collecting = []

    async def collected_meanwhile(*args):
        collecting.append(asyncio.create_task(bench.collector.collect()))
        await until(lambda: not bench.catalog.blobs)  # the key was taken
        return await commit(*args)

    bench.catalog.commit_audio = collected_meanwhile
    again = await bench.send(speech)
    await collecting[0]
    blob = (await bench.catalog.resolve_audio(again.name)).blob
    assert bench.store.get_bytes(blob.key) == speech


async def test_a_key_committed_and_deleted_before_a_round_is_not_spared(bench, speech):
    digest = sha256(speech)
    audio = await bench.send(speech)
    bench.catalog.delete_audio(audio.name)
    assert await bench.collector.collect() == 1
    assert not any(digest in key for key in bench.stored())


async def test_deleting_what_is_not_there_is_no_error(bench):
    async def ghosts(limit):
        return Garbage(("teams/acme/sha256/aa/" + "a" * 64,), ("teams/acme/staging/gone/",))

    bench.catalog.take_garbage = ghosts
    assert await bench.collector.collect() == 2


async def test_the_loop_survives_a_catalogue_that_is_down(bench):
    calls = asyncio.Event()
    count = 0

    async def down(limit):
        nonlocal count
        count += 1
        if count == 3:
            calls.set()
        raise unavailable(Reason.SERVICE_UNAVAILABLE, "down")

    bench.catalog.take_garbage = down
    loop = asyncio.create_task(bench.collector.run(0.0))
    async with asyncio.timeout(10):
        await calls.wait()
    assert not loop.done()
    loop.cancel()
    await asyncio.wait({loop})


async def test_two_holders_of_a_key_take_turns_and_the_lock_is_forgotten(bench):
    order = []

    async def hold(name):
        async with bench.keys.hold("k"):
            order.append(f"{name} in")
            await asyncio.sleep(0)
            order.append(f"{name} out")

    await asyncio.gather(hold("a"), hold("b"))
    assert order in (["a in", "a out", "b in", "b out"], ["b in", "b out", "a in", "a out"])
    assert bench.keys._locks == {}


async def test_staging_is_counted_down_to_zero(bench, speech):
    from services.audio import metrics

    before = metrics.STAGING_BYTES._value.get()
    await bench.send(speech)
    with pytest.raises(VoxfleetError):
        await bench.uploads.upload(stream(open_step(), b"no audio" * 1000))
    assert metrics.STAGING_BYTES._value.get() == before
