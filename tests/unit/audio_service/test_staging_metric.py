"""The gauge of staged bytes: it comes down by every way in which an upload's parts go."""

from __future__ import annotations

import datetime as dt

import pytest
from prometheus_client import REGISTRY

from services.audio import metrics
from services.common.errors import VoxfleetError
from tests.unit.audio_service.bench import cut_after, open_step, stream, upload_name

NAME = upload_name("cut-me")


def now(hours: float = 0) -> dt.datetime:
    return dt.datetime.now(dt.UTC) + dt.timedelta(hours=hours)


def gauge() -> float:
    found = REGISTRY.get_sample_value("voxfleet_audio_staging_bytes")
    assert found is not None
    return found


async def test_staging_is_counted_down_to_zero(bench, speech):
    before = gauge()
    await cut_after(bench, open_step("cut-me"), speech[:100_000])
    await bench.uploads.state(NAME)
    assert gauge() == before + 100_000
    await bench.uploads.drain(5)
    await bench.send(speech)
    assert gauge() == before + 100_000
    with pytest.raises(VoxfleetError):
        await bench.uploads.upload(stream(open_step(), b"no audio" * 1000))
    assert gauge() == before + 100_000
    await bench.finisher.discard(NAME)
    assert gauge() == before


async def test_parts_of_an_upload_that_goes_under_its_stream_are_not_counted_on(bench, speech):
    before = gauge()

    async def messages():
        yield open_step("cut-me")
        yield speech[:10]
        del bench.catalog.uploads[NAME]
        yield speech[10:]

    with pytest.raises(VoxfleetError):
        await bench.uploads.upload(messages())
    assert gauge() == before


async def test_an_upload_counts_until_it_expires(bench, speech):
    """Its parts are deleted then, by metadata, which does not tell."""
    before, before_later = metrics.staging_bytes(now()), metrics.staging_bytes(now(25))
    await cut_after(bench, open_step("cut-me"), speech[:100_000])
    await bench.uploads.state(NAME)
    assert metrics.staging_bytes(now(23)) == before + 100_000
    assert metrics.staging_bytes(now(25)) == before_later


def test_an_expired_upload_is_forgotten_with_the_next_one():
    metrics.note_staged("teams/acme/staging/old/", 7, now(-1))
    metrics.note_staged("teams/acme/staging/new/", 9, now(1))
    assert "teams/acme/staging/old/" not in metrics._staged
    assert metrics._staged["teams/acme/staging/new/"].size_bytes == 9
    metrics.note_unstaged("teams/acme/staging/new/")
