import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.rpc.caller import Caller
from services.common.rpc.handlers import message_class, service_descriptor
from services.gateway.ownership import NAMES
from services.gateway.routes import ROUTES
from services.gateway.validation import validate, validate_first
from voxfleet.v1 import audio_pb2, fleet_pb2, job_pb2, lexicon_pb2, synthesis_pb2, trust_pb2, voice_pb2

CALLER = Caller(team="alpha")
A = "teams/alpha"
B = "teams/beta"

BAD = [
    (
        trust_pb2.CreateTeamRequest(team_id="gamma", team={"allowed_licences": ["MIT", "any thing"]}),
        Reason.INVALID_ARGUMENT,
        "team.allowed_licences[1]",
    ),
    (
        trust_pb2.UpdateTeamRequest(team={"name": A, "allowed_licences": ["MIT"] * 65}),
        Reason.INVALID_ARGUMENT,
        "team.allowed_licences",
    ),
    (trust_pb2.VerifyProvenanceRequest(audio="nonsense"), Reason.INVALID_ARGUMENT, "audio"),
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
    (
        lexicon_pb2.CreateLexiconRequest(
            parent=A, lexicon={"entries": [{"grapheme": "a", "alias": "b"}, {"grapheme": "A", "alias": "c"}]}
        ),
        Reason.INVALID_ARGUMENT,
        "lexicon.entries[1].grapheme",
    ),
    (
        lexicon_pb2.UpdateLexiconRequest(
            lexicon={"name": f"{A}/lexicons/names", "entries": [{"grapheme": "a"}]}
        ),
        Reason.INVALID_ARGUMENT,
        "lexicon.entries[0].alias",
    ),
    (
        lexicon_pb2.CreateLexiconRequest(parent=A, lexicon={"language": "not a tag"}),
        Reason.INVALID_ARGUMENT,
        "lexicon.language",
    ),
    (
        synthesis_pb2.SynthesizeRequest(
            voice=f"{A}/voices/abcd",
            text="x",
            parameters={"lexicons": [f"{A}/lexicons/l-{n:04}" for n in range(9)]},
        ),
        Reason.INVALID_ARGUMENT,
        "parameters.lexicons",
    ),
    (
        synthesis_pb2.BatchSynthesizeRequest(
            parent=A, items=[{"text": "x"}], parameters={"lexicons": [f"{A}/lexicons/names"] * 2}
        ),
        Reason.INVALID_ARGUMENT,
        "parameters.lexicons",
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
    (
        voice_pb2.TrainVoiceRequest(
            parent=A,
            audios=[f"{A}/audios/abcd"],
            parameters=voice_pb2.RvcTrainingParameters(gpu_type="H200; DROP"),
        ),
        Reason.INVALID_ARGUMENT,
        "parameters.gpu_type",
    ),
    (fleet_pb2.GetQuotaRequest(name=A), Reason.INVALID_ARGUMENT, "name"),
    (fleet_pb2.GetQuotaRequest(name=f"{A}/quota/x"), Reason.INVALID_ARGUMENT, "name"),
    (fleet_pb2.UpdateQuotaRequest(quota={"name": "quota"}), Reason.INVALID_ARGUMENT, "quota.name"),
    (fleet_pb2.DrainNodeRequest(name="nodes/"), Reason.INVALID_ARGUMENT, "name"),
    (fleet_pb2.DrainNodeRequest(name="host-1"), Reason.INVALID_ARGUMENT, "name"),
    (fleet_pb2.ResumeNodeRequest(name="nodes/a/b"), Reason.INVALID_ARGUMENT, "name"),
    (
        fleet_pb2.GetUsageRequest(parent=A, start_time={"seconds": 9}, end_time={"seconds": 8}),
        Reason.INVALID_ARGUMENT,
        "end_time",
    ),
    (job_pb2.ExplainJobRequest(name=f"{A}/voices/abcd"), Reason.INVALID_ARGUMENT, "name"),
    (job_pb2.DeleteWebhookRequest(name=f"{A}/jobs/abcd"), Reason.INVALID_ARGUMENT, "name"),
    (
        job_pb2.CreateWebhookRequest(parent=A, webhook={"url": "ftp://example.test"}),
        Reason.INVALID_ARGUMENT,
        "webhook.url",
    ),
    (
        job_pb2.CreateWebhookRequest(parent=A, webhook={"url": "https://example.test", "states": [4, 99]}),
        Reason.INVALID_ARGUMENT,
        "webhook.states[1]",
    ),
]

SUBMITS = {
    "train": lambda **facts: voice_pb2.TrainVoiceRequest(parent=A, audios=[f"{A}/audios/abcd"], **facts),
    "convert": lambda **facts: synthesis_pb2.ConvertAudioRequest(
        parent=A, audios=[f"{A}/audios/abcd"], voice=f"{A}/voices/abcd", **facts
    ),
    "batch": lambda **facts: synthesis_pb2.BatchSynthesizeRequest(parent=A, items=[{"text": "Hi."}], **facts),
}


@pytest.mark.parametrize("submit", SUBMITS)
def test_a_submit_says_what_it_waits_for_and_how_urgent_it_is(submit):
    make = SUBMITS[submit]
    jobs = [f"{A}/jobs/job-{number}" for number in range(101)]
    validate(make(depends_on=jobs[:100], priority=-100), CALLER)
    validate(make(priority=100), CALLER)
    for facts, field in (
        ({"depends_on": jobs}, "depends_on"),
        ({"depends_on": ["job-1"]}, "depends_on[0]"),
        ({"depends_on": [jobs[0], f"{A}/voices/abcd"]}, "depends_on[1]"),
        ({"priority": 101}, "priority"),
        ({"priority": -101}, "priority"),
    ):
        with pytest.raises(VoxfleetError) as caught:
            validate(make(**facts), CALLER)
        assert [violation.field for violation in caught.value.violations] == [field]
        assert caught.value.reason is Reason.INVALID_ARGUMENT
    with pytest.raises(VoxfleetError) as caught:
        validate(make(depends_on=[f"{B}/jobs/abcd"]), Caller(team="alpha", operator=True))
    assert caught.value.reason is Reason.JOB_NOT_FOUND


def quota(mask: str, **fields) -> fleet_pb2.UpdateQuotaRequest:
    return fleet_pb2.UpdateQuotaRequest(
        quota={"name": f"{A}/quota", **fields}, update_mask={"paths": mask.split(",")}
    )


@pytest.mark.parametrize(
    ("request_", "field"),
    [
        (quota("max_gpus", max_gpus=-1), "quota.max_gpus"),
        (quota("max_gpus", max_gpus=float("nan")), "quota.max_gpus"),
        (quota("max_gpus", max_gpus=float("inf")), "quota.max_gpus"),
        (quota("max_queued_jobs", max_queued_jobs=-1), "quota.max_queued_jobs"),
        (quota("max_gpu_seconds_per_day", max_gpu_seconds_per_day=-1), "quota.max_gpu_seconds_per_day"),
        (quota("max_gpus,weight", max_gpus=1), "quota.weight"),
        (quota("weight", weight=float("nan")), "quota.weight"),
    ],
)
def test_a_quota_is_a_bound_and_a_weight_is_above_nothing(request_, field):
    with pytest.raises(VoxfleetError) as caught:
        validate(request_, CALLER)
    assert [violation.field for violation in caught.value.violations] == [field]


def test_what_a_quotas_mask_does_not_name_is_not_judged():
    validate(quota("max_gpus", max_gpus=0), CALLER)
    validate(quota("weight", weight=0.5, max_gpus=-3), CALLER)


@pytest.mark.parametrize(
    "request_",
    [
        fleet_pb2.GetQuotaRequest(name=f"{B}/quota"),
        fleet_pb2.UpdateQuotaRequest(quota={"name": f"{B}/quota"}),
        fleet_pb2.GetUsageRequest(parent=B),
    ],
)
def test_another_teams_figures_are_an_operators_to_see(request_):
    validate(request_, Caller(team="alpha", operator=True))
    with pytest.raises(VoxfleetError) as caught:
        validate(request_, CALLER)
    assert (caught.value.reason, caught.value.kind) == (Reason.TEAM_NOT_FOUND, Kind.NOT_FOUND)


def test_a_node_is_nobodys():
    validate(fleet_pb2.DrainNodeRequest(name="nodes/gpu-07.example-1a2b3c4d"), CALLER)


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
    (job_pb2.ExplainJobRequest(name=f"{B}/jobs/abcd"), Reason.JOB_NOT_FOUND),
    (job_pb2.ListWebhooksRequest(parent=B), Reason.TEAM_NOT_FOUND),
    (job_pb2.DeleteWebhookRequest(name=f"{B}/webhooks/abcd"), Reason.INVALID_ARGUMENT),
    (trust_pb2.VerifyProvenanceRequest(audio=f"{B}/audios/abcd"), Reason.AUDIO_NOT_FOUND),
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
        "depends_on",
        "quota",
        "webhook",
        "model_file",
        "index_file",
    }
    free = {
        ("CreateVoiceRequest", "voice"),  # a message, whose references are checked
        ("UpdateVoiceRequest", "voice"),
        ("UpdateJobRequest", "job"),
        ("BatchSynthesizeRequest", "voice"),  # judged by metadata: a foreign one fails its items
        ("ListJobsRequest", "batch_job"),  # looked up within the parent's team
        ("CreateWebhookRequest", "webhook"),  # a message; its name is made by us
    }
    for service, methods in ROUTES.items():
        descriptor = service_descriptor(f"voxfleet.v1.{service}")
        for name in methods:
            request = descriptor.methods_by_name[name].input_type
            checked = {path.split(".")[0].rstrip("[]?") for path in NAMES.get(request.name, {})}
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
