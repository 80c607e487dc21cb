"""A gRPC client that was not written here: reflection, health, and messages made from descriptors."""

import shutil
import subprocess
import sys
from pathlib import Path

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from tests.e2e.conftest import SPEECH

ROOT = Path(__file__).parents[2]
PROTOSET = ROOT / "protos" / "gen" / "voxfleet.protoset"

PUBLIC = {
    f"voxfleet.v1.{name}Service"
    for name in ("Audio", "Voice", "Synthesis", "Lexicon", "Dubbing", "Job", "Fleet", "Trust")
}


def test_health_and_reflection_need_no_token(channel):
    health = health_pb2_grpc.HealthStub(channel)
    for service in ("", *PUBLIC):
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING
    listed = set(ProtoReflectionDescriptorDatabase(channel).get_services())
    assert listed >= PUBLIC | {"grpc.health.v1.Health"}
    assert not any(name.startswith("voxfleet.internal") for name in listed)


def test_upload_and_analysis_with_messages_made_from_reflection(channel, alpha):
    pool = descriptor_pool.DescriptorPool(ProtoReflectionDescriptorDatabase(channel))
    service = pool.FindServiceByName("voxfleet.v1.AudioService")
    methods = {method.name: method for method in service.methods}

    def make(method: str):
        return message_factory.GetMessageClass(methods[method].input_type)

    def answer(method: str):
        return message_factory.GetMessageClass(methods[method].output_type)

    upload, analyse = make("UploadAudio"), make("AnalyzeAudio")
    data = (SPEECH / "clip_it.flac").read_bytes()
    call = channel.stream_unary(
        "/voxfleet.v1.AudioService/UploadAudio",
        request_serializer=upload.SerializeToString,
        response_deserializer=answer("UploadAudio").FromString,
    )
    requests = [upload(open={"parent": alpha.parent}), upload(chunk=data)]
    audio = call(iter(requests), metadata=alpha.headers, timeout=60)
    call = channel.unary_unary(
        "/voxfleet.v1.AudioService/AnalyzeAudio",
        request_serializer=analyse.SerializeToString,
        response_deserializer=answer("AnalyzeAudio").FromString,
    )
    found = call(analyse(name=audio.name), metadata=alpha.headers, timeout=60)
    assert found.measures.duration_s == pytest.approx(3.7, abs=0.3)
    assert found.assessment.grade


def test_the_published_descriptor_set_describes_what_the_gateway_serves(channel):
    published = descriptor_pb2.FileDescriptorSet.FromString(PROTOSET.read_bytes())
    files = {file.name: file for file in published.file}
    assert not any("internal" in name for name in files)
    served = ProtoReflectionDescriptorDatabase(channel)
    for service in PUBLIC:
        file = served.FindFileContainingSymbol(service)
        mine = files[file.name]
        assert [m.name for s in mine.service for m in s.method] == [
            m.name for s in file.service for m in s.method
        ]


def test_stubs_can_be_made_from_the_published_descriptor_set_alone(tmp_path):
    """Python here, with no .proto in reach; another language's protoc plug-in reads the same set."""
    subprocess.run(
        [
            sys.executable,
            "-m",
            "grpc_tools.protoc",
            f"--descriptor_set_in={PROTOSET}",
            f"--python_out={tmp_path}",
            f"--grpc_python_out={tmp_path}",
            *sorted(f"voxfleet/v1/{name}.proto" for name in ("audio", "job", "error", "voice", "synthesis")),
        ],
        check=True,
        cwd=tmp_path,
    )
    assert "AudioServiceStub" in (tmp_path / "voxfleet" / "v1" / "audio_pb2_grpc.py").read_text()


def test_java_stubs_can_be_made_from_it(tmp_path):
    protoc = shutil.which("protoc")
    if protoc is None:
        pytest.skip("protoc (Debian's protobuf-compiler) is not installed")
    names = ["voxfleet/v1/audio.proto", "voxfleet/v1/job.proto", "voxfleet/v1/error.proto"]
    subprocess.run([protoc, f"--descriptor_set_in={PROTOSET}", f"--java_out={tmp_path}", *names], check=True)
    assert list(tmp_path.rglob("Audio.java"))


def test_the_internal_services_refuse_who_has_no_service_token(stack, alpha):
    from voxfleet.internal.v1 import identity_pb2, identity_pb2_grpc

    with grpc.insecure_channel(stack.services["metadata"].grpc_address) as channel:
        stub = identity_pb2_grpc.IdentityServiceStub(channel)
        with pytest.raises(grpc.RpcError) as caught:
            stub.Authenticate(identity_pb2.AuthenticateRequest(), metadata=alpha.headers, timeout=10)
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
