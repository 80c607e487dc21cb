"""The gateway's forwarding over real gRPC, against a backend that records what came."""

import grpc
import pytest

from services.common.errors import Reason, not_found
from services.common.rpc import status
from services.common.rpc.caller import Caller
from services.common.rpc.channel import service_channel
from services.common.rpc.handlers import servicer_handlers
from services.common.rpc.interceptors import Boundary, service_authenticator
from services.gateway.forward import Forwarder
from services.gateway.routes import ROUTES, SERVICES, Backend
from voxfleet.v1 import (
    audio_pb2,
    audio_pb2_grpc,
    dubbing_pb2,
    fleet_pb2,
    job_pb2,
    lexicon_pb2,
    synthesis_pb2,
    synthesis_pb2_grpc,
    trust_pb2,
)

TOKEN = "t" * 20
IMPORTED = (dubbing_pb2, fleet_pb2, lexicon_pb2, trust_pb2)


class BackendServicer:
    def __init__(self):
        self.seen = []

    async def GetAudio(self, request, context):
        from services.common.rpc.caller import current_caller

        self.seen.append(current_caller())
        raise not_found(Reason.AUDIO_NOT_FOUND, request.name)

    async def DownloadAudio(self, request, context):
        for number in range(3):
            yield audio_pb2.DownloadAudioResponse(chunk=bytes([number]))

    async def UploadAudio(self, requests, context):
        size = 0
        async for request in requests:
            size += len(request.chunk)
        return audio_pb2.Audio(size_bytes=size)


async def alpha(metadata):
    return Caller(team="alpha", key="k", request_id="r-1")


@pytest.fixture
async def gateway():
    servicer = BackendServicer()
    backend = grpc.aio.server(interceptors=[Boundary(service_authenticator(TOKEN))])
    backend.add_generic_rpc_handlers((servicer_handlers("voxfleet.v1.AudioService", servicer),))
    port = backend.add_insecure_port("127.0.0.1:0")
    await backend.start()
    upstream = service_channel(f"127.0.0.1:{port}", TOKEN)
    forwarder = Forwarder(dict.fromkeys(Backend, upstream), unary_timeout_s=10, upload_timeout_s=10)
    server = grpc.aio.server(interceptors=[Boundary(alpha)])
    server.add_generic_rpc_handlers(tuple(forwarder.handlers()))
    front = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{front}") as channel:
        yield channel, servicer
    await server.stop(0)
    await upstream.close()
    await backend.stop(0)


async def test_a_backends_error_and_the_callers_identity_pass_through(gateway):
    channel, servicer = gateway
    stub = audio_pb2_grpc.AudioServiceStub(channel)
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.GetAudio(audio_pb2.GetAudioRequest(name="teams/alpha/audios/abcd"))
    error = status.from_rpc_error(caught.value)
    assert error.reason is Reason.AUDIO_NOT_FOUND
    assert error.metadata["name"] == "teams/alpha/audios/abcd"
    assert [(c.team, c.key, c.request_id) for c in servicer.seen] == [("alpha", "k", "r-1")]


async def test_streams_pass_both_ways(gateway):
    channel, _ = gateway
    stub = audio_pb2_grpc.AudioServiceStub(channel)
    request = audio_pb2.DownloadAudioRequest(name="teams/alpha/audios/abcd")
    assert [m.chunk async for m in stub.DownloadAudio(request)] == [b"\0", b"\1", b"\2"]

    async def upload():
        yield audio_pb2.UploadAudioRequest(open=audio_pb2.OpenUpload(parent="teams/alpha"))
        for _ in range(5):
            yield audio_pb2.UploadAudioRequest(chunk=b"x" * 1000)

    assert (await stub.UploadAudio(upload())).size_bytes == 5000


async def test_a_chunk_over_the_limit_is_refused(gateway):
    channel, _ = gateway

    async def upload():
        yield audio_pb2.UploadAudioRequest(open=audio_pb2.OpenUpload(parent="teams/alpha"))
        yield audio_pb2.UploadAudioRequest(chunk=b"x" * (3 * 1024 * 1024))

    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await audio_pb2_grpc.AudioServiceStub(channel).UploadAudio(upload())
    assert status.from_rpc_error(caught.value).reason is Reason.MESSAGE_TOO_LARGE


async def test_bytes_that_are_no_message_are_refused(gateway):
    channel, _ = gateway
    call = channel.unary_unary("/voxfleet.v1.AudioService/GetAudio")
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call(b"\xff\xff\xff\xff")
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT


async def test_every_declared_method_is_routed_or_says_that_it_is_not_built(gateway):
    from services.common.rpc.handlers import method_path, service_descriptor

    channel, _ = gateway
    not_built = 0
    for name in SERVICES:
        for method in service_descriptor(f"voxfleet.v1.{name}").methods:
            if method.name in ROUTES.get(name, {}):
                continue
            path = method_path(method)
            if method.client_streaming:
                call = channel.stream_stream(path)(iter([b""]))
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await call.read()
            else:
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(path)(b"")
            error = status.from_rpc_error(caught.value)
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED
            assert error.metadata["feature"] == f"{name}.{method.name}"
            not_built += 1
    assert not_built > 10
    assert job_pb2.DESCRIPTOR


@pytest.mark.parametrize("first", ["foreign", "nothing"])
async def test_a_client_that_is_refused_while_it_sends_hears_why(gateway, first):
    channel, _ = gateway

    async def upload():
        if first == "foreign":
            yield audio_pb2.UploadAudioRequest(open=audio_pb2.OpenUpload(parent="teams/beta"))
        for _ in range(50):
            yield audio_pb2.UploadAudioRequest(chunk=b"x" * 2_000_000)

    reason = Reason.TEAM_NOT_FOUND if first == "foreign" else Reason.INVALID_ARGUMENT
    for _ in range(8):  # what it guards against comes in one call of four
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await audio_pb2_grpc.AudioServiceStub(channel).UploadAudio(upload())
        assert status.from_rpc_error(caught.value).reason is reason


async def test_an_error_of_a_hundred_thousand_words_still_says_what_is_wrong(gateway):
    channel, _ = gateway
    parameters = synthesis_pb2.SynthesisParameters(speed=9, preset="ü" * 40)
    request = synthesis_pb2.BatchSynthesizeRequest(
        parent="teams/alpha",
        items=[synthesis_pb2.BatchItem(text="x", parameters=parameters) for _ in range(5000)],
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await synthesis_pb2_grpc.SynthesisServiceStub(channel).BatchSynthesize(request)
    error = status.from_rpc_error(caught.value)
    assert error.reason is Reason.INVALID_ARGUMENT
    assert error.violations[0].field == "items[0].parameters.preset"
