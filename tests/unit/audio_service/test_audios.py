"""Analyses, downloads, addresses."""

from __future__ import annotations

import datetime as dt

import pytest

from services.common.artifacts.model import content_key
from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs.tasks import Blob
from tests.unit.audio_service.bench import TEAM, encoded, sha256, tone


async def read(bench, name, offset=0, limit=0):
    download = await bench.audios.open_download(name, offset, limit)
    return download, b"".join([block async for block in bench.audios.read(download)])


async def test_stored_measures_are_answered_without_touching_the_bytes(bench, speech):
    audio = await bench.send(speech)
    bench.store.delete(bench.stored()[0])
    found, outline = await bench.audios.analyze(audio.name, 0)
    assert found.measures == audio.measures
    assert found.assessment.grade == audio.assessment.grade
    assert outline == ()


async def test_an_output_without_measures_is_measured_once_and_kept(bench, speech):
    key = content_key(TEAM, sha256(speech))
    blob = bench.store.put_bytes(key, speech, media_type="audio/flac")
    name = f"teams/{TEAM}/audios/output-1"
    bench.catalog.add_output(
        name, Blob(key=key, sha256=blob.sha256, size_bytes=len(speech), media_type="audio/flac")
    )
    found, outline = await bench.audios.analyze(name, 7)
    assert found.measures.duration_s == pytest.approx(11.0)
    assert found.assessment.grade
    assert len(outline) == 7
    bench.store.delete(key)
    again, _ = await bench.audios.analyze(name, 0)
    assert again.measures == found.measures
    assert list(bench.scratch_dir.iterdir()) == []


async def test_an_outline_follows_the_sound(bench):
    samples = tone(4)
    samples[: len(samples) // 2] = 0
    audio = await bench.send(encoded(samples))
    _, outline = await bench.audios.analyze(audio.name, 4)
    assert outline == pytest.approx((0, 0, 0.2, 0.2), abs=0.01)


@pytest.mark.parametrize("points", [-1, 4097])
async def test_an_outline_has_bounds(bench, speech, points):
    audio = await bench.send(speech)
    with pytest.raises(VoxfleetError) as caught:
        await bench.audios.analyze(audio.name, points)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(("offset", "limit"), [(0, 0), (0, 1), (1, 0), (100, 1000), (0, 10**9), (5, 10**9)])
async def test_a_range_is_that_range(bench, speech, offset, limit):
    audio = await bench.send(speech)
    download, data = await read(bench, audio.name, offset, limit)
    assert data == speech[offset:][: limit or None]
    assert download.size_bytes == len(data)
    assert (download.blob.sha256, download.blob.size_bytes) == (sha256(speech), len(speech))


async def test_the_last_byte_can_be_had_and_the_one_after_cannot(bench, speech):
    audio = await bench.send(speech)
    assert (await read(bench, audio.name, len(speech) - 1))[1] == speech[-1:]
    for offset, limit in [(len(speech), 0), (10**12, 1), (-1, 0), (0, -1)]:
        with pytest.raises(VoxfleetError) as caught:
            await bench.audios.open_download(audio.name, offset, limit)
        assert caught.value.reason is Reason.RANGE_NOT_SATISFIABLE
        assert caught.value.kind is Kind.OUT_OF_RANGE
        assert caught.value.metadata["size_bytes"] == str(len(speech))


@pytest.mark.parametrize("damaged", [lambda d: d[:-1], lambda d: b"", lambda d: b"x" + d[1:]])
async def test_missing_or_wrong_bytes_never_pass_for_the_file(bench, speech, damaged):
    audio = await bench.send(speech)
    bench.store.corrupt_for_test(bench.stored()[0], damaged(speech))
    with pytest.raises(VoxfleetError) as caught:
        await read(bench, audio.name)
    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert caught.value.kind is Kind.DATA_LOSS


async def test_bytes_gone_from_the_store_are_told(bench, speech):
    audio = await bench.send(speech)
    bench.store.delete(bench.stored()[0])
    with pytest.raises(VoxfleetError) as caught:
        await read(bench, audio.name)
    assert caught.value.reason is Reason.ARTIFACT_NOT_FOUND


async def test_an_address_names_the_key_and_its_end(bench, speech):
    audio = await bench.send(speech)
    before = dt.datetime.now(dt.UTC)
    url, expires_at = await bench.audios.url(audio.name, 60)
    assert sha256(speech) in url
    assert "expires=60" in url
    assert before + dt.timedelta(seconds=60) <= expires_at
    url, _ = await bench.audios.url(audio.name, None)
    assert "expires=3600" in url


@pytest.mark.parametrize("ttl_s", [0, -5, 7 * 86_400 + 1])
async def test_an_address_works_a_second_to_a_week(bench, speech, ttl_s):
    audio = await bench.send(speech)
    with pytest.raises(VoxfleetError) as caught:
        await bench.audios.url(audio.name, ttl_s)
    assert caught.value.violations[0].field == "ttl"


async def test_no_such_audio(bench):
    name = f"teams/{TEAM}/audios/none"
    for call in (
        bench.audios.analyze(name, 0),
        bench.audios.open_download(name, 0, 0),
        bench.audios.url(name, None),
    ):
        with pytest.raises(VoxfleetError) as caught:
            await call
        assert caught.value.reason is Reason.AUDIO_NOT_FOUND
