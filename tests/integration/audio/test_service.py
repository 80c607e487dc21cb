"""The audio service over real gRPC and real S3."""

from __future__ import annotations

import asyncio
import urllib.request
from functools import partial

import grpc
import pytest

from services.common.errors import Kind, Reason
from tests.integration.audio.client import TEAM, Client, reason_of, sha256, speech_file
from tests.unit.audio_service.bench import until
from voxfleet.v1 import audio_pb2


@pytest.fixture(scope="module")
def speech() -> bytes:
    return speech_file()


async def test_upload_analyse_download(stage, speech):
    audio = await stage.client.upload(
        speech,
        display_name="anna",
        purpose=audio_pb2.AUDIO_PURPOSE_TRAINING,
        size_bytes=len(speech),
        sha256=sha256(speech),
    )
    digest = sha256(speech)
    assert stage.stored() == [f"teams/{TEAM}/sha256/{digest[:2]}/{digest}"]
    assert audio.media_type == "audio/wav"
    assert audio.assessment.trainable

    analysis = await stage.client.analyze(audio.name, points=50)
    assert analysis.measures.duration_s == pytest.approx(11.0)
    assert len(analysis.measures.waveform_peaks) == 50
    assert 0 < max(analysis.measures.waveform_peaks) <= 1

    header, data = await stage.client.download(audio.name)
    assert (header.sha256, header.size_bytes, header.media_type) == (digest, len(speech), "audio/wav")
    assert data == speech
    header, data = await stage.client.download(audio.name, offset=300_000, limit=20_000)
    assert (header.offset, header.size_bytes) == (300_000, len(speech))
    assert data == speech[300_000:320_000]
    error = await reason_of(stage.client.download(audio.name, offset=len(speech)))
    assert (error.reason, error.kind) == (Reason.RANGE_NOT_SATISFIABLE, Kind.OUT_OF_RANGE)

    url = await stage.client.url(audio.name)
    fetched = await asyncio.to_thread(lambda: urllib.request.urlopen(url.url, timeout=30).read())
    assert fetched == speech
    assert {team for _, team in stage.catalog_server.callers} == {TEAM}


async def test_a_cut_stream_resumes_to_identical_bytes(stage, speech):
    client, name = stage.client, stage.client.upload_name("cut-me")
    # A call that is cut before the transport sent anything makes no upload: wait for its row.
    opened = partial(until, lambda: name in stage.catalog.uploads)
    await client.send_and_cut(client.opening("cut-me"), speech[:150_000], turns=200, arrived=opened)
    upload = await client.state(name)
    # What the transport still held when the client cut it may be lost, what arrived may not.
    assert 0 <= upload.durable_offset <= 150_000
    assert not any("/sha256/" in key for key in stage.stored())

    offset = upload.durable_offset
    audio = await client.send(client.resuming("cut-me", offset), speech[offset:])
    assert audio.sha256 == sha256(speech)
    assert (await client.download(audio.name))[1] == speech
    assert len(stage.stored()) == 1
    assert (await client.state(name)).audio == audio.name


@pytest.mark.parametrize("through", ["address", "gateway_address"])
@pytest.mark.parametrize("announced", [True, False])
async def test_a_cut_never_passes_for_an_end(stage, speech, announced, through):
    """A stream's end and its cancellation reach the service in either order."""
    client = Client(getattr(stage, through))
    size = len(speech) if announced else 0
    for number in range(40):
        first = client.opening(f"cut-{number}", size_bytes=size)
        name = client.upload_name(f"cut-{number}")
        opened = partial(until, lambda name=name: name in stage.catalog.uploads)
        # Every other cut comes when the service is known to be reading: some bytes must have arrived.
        arrived = opened if number % 2 else None
        await client.send_and_cut(first, speech[:100_000], turns=10 * number, arrived=arrived)
    # An upload whose opening was still on its way when its stream was cut was never made.
    states = [await client.state(name) for name in sorted(stage.catalog.uploads)]
    assert all(state.audio == "" for state in states)
    assert stage.catalog.drops == []
    assert stage.catalog.audios == {}
    assert any(state.durable_offset > 0 for state in states)
    await client.channel.close()


async def test_a_client_that_vanishes_keeps_its_bytes(stage, speech):
    other = Client(stage.address)
    name, uploads = other.upload_name("gone"), stage.catalog.uploads

    async def messages():
        yield other.opening("gone")
        for start in range(0, 300_000, 50_000):
            yield audio_pb2.UploadAudioRequest(chunk=speech[start : start + 50_000])
        # Two full parts become durable without any flush: from there on the client is gone.
        await until(lambda: name in uploads and uploads[name].durable_offset >= 2**18)
        await other.channel.close()

    call = other.stub.UploadAudio(messages(), metadata=other.headers)
    with pytest.raises((grpc.aio.AioRpcError, asyncio.CancelledError, grpc.aio.UsageError)):
        await call
    offset = (await stage.client.state(name)).durable_offset
    assert offset >= 2**18
    audio = await stage.client.send(stage.client.resuming("gone", offset), speech[offset:])
    assert audio.sha256 == sha256(speech)


@pytest.mark.parametrize(
    ("data", "given", "reason"),
    [
        (b"no audio at all" * 9000, {}, Reason.INVALID_FORMAT),
        (b"", {}, Reason.AUDIO_EMPTY),
        (None, {"sha256": "0" * 64}, Reason.CHECKSUM_MISMATCH),
        (
            None,
            {"size_bytes": 200 * 2**20, "purpose": audio_pb2.AUDIO_PURPOSE_TRAINING},
            Reason.FILE_TOO_LARGE,
        ),
        (None, {"purpose": audio_pb2.AUDIO_PURPOSE_OUTPUT}, Reason.INVALID_ARGUMENT),
    ],
)
async def test_a_refusal_crosses_the_wire_and_leaves_nothing(stage, speech, data, given, reason):
    error = await reason_of(stage.client.upload(speech if data is None else data, **given))
    assert error.reason is reason
    assert error.kind is Kind.INVALID
    assert error.user_message
    assert stage.stored() == []
    assert stage.catalog.uploads == {}
    assert stage.catalog.audios == {}


async def test_an_early_refusal_reaches_a_client_that_is_still_sending(stage):
    """grpc.aio's client says INTERNAL where an answer meets a write of its own: the service reads on."""
    for _ in range(20):
        error = await reason_of(stage.client.upload(bytes(2_000_000), size_bytes=2**40))
        assert error.reason is Reason.FILE_TOO_LARGE
        assert error.metadata["max_size_mb"] == "300"


async def test_another_teams_names_are_not_there(stage, speech):
    audio = await stage.client.upload(speech)
    stranger = Client(stage.address, team="beta")
    stranger_open = stage.client.opening()
    for call, reason in [
        (stranger.analyze(audio.name), Reason.AUDIO_NOT_FOUND),
        (stranger.url(audio.name), Reason.AUDIO_NOT_FOUND),
        (stranger.download(audio.name), Reason.AUDIO_NOT_FOUND),
        (stranger.send(stranger_open, speech), Reason.TEAM_NOT_FOUND),
        (stranger.send(stage.client.resuming("xxxx", 0), speech), Reason.UPLOAD_NOT_FOUND),
    ]:
        error = await reason_of(call)
        assert (error.reason, error.kind) == (reason, Kind.NOT_FOUND)
    await stranger.channel.close()


async def test_a_trace_goes_from_the_client_to_the_catalogue(stage, speech):
    stage.client.headers += (("traceparent", f"00-{'ab' * 16}-{'cd' * 8}-01"),)
    await stage.client.upload(speech)
    assert stage.catalog_server.trace_ids == {"ab" * 16}


async def test_without_the_service_token_nobody_is_let_in(stage, speech):
    outsider = Client(stage.address, token="not-the-service-token")
    error = await reason_of(outsider.upload(speech))
    assert error.reason is Reason.UNAUTHENTICATED
    await outsider.channel.close()


async def test_many_uploads_at_once(stage, speech):
    files = [speech_file(3 + number % 4) + b"" for number in range(8)]
    audios = await asyncio.gather(*(stage.client.upload(data, size_bytes=len(data)) for data in files))
    assert [audio.sha256 for audio in audios] == [sha256(data) for data in files]
    assert len(stage.stored()) == len(set(map(sha256, files))) == 4
