import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.rpc.caller import Caller
from services.common.rpc.handlers import message_class, service_descriptor
from services.gateway.routes import ROUTES
from services.gateway.validation import _NAMES, validate, validate_first
from voxfleet.v1 import audio_pb2, job_pb2, synthesis_pb2, trust_pb2, voice_pb2

CALLER = Caller(team="alpha")
A = "teams/alpha"
B = "teams/beta"

BAD = [
    (audio_pb2.GetAudioRequest(name="nonsense"), Reason.INVALID_ARGUMENT, "name"),
    (audio_pb2.GetAudioRequest(name=f"{A}/voices/some-thing"), Reason.INVALID_ARGUMENT, "name"),
    (audio_pb2.GetAudioRequest(name=f"{A}/audios/../x"), Reason.INVALID_ARGUMENT, "name"),
    (audio_pb2.ListAudiosRequest(parent=A, page_size=-1), Reason.INVALID_ARGUMENT, "page_size"),
    (
        audio_pb2.DownloadAudioRequest(name=f"{A}/audios/abcd", offset=-1),
        Reason.RANGE_NOT_SATISFIABLE,
        "offset",
    ),
    (synthesis_pb2.SynthesizeRequest(voice=f"{A}/voices/abcd"), Reason.TEXT_EMPTY, "text"),
    (
        synthesis_pb2.SynthesizeRequest(voice=f"{A}/voices/abcd", text="x" * 5001),
        Reason.TEXT_TOO_LONG,
        "text",
    ),
    (
        synthesis_pb2.SynthesizeRequest(
            voice=f"{A}/voices/abcd", text="x", parameters=synthesis_pb2.SynthesisParameters(speed=9)
        ),
        Reason.INVALID_ARGUMENT,
        "parameters.speed",
    ),
    (voice_pb2.TrainVoiceRequest(parent=A), Reason.INVALID_ARGUMENT, "audios"),
    (
        voice_pb2.TrainVoiceRequest(parent=A, audios=[f"{A}/audios/abcd"] * 2),
        Reason.INVALID_ARGUMENT,
        "audios",
    ),
    (
        voice_pb2.TrainVoiceRequest(
            parent=A,
            audios=[f"{A}/audios/abcd"],
            parameters=voice_pb2.RvcTrainingParameters(epochs=5000),
        ),
        Reason.INVALID_ARGUMENT,
        "parameters.epochs",
    ),
    (voice_pb2.TrainVoiceRequest(parent=A, request_id="x" * 65), Reason.INVALID_ARGUMENT, "request_id"),
    (
        voice_pb2.TrainVoiceRequest(parent=A, audios=[f"{A}/audios/abcd"], labels={"a b": "c"}),
        Reason.INVALID_ARGUMENT,
        "labels.a b",
    ),
    (
        voice_pb2.UpdateVoiceRequest(voice={"name": f"{A}/voices/abcd", "display_name": "x" * 256}),
        Reason.INVALID_ARGUMENT,
        "voice.display_name",
    ),
    (
        job_pb2.UpdateJobRequest(job={"name": f"{A}/jobs/abcd", "labels": {"a b": "c"}}),
        Reason.INVALID_ARGUMENT,
        "job.labels.a b",
    ),
    (job_pb2.ListJobsRequest(parent=A, filter="a" * 5000), Reason.INVALID_ARGUMENT, "filter"),
    (audio_pb2.OpenUpload(parent=A, audio={"sha256": "xyz"}), Reason.INVALID_ARGUMENT, "open.audio.sha256"),
]


@pytest.mark.parametrize(("request_", "reason", "field"), BAD)
def test_what_is_wrong_is_named_by_field(request_, reason, field):
    with pytest.raises(VoxfleetError) as caught:
        validate(request_, CALLER)
    assert caught.value.reason is reason
    assert caught.value.kind is Kind.INVALID
    assert field in [violation.field for violation in caught.value.violations]


def test_everything_wrong_is_said_at_once():
    request = synthesis_pb2.SynthesizeRequest(
        voice=f"{A}/voices/abcd", parameters=synthesis_pb2.SynthesisParameters(steps=1, preset="slow")
    )
    with pytest.raises(VoxfleetError) as caught:
        validate(request, CALLER)
    assert {v.field for v in caught.value.violations} == {"text", "parameters.steps", "parameters.preset"}


FOREIGN = [
    (audio_pb2.GetAudioRequest(name=f"{B}/audios/abcd"), Reason.AUDIO_NOT_FOUND),
    (audio_pb2.ListAudiosRequest(parent=B), Reason.TEAM_NOT_FOUND),
    (job_pb2.WatchJobRequest(name=f"{B}/jobs/abcd"), Reason.JOB_NOT_FOUND),
    (voice_pb2.TrainVoiceRequest(parent=A, audios=[f"{B}/audios/abcd"]), Reason.AUDIO_NOT_FOUND),
    (
        voice_pb2.CreateVoiceRequest(parent=A, voice={"references": [{"audio": f"{B}/audios/abcd"}]}),
        Reason.AUDIO_NOT_FOUND,
    ),
    (voice_pb2.UpdateVoiceRequest(voice={"name": f"{B}/voices/abcd"}), Reason.VOICE_NOT_FOUND),
    (audio_pb2.ResumeUpload(upload=f"{B}/uploads/abcd"), Reason.UPLOAD_NOT_FOUND),
]


@pytest.mark.parametrize(("request_", "reason"), FOREIGN)
@pytest.mark.parametrize("operator", [False, True])
def test_another_teams_names_do_not_exist(request_, reason, operator):
    with pytest.raises(VoxfleetError) as caught:
        validate(request_, Caller(team="alpha", operator=operator))
    assert (caught.value.reason, caught.value.kind) == (reason, Kind.NOT_FOUND)


def test_an_operator_makes_keys_for_other_teams():
    request = trust_pb2.CreateApiKeyRequest(parent=B)
    validate(request, Caller(team="alpha", operator=True))
    with pytest.raises(VoxfleetError):
        validate(request, CALLER)


def test_every_field_of_a_routed_request_that_names_a_resource_is_checked():
    """A request that could name another team's resource unseen would be a hole."""
    suspects = {
        "name",
        "names",
        "audio",
        "audios",
        "voice",
        "voices",
        "job",
        "batch_job",
        "upload",
        "audio_name",
    }
    free = {
        ("CreateVoiceRequest", "voice"),  # a message, whose references are checked
        ("UpdateVoiceRequest", "voice"),
        ("UpdateJobRequest", "job"),
        ("BatchSynthesizeRequest", "voice"),  # judged by metadata: a foreign one fails its items
        ("ListJobsRequest", "batch_job"),  # looked up within the parent's team
    }
    for service, methods in ROUTES.items():
        descriptor = service_descriptor(f"voxfleet.v1.{service}")
        for name in methods:
            request = descriptor.methods_by_name[name].input_type
            checked = {path.split(".")[0].removesuffix("[]") for path in _NAMES.get(request.name, {})}
            fields = {field.name for field in request.fields}
            missing = {
                field
                for field in fields & suspects
                if (request.name, field) not in free and field not in checked
            }
            assert not missing, f"{request.name}: {missing}"
            assert message_class(request)


@pytest.mark.parametrize(
    "first",
    [audio_pb2.UploadAudioRequest(), audio_pb2.UploadAudioRequest(chunk=b"x")],
)
def test_a_stream_must_open(first):
    with pytest.raises(VoxfleetError) as caught:
        validate_first(first, CALLER)
    assert caught.value.reason is Reason.INVALID_ARGUMENT
