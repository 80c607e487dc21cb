"""Uploads that end well, and what they leave."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from services.audio.model import Purpose
from services.audio.records import ResumeStep
from services.common.errors import Reason, VoxfleetError, unavailable
from tests.unit.audio_service.bench import (
    CHUNK_BYTES,
    PART_BYTES,
    TEAM,
    Bench,
    encoded,
    open_step,
    sha256,
    stream,
    tone,
    upload_name,
)
from voxfleet.v1 import audio_pb2


async def test_a_file_becomes_an_audio_at_its_hash_and_staging_is_gone(bench, speech):
    audio = await bench.send(
        speech,
        purpose=Purpose.TRAINING,
        display_name="anna",
        size_bytes=len(speech),
        sha256=sha256(speech),
        labels={"speaker": "anna"},
    )

    digest = sha256(speech)
    assert bench.stored() == [f"teams/{TEAM}/sha256/{digest[:2]}/{digest}"]
    assert bench.store.get_bytes(bench.stored()[0]) == speech
    assert (audio.sha256, audio.size_bytes, audio.media_type) == (digest, len(speech), "audio/flac")
    assert (audio.display_name, dict(audio.labels)) == ("anna", {"speaker": "anna"})
    assert audio.measures.duration_s == pytest.approx(11.0)
    assert audio.measures.voice_activity_ratio > 0.5
    assert audio.assessment.grade in ("A+", "A", "B+", "B")
    assert audio.assessment.trainable
    assert list(bench.scratch_dir.iterdir()) == []


async def test_the_name_is_never_trusted_for_the_format(bench):
    audio = await bench.send(encoded(tone(1)), display_name="song.mp3")
    assert audio.media_type == "audio/wav"


@pytest.mark.parametrize("size", [1, PART_BYTES - 1, PART_BYTES, PART_BYTES + 1, 3 * PART_BYTES])
async def test_every_byte_lands_whatever_the_chunks(bench, size):
    class Echo:
        """Takes anything for audio: what is tested is the bytes."""

        async def examine(self, path, *, max_duration_s, max_channels):
            self.seen = path.read_bytes()
            raise unavailable(Reason.SERVICE_UNAVAILABLE, "not now")

    bench = Bench(bench.scratch_dir, examiner=Echo())
    data = bytes(range(256)) * (size // 256 + 1)
    with pytest.raises(VoxfleetError, match="not now"):
        await bench.uploads.upload(stream(open_step(), data[:size], chunk_bytes=7_001))
    assert bench.examiner.seen == data[:size]


async def test_memory_holds_two_parts_and_a_chunk_at_most(bench):
    size = 40 * PART_BYTES
    produced = 0
    worst = 0

    async def messages():
        nonlocal produced, worst
        yield open_step("wide")
        while produced < size:
            durable = bench.catalog.uploads[upload_name("wide")].durable_offset
            worst = max(worst, produced - durable)
            produced += CHUNK_BYTES
            yield bytes(CHUNK_BYTES)

    with pytest.raises(VoxfleetError):  # zeros are no audio
        await bench.uploads.upload(messages())
    assert worst <= 2 * PART_BYTES + CHUNK_BYTES
    assert worst >= PART_BYTES


async def test_the_same_content_is_stored_once_and_is_two_audios(bench, speech):
    first = await bench.send(speech)
    second = await bench.send(speech)
    assert first.name != second.name
    assert len(bench.stored()) == 1


async def test_an_upload_that_is_complete_answers_its_audio_again(bench, speech):
    audio = await bench.uploads.upload(stream(open_step("once"), speech))
    again = await bench.uploads.upload(stream(ResumeStep(upload_name("once"), len(speech)), b""))
    opened = await bench.uploads.upload(stream(open_step("once"), speech))
    assert audio.name == again.name == opened.name
    assert bench.catalog.commits == 1


async def test_an_id_that_another_file_has_is_refused_with_its_offset(bench, speech):
    await bench.uploads.upload(stream(open_step("once"), speech))
    with pytest.raises(VoxfleetError) as caught:
        await bench.uploads.upload(stream(open_step("once", display_name="other"), speech))
    assert caught.value.reason is Reason.UPLOAD_OFFSET_MISMATCH
    assert caught.value.metadata["durable_offset"] == str(len(speech))


async def test_get_upload_tells_offset_size_and_audio(bench, speech):
    audio = await bench.uploads.upload(stream(open_step("once", size_bytes=len(speech)), speech))
    record = await bench.uploads.state(upload_name("once"))
    assert record.durable_offset == record.spec.size_bytes == len(speech)
    assert record.committed_audio == audio.name


async def test_a_commit_whose_answer_was_lost_is_found_by_a_resume(bench, speech):
    commit = bench.catalog.commit_audio

    async def lossy(*args):
        await commit(*args)
        raise unavailable(Reason.SERVICE_UNAVAILABLE, "the answer was lost")

    bench.catalog.commit_audio = lossy
    with pytest.raises(VoxfleetError, match="lost"):
        await bench.uploads.upload(stream(open_step("once"), speech))
    audio = await bench.uploads.upload(stream(ResumeStep(upload_name("once"), len(speech)), b""))
    assert audio.name == next(iter(bench.catalog.audios))


async def test_a_lost_answer_to_an_advance_costs_nothing(bench, speech):
    advance = bench.catalog.advance_upload

    async def twice(name, from_offset, to_offset):
        await advance(name, from_offset, to_offset)
        return await advance(name, from_offset, to_offset)  # as a channel's retry does

    bench.catalog.advance_upload = twice
    audio = await bench.send(speech)
    assert audio.size_bytes == len(speech)


async def test_too_many_streams_are_told_to_come_back(tmp_path, speech):
    bench = Bench(tmp_path, max_streams=1)
    started = asyncio.Event()

    async def waiting():
        yield open_step("slow")
        started.set()
        await asyncio.Event().wait()

    call = asyncio.create_task(bench.uploads.upload(waiting()))
    await started.wait()
    with pytest.raises(VoxfleetError) as caught:
        await bench.send(speech)
    assert caught.value.reason is Reason.QUEUE_FULL
    assert caught.value.retry_after_s
    call.cancel()
    await asyncio.wait({call})
    await bench.uploads.drain(5)
    assert (await bench.send(speech)).size_bytes == len(speech)


async def test_a_voices_file_is_stored_unopened(bench):
    class Never:
        async def examine(self, path, *, max_duration_s, max_channels):
            raise AssertionError("nobody looks into it here")

    data = b"\x80\x02 whatever it is" * 10_000
    bench.finisher = dataclasses.replace(bench.finisher, examiner=Never())
    bench.uploads._finisher = bench.finisher
    audio = await bench.send(data, purpose=Purpose.VOICE_FILE, display_name="a.pth", sha256=sha256(data))
    assert bench.store.get_bytes(bench.stored()[0]) == data
    assert (audio.sha256, audio.media_type) == (sha256(data), "application/octet-stream")
    assert audio.purpose == audio_pb2.AUDIO_PURPOSE_VOICE_FILE
    assert not audio.assessment.grade
    with pytest.raises(VoxfleetError) as caught:
        await bench.audios.analyze(audio.name, 10)
    assert caught.value.reason is Reason.INVALID_FORMAT
