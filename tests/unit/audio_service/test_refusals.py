"""What is refused: the reason, and that nothing of it remains."""

from __future__ import annotations

import struct
import threading

import numpy as np
import pytest

from services.audio.app import finishing
from services.audio.model import MIB, Limits, Purpose, PurposeLimits
from services.common.errors import Reason, VoxfleetError, not_found
from tests.unit.audio_service.bench import (
    PART_BYTES,
    Bench,
    encoded,
    open_step,
    sha256,
    speech_file,
    stream,
    tone,
)


def claims_a_gigabyte() -> bytes:
    """A WAV header that promises 1 GB of samples, and a second of them."""
    data = bytearray(encoded(tone(1)))
    data[4:8] = struct.pack("<I", 2**30 + 36)
    data[40:44] = struct.pack("<I", 2**30)
    return bytes(data)


def not_numbers() -> bytes:
    import io

    import soundfile as sf

    samples = tone(1)
    samples[100] = np.nan
    buffer = io.BytesIO()
    sf.write(buffer, samples, 16_000, format="WAV", subtype="FLOAT")
    return buffer.getvalue()


REFUSED = {
    "no bytes": (lambda: b"", {}, Reason.AUDIO_EMPTY),
    "a header without samples": (lambda: encoded(tone(0)), {}, Reason.AUDIO_EMPTY),
    "truncated flac": (lambda: speech_file()[:100_000], {}, Reason.INVALID_FORMAT),
    "truncated wav": (lambda: encoded(tone(2))[:20_000], {}, Reason.INVALID_FORMAT),
    "claims a gigabyte": (claims_a_gigabyte, {}, Reason.INVALID_FORMAT),
    "text called wav": (lambda: b"hello " * 1000, {"display_name": "voice.wav"}, Reason.INVALID_FORMAT),
    "html": (lambda: b"<!doctype html><html>" + b" " * 4000, {}, Reason.INVALID_FORMAT),
    "noise": (lambda: np.random.default_rng(1).bytes(50_000), {}, Reason.INVALID_FORMAT),
    "a playlist": (lambda: b"#EXTM3U\nfile:///etc/passwd\n" * 9, {}, Reason.INVALID_FORMAT),
    "no numbers": (not_numbers, {}, Reason.INVALID_FORMAT),
    "wrong checksum": (lambda: encoded(tone(2)), {"sha256": "0" * 64}, Reason.CHECKSUM_MISMATCH),
    "too short to train on": (
        lambda: encoded(tone(9.9)),
        {"purpose": Purpose.TRAINING},
        Reason.AUDIO_TOO_SHORT,
    ),
    "too short a reference": (
        lambda: encoded(tone(2.9)),
        {"purpose": Purpose.REFERENCE},
        Reason.AUDIO_TOO_SHORT,
    ),
    "too long a reference": (
        lambda: encoded(tone(30.5)),
        {"purpose": Purpose.REFERENCE},
        Reason.AUDIO_TOO_LONG,
    ),
    "too long to train on": (
        lambda: encoded(np.zeros(601 * 4000, np.float32), 4000),
        {"purpose": Purpose.TRAINING},
        Reason.AUDIO_TOO_LONG,
    ),
    "three channels": (lambda: encoded(np.stack([tone(1)] * 3, 1)), {}, Reason.INVALID_FORMAT),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_a_refused_file_leaves_neither_row_nor_object(bench, case):
    make, spec, reason = REFUSED[case]
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(make(), **spec)
    assert caught.value.reason is reason
    bench.assert_nothing_left()


@pytest.mark.parametrize(
    ("reason", "keys"),
    [
        ("too short to train on", {"min_duration_s": "10", "duration_s": "9.9"}),
        ("too long a reference", {"max_duration_s": "30", "duration_s": "30.5"}),
        ("wrong checksum", {"expected_sha256": "0" * 64}),
    ],
)
async def test_a_refusal_carries_its_documented_facts(bench, reason, keys):
    make, spec, _ = REFUSED[reason]
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(make(), **spec)
    assert keys.items() <= caught.value.metadata.items()


@pytest.mark.parametrize(
    ("purpose", "limit"), [(Purpose.TRAINING, 100), (Purpose.CONVERSION, 300), (Purpose.REFERENCE, 100)]
)
async def test_too_large_by_its_own_word_is_refused_before_a_row_is_made(bench, purpose, limit):
    async def messages():
        yield open_step("big-file", purpose=purpose, size_bytes=limit * MIB + 1)
        raise AssertionError("nothing is read after that")

    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(messages())
    assert caught.value.reason is Reason.FILE_TOO_LARGE
    assert caught.value.metadata["max_size_mb"] == str(limit)
    bench.assert_nothing_left()


async def test_too_large_without_a_word_is_refused_while_it_streams(bench):
    sent = 0

    async def messages():
        nonlocal sent
        yield open_step("big-file", purpose=Purpose.TRAINING)
        while sent < 200 * MIB:
            sent += 2 * MIB
            yield block

    block = bytes(2 * MIB)
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(messages())
    assert caught.value.reason is Reason.FILE_TOO_LARGE
    assert caught.value.metadata["max_size_mb"] == "100"
    assert sent == 102 * MIB
    bench.assert_nothing_left()


async def test_a_part_on_its_way_at_the_refusal_does_not_outlive_it(tmp_path):
    small = PurposeLimits(max_size_bytes=2 * PART_BYTES, max_duration_s=60.0)
    bench = Bench(tmp_path, limits=Limits(conversion=small))
    put, delete = bench.store.put_bytes, bench.store.delete_prefix
    cleaned = threading.Event()

    def slow(key, data, **rest):
        cleaned.wait(0.2)  # long enough for a cleaning that does not wait for it
        return put(key, data, **rest)

    def clean(prefix):
        delete(prefix)
        cleaned.set()

    bench.store.put_bytes, bench.store.delete_prefix = slow, clean
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(bytes(3 * PART_BYTES))
    assert caught.value.reason is Reason.FILE_TOO_LARGE
    bench.assert_nothing_left()


async def test_a_refused_id_can_be_used_again(bench, speech):
    with pytest.raises(VoxfleetError):
        await bench.uploads.upload(stream(open_step("again", sha256="1" * 64), speech))
    audio = await bench.uploads.upload(stream(open_step("again", sha256=sha256(speech)), speech))
    assert audio.sha256 == sha256(speech)


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"sha256": "abc"}, "audio.sha256"),
        ({"size_bytes": -1}, "audio.size_bytes"),
        ({"upload_id": "NO SUCH"}, "upload_id"),
    ],
)
async def test_a_malformed_opening_is_refused(bench, given, field):
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(b"x", **given)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
    assert caught.value.violations[0].field == field
    bench.assert_nothing_left()


async def test_a_stream_without_an_opening_is_refused(bench):
    async def chunks():
        yield b"bytes"

    async def nothing():
        return
        yield

    for messages in (chunks(), nothing()):
        with pytest.raises(VoxfleetError) as caught:
            await bench.uploads.upload(messages)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
    bench.assert_nothing_left()


async def test_a_store_that_fails_keeps_the_upload_to_be_resumed(bench, speech):
    """No refusal: the same bytes may be taken a minute later."""
    from services.common.errors import unavailable

    put = bench.store.put_file

    def broken(*args, **kwargs):
        raise unavailable(Reason.STORAGE_UNAVAILABLE, "down")

    bench.store.put_file = broken
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(open_step("kept"), speech))
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert next(iter(bench.catalog.uploads.values())).durable_offset == len(speech)
    assert bench.catalog.audios == {}
    bench.store.put_file = put
    from services.audio.records import ResumeStep

    audio = await bench.uploads.upload(stream(ResumeStep("teams/acme/uploads/kept", len(speech)), b""))
    assert audio.sha256 == sha256(speech)


async def test_a_refusal_that_cannot_be_cleaned_up_is_still_told_and_left_to_expiry(bench):
    from services.common.errors import unavailable

    def broken(prefix):
        raise unavailable(Reason.STORAGE_UNAVAILABLE, "down")

    bench.store.delete_prefix = broken
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(b"no audio" * 100)
    assert caught.value.reason is Reason.INVALID_FORMAT
    # The row stays with the bytes: it is by the row that the sweeper finds them.
    assert len(bench.catalog.uploads) == 1
    assert len(bench.stored()) == 1


def test_every_refusal_is_one_that_no_repeat_mends():
    assert Reason.UPLOAD_INCOMPLETE not in finishing.REFUSALS
    assert Reason.STORAGE_UNAVAILABLE not in finishing.REFUSALS
    assert Reason.INTERNAL not in finishing.REFUSALS


async def test_an_upload_that_expired_before_its_commit_makes_no_audio(bench, speech):
    commit = bench.catalog.commit_audio

    async def late(upload, *args):
        del bench.catalog.uploads[upload]
        return await commit(upload, *args)

    bench.catalog.commit_audio = late
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(speech)
    assert caught.value.reason is Reason.UPLOAD_NOT_FOUND
    assert bench.catalog.audios == {}
    # Whether a row names the content is metadata's to tell: the object is left to its sweeper.
    assert [key.rpartition("/")[2] for key in bench.stored() if "/sha256/" in key] == [sha256(speech)]


async def test_content_that_was_swept_before_its_commit_is_put_again(bench, speech):
    commit = bench.catalog.commit_audio
    swept = []

    async def late(upload, blob, *args):
        if not swept:
            swept.append(blob.key)
            bench.store.delete(blob.key)
            raise not_found(Reason.ARTIFACT_NOT_FOUND, blob.key)
        return await commit(upload, blob, *args)

    bench.catalog.commit_audio = late
    audio = await bench.send(speech)
    blob = (await bench.catalog.resolve_audio(audio.name)).blob
    assert [blob.key] == swept
    assert bench.store.get_bytes(blob.key) == speech


async def test_parts_lost_in_the_store_are_told_and_the_upload_is_given_up(tmp_path, speech):
    bench = Bench(tmp_path)
    assemble = bench.objects.assemble

    async def after_a_loss(key_at, size_bytes, path):
        bench.store.delete(key_at(PART_BYTES))
        return await assemble(key_at, size_bytes, path)

    object.__setattr__(bench.objects, "assemble", after_a_loss)
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(speech)
    assert caught.value.reason is Reason.UPLOAD_INCOMPLETE
    assert caught.value.metadata["durable_offset"] == "0"
    bench.assert_nothing_left()
