"""Bytes go up and come down whole, over streams that break."""

# ruff: noqa: ASYNC240 - tests may touch the disk

from __future__ import annotations

import asyncio
import hashlib
import io
import os
from pathlib import Path

import grpc
import pytest

from services.common.errors import Reason, invalid
from tests.unit.sdk.conftest import QUICK, Face
from tests.unit.sdk.server import TEAM, Double, serve
from voxfleet.client import AsyncClient
from voxfleet.client.errors import DataLoss, InvalidArgument, Unavailable
from voxfleet.client.source import CHUNK_BYTES

DATA = os.urandom(5 * CHUNK_BYTES + 4321)
# Where a refusal is counted, nothing follows the opening: grpc.aio, refused while it writes, now and then
# says "Internal error from Core" in place of what the server said, and the client rightly asks again.
EMPTY = b""


async def test_upload_sends_what_it_announces(face: Face, double: Double, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    path.write_bytes(DATA)
    told: list[tuple[int, int]] = []
    audio = await face.call(
        face.client.audio.upload,
        path,
        purpose="training",
        labels={"speaker": "anna"},
        progress=lambda sent, total: told.append((sent, total)),
    )
    assert double.audios[audio.name] == DATA
    spec = double.asked("UploadAudio")[0].open.audio
    assert (spec.display_name, spec.size_bytes, dict(spec.labels)) == (
        "clip.wav",
        len(DATA),
        {"speaker": "anna"},
    )
    assert spec.sha256 == hashlib.sha256(DATA).hexdigest()
    assert told[0] == (0, len(DATA))
    assert told[-1] == (len(DATA), len(DATA))


async def test_cut_upload_resumes_at_the_durable_offset(face: Face, double: Double) -> None:
    double.durable_block = 100_000
    double.cut_uploads_after.extend([CHUNK_BYTES, 3 * CHUNK_BYTES])
    audio = await face.call(face.client.audio.upload, DATA)
    assert double.audios[audio.name] == DATA
    opened, *resumed = double.asked("UploadAudio")
    offsets = [request.resume.offset for request in resumed]
    assert offsets == [200_000, 900_000 // 100_000 * 100_000]
    upload = f"{TEAM}/uploads/{opened.open.upload_id}"
    assert {request.resume.upload for request in resumed} == {upload}


async def test_upload_whose_answer_was_lost_is_not_sent_again(face: Face, double: Double) -> None:
    double.lose_answer = True
    audio = await face.call(face.client.audio.upload, DATA)
    assert double.audios[audio.name] == DATA
    assert len(double.asked("UploadAudio")) == 1


async def test_upload_cut_before_it_was_opened_opens_again_under_the_same_id(
    face: Face, double: Double
) -> None:
    double.failures["UploadAudio"].append(grpc.StatusCode.UNAVAILABLE)
    await face.call(face.client.audio.upload, EMPTY)
    first, second = double.asked("UploadAudio")
    assert first == second
    assert first.open.upload_id


async def test_upload_gives_up_when_nothing_moves(face: Face, double: Double) -> None:
    double.failures["UploadAudio"].extend([grpc.StatusCode.UNAVAILABLE] * 10)
    with pytest.raises(Unavailable):
        await face.call(face.client.audio.upload, EMPTY)
    assert len(double.asked("UploadAudio")) == QUICK.attempts


async def test_upload_that_is_refused_is_not_repeated(face: Face, double: Double) -> None:
    double.failures["UploadAudio"].append(
        invalid(Reason.FILE_TOO_LARGE, "the file is over 100 MB", max_size_mb=100)
    )
    with pytest.raises(InvalidArgument) as caught:
        await face.call(face.client.audio.upload, EMPTY)
    assert (caught.value.reason, caught.value.metadata) == ("FILE_TOO_LARGE", {"max_size_mb": "100"})
    assert len(double.asked("UploadAudio")) == 1


async def test_what_breaks_on_this_side_is_raised_as_it_is(face: Face, double: Double) -> None:
    class FailingDisk(io.BytesIO):
        reads = 0

        def read(self, size: int | None = -1, /) -> bytes:
            self.reads += 1
            # The first pass takes the checksum.
            if self.reads > 5:
                raise OSError(5, "Input/output error")
            return super().read(size)

    with pytest.raises(OSError, match="Input/output error"):
        await face.call(face.client.audio.upload, FailingDisk(DATA))
    assert len(double.asked("UploadAudio")) <= 1, "there is nothing to resume with"


async def test_file_likes_are_read_from_where_they_stand(face: Face, double: Double) -> None:
    file = io.BytesIO(b"skipped" + DATA)
    file.seek(7)
    double.cut_uploads_after.append(CHUNK_BYTES)
    audio = await face.call(face.client.audio.upload, file)
    assert double.audios[audio.name] == DATA
    assert not file.closed


async def test_a_pipe_is_resumable_too(face: Face, double: Double) -> None:
    read, write = os.pipe()
    with os.fdopen(read, "rb") as source:
        with os.fdopen(write, "wb") as sink:
            sink.write(DATA[:20_000])
        double.cut_uploads_after.append(10_000)
        audio = await face.call(face.client.audio.upload, source)
    assert double.audios[audio.name] == DATA[:20_000]


async def test_upload_survives_a_connection_that_is_really_cut(double: Double) -> None:
    server, port = serve(double)
    cuts = [3 * CHUNK_BYTES, 4 * CHUNK_BYTES]

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        limit = cuts.pop(0) if cuts else 1 << 40
        up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port)
        back = asyncio.create_task(pump(up_reader, writer, 1 << 40))
        await pump(reader, up_writer, limit)
        for side in (writer, up_writer):
            side.transport.abort()
        await back

    relayed = await asyncio.start_server(relay, "127.0.0.1", 0)
    where = relayed.sockets[0].getsockname()
    async with AsyncClient(f"127.0.0.1:{where[1]}", team="acme", retry=QUICK) as client:
        audio = await client.audio.upload(DATA)
    relayed.close()
    server.stop(None)
    assert double.audios[audio.name] == DATA
    assert not cuts
    assert all(request.HasField("resume") for request in double.asked("UploadAudio")[1:])


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, limit: int) -> None:
    try:
        while limit > 0 and (data := await reader.read(65536)):
            writer.write(data)
            await writer.drain()
            limit -= len(data)
    except ConnectionError:
        return


async def test_cut_download_resumes_by_range_and_is_verified(
    face: Face, double: Double, tmp_path: Path
) -> None:
    name = f"{TEAM}/audios/a-long"
    double.audios[name] = DATA[:10_500]
    double.cut_downloads_after.extend([4_000, 7_000])
    path = await face.call(face.client.audio.download, "a-long", tmp_path / "out.wav")
    assert path.read_bytes() == DATA[:10_500]
    # gRPC may drop what was in flight when the stream was cut: a resume asks for the rest, whatever that is.
    offsets = [request.offset for request in double.asked("DownloadAudio")]
    assert offsets[0] == 0
    assert offsets == sorted(offsets)
    assert len(offsets) == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.wav"]


async def test_corrupt_download_leaves_no_file(face: Face, double: Double, tmp_path: Path) -> None:
    double.audios[f"{TEAM}/audios/a-bad0"] = DATA[:5_000]
    double.corrupt_download = True
    with pytest.raises(DataLoss, match="CHECKSUM_MISMATCH"):
        await face.call(face.client.audio.download, "a-bad0", tmp_path / "out.wav")
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(DataLoss):
        await face.call(face.client.audio.download_bytes, "a-bad0")


async def test_list_goes_through_all_pages(face: Face, double: Double) -> None:
    for number in range(5):
        double.audios[f"{TEAM}/audios/a-{number:04}"] = b"x"
    found = await face.collect(face.client.audio.list, page_size=2)
    assert [audio.name[-4:] for audio in found] == ["0000", "0001", "0002", "0003", "0004"]
    assert [request.page_token for request in double.asked("ListAudios")] == ["", "2", "4"]
