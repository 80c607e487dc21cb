"""What can be judged of a request without asking anyone: names, sizes, ranges.

Everything that is wrong with a request is said at once, as ``BadRequest`` per field.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from google.protobuf import message

from services.common import pronouncing, speaking
from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError
from services.common.limits import (
    CONVERTING_ENGINES,
    F0_METHODS,
    MAX_DEPENDENCIES,
    MAX_SEED,
    MAX_TEXT,
    MAX_WORD,
)
from services.common.rpc.caller import Caller
from services.gateway.checks import Checks
from services.gateway.ownership import check_names
from voxfleet.v1 import audio_pb2, fleet_pb2, job_pb2, lexicon_pb2, synthesis_pb2, trust_pb2, voice_pb2

MAX_CHUNK_BYTES = 2 * 1024 * 1024
MAX_LABELS = 64
MAX_DISPLAY_NAME = 255
MAX_QUERY = 1900
MAX_LICENCES = 64
MAX_PRIORITY = 100
MAX_BATCH_AUDIOS = 1000
MAX_TRAINING_AUDIOS = 100
MAX_URL = 2000
MAX_QUOTA = 1_000_000_000_000
MAX_WEIGHT = 1_000_000

TRAINING_PRESETS = ("", "v2_32k", "v2_40k", "v2_48k", "tiny_40k")
CONTENT_ENCODERS = ("", "contentvec", "whisper-base")


def validate(request: message.Message, caller: Caller) -> None:
    """Judges a request. Errors: INVALID_ARGUMENT and the reasons of names, texts and sizes."""
    checks = Checks()
    _check_common(request, checks)
    if specific := _SPECIFIC.get(request.DESCRIPTOR.name):
        specific(request, checks)
    checks.finish()
    check_names(request, caller)


def _check_common(request: Any, checks: Checks) -> None:
    fields = request.DESCRIPTOR.fields_by_name
    if "page_size" in fields and request.page_size < 0:
        checks.wrong("page_size", "must not be negative")
    if "request_id" in fields and not re.fullmatch(r"[\x21-\x7e]{0,64}", request.request_id):
        checks.wrong("request_id", "has at most 64 printable characters")
    if "labels" in fields:
        _check_labels(request.labels, "labels", checks)
    if "display_name" in fields:
        _check_display_name(request.display_name, "display_name", checks)
    for field in ("filter", "query"):
        if field in fields and len(getattr(request, field)) > MAX_QUERY:
            checks.wrong(field, f"has at most {MAX_QUERY} characters")


def _check_waiting(request: Any, checks: Checks) -> None:
    """What every submit says of its place in the queue."""
    checks.within("priority", request.priority, -MAX_PRIORITY, MAX_PRIORITY)
    if len(request.depends_on) > MAX_DEPENDENCIES:
        checks.wrong("depends_on", f"has at most {MAX_DEPENDENCIES} jobs, not {len(request.depends_on)}")


def _check_display_name(name: str, field: str, checks: Checks) -> None:
    if len(name) > MAX_DISPLAY_NAME:
        checks.wrong(field, f"has at most {MAX_DISPLAY_NAME} characters")


def _check_labels(labels: Any, field: str, checks: Checks) -> None:
    if len(labels) > MAX_LABELS:
        checks.wrong(field, f"has at most {MAX_LABELS} entries")
    for key, value in labels.items():
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", key) or len(value) > 255:
            checks.wrong(f"{field}.{key[:63]}", "keys have 1 to 63 of A-Za-z0-9_.-, values at most 255")


def _check_text(text: str, field: str, checks: Checks) -> None:
    if not text.strip():
        checks.wrong(field, "has nothing to speak", Reason.TEXT_EMPTY)
    elif len(text) > MAX_TEXT:
        checks.wrong(
            field,
            f"has {len(text)} characters; at most {MAX_TEXT}: send long texts as a batch",
            Reason.TEXT_TOO_LONG,
            max_characters=MAX_TEXT,
            characters=len(text),
        )


def _check_speaking(p: synthesis_pb2.SynthesisParameters, field: str, checks: Checks) -> None:
    checks.note(speaking.spoken_faults(p, field))


def _check_output(output: synthesis_pb2.OutputFormat, field: str, checks: Checks) -> None:
    checks.note(speaking.output_faults(output, field))


def _lexicon(
    request: lexicon_pb2.CreateLexiconRequest | lexicon_pb2.UpdateLexiconRequest, checks: Checks
) -> None:
    lexicon = request.lexicon
    _check_display_name(lexicon.display_name, "lexicon.display_name", checks)
    if not re.fullmatch(rf"[A-Za-z0-9-]{{0,{MAX_WORD}}}", lexicon.language):
        checks.wrong("lexicon.language", "is a BCP-47 tag, such as pt-BR")
    entries = [(entry.grapheme, entry.alias) for entry in lexicon.entries]
    for fault in pronouncing.faults(entries, field="lexicon.entries"):
        checks.wrong(fault.field, fault.description)


def _audio_spec(spec: audio_pb2.AudioSpec, checks: Checks) -> None:
    if spec.size_bytes < 0:
        checks.wrong("open.audio.size_bytes", "must not be negative")
    if spec.sha256 and not re.fullmatch(r"[0-9a-f]{64}", spec.sha256):
        checks.wrong("open.audio.sha256", "is 64 lower-case hexadecimal digits")
    if spec.purpose == audio_pb2.AUDIO_PURPOSE_OUTPUT:
        checks.wrong("open.audio.purpose", "OUTPUT is for what Voxfleet made")
    _check_display_name(spec.display_name, "open.audio.display_name", checks)
    _check_labels(spec.labels, "open.audio.labels", checks)


def _open_upload(request: audio_pb2.OpenUpload, checks: Checks) -> None:
    _audio_spec(request.audio, checks)


def _resume_upload(request: audio_pb2.ResumeUpload, checks: Checks) -> None:
    if request.offset < 0:
        checks.wrong("resume.offset", "must not be negative")


def _analyze(request: audio_pb2.AnalyzeAudioRequest, checks: Checks) -> None:
    checks.within("waveform_points", request.waveform_points, 0, 4096)


def _download(request: audio_pb2.DownloadAudioRequest, checks: Checks) -> None:
    if request.offset < 0:
        checks.wrong("offset", "must not be negative", Reason.RANGE_NOT_SATISFIABLE)
    if request.limit < 0:
        checks.wrong("limit", "must not be negative", Reason.RANGE_NOT_SATISFIABLE)


def _create_voice(request: voice_pb2.CreateVoiceRequest, checks: Checks) -> None:
    if not 1 <= len(request.voice.references) <= 16:
        checks.wrong("voice.references", "has 1 to 16 clips")
    _check_labels(request.voice.labels, "voice.labels", checks)
    _check_display_name(request.voice.display_name, "voice.display_name", checks)


def _update_voice(request: voice_pb2.UpdateVoiceRequest, checks: Checks) -> None:
    _check_labels(request.voice.labels, "voice.labels", checks)
    _check_display_name(request.voice.display_name, "voice.display_name", checks)


def _update_job(request: job_pb2.UpdateJobRequest, checks: Checks) -> None:
    _check_labels(request.job.labels, "job.labels", checks)
    _check_display_name(request.job.display_name, "job.display_name", checks)
    checks.within("job.priority", request.job.priority, -MAX_PRIORITY, MAX_PRIORITY)


def _team(request: trust_pb2.CreateTeamRequest | trust_pb2.UpdateTeamRequest, checks: Checks) -> None:
    _check_display_name(request.team.display_name, "team.display_name", checks)
    if len(request.team.allowed_licences) > MAX_LICENCES:
        checks.wrong("team.allowed_licences", f"has at most {MAX_LICENCES} entries")
    for number, licence in enumerate(request.team.allowed_licences):
        if not _is_licence(licence):
            checks.wrong(f"team.allowed_licences[{number}]", "is an SPDX id, such as CC-BY-4.0")


def _create_api_key(request: trust_pb2.CreateApiKeyRequest, checks: Checks) -> None:
    _check_display_name(request.api_key.display_name, "api_key.display_name", checks)


def _train_voice(request: voice_pb2.TrainVoiceRequest, checks: Checks) -> None:
    if not 1 <= len(request.audios) <= MAX_TRAINING_AUDIOS:
        checks.wrong("audios", f"has 1 to {MAX_TRAINING_AUDIOS} entries")
    elif len(set(request.audios)) < len(request.audios):
        checks.wrong("audios", "names an audio twice")
    p = request.parameters
    checks.within("parameters.epochs", p.epochs, 0, 2000)
    checks.within("parameters.batch_size", p.batch_size, 0, 64)
    checks.within("parameters.learning_rate", p.learning_rate, 0.0, 0.1)
    checks.within("parameters.save_every", p.save_every, 0, 2000)
    checks.within("parameters.gpus", p.gpus, 0, 8)
    checks.within("parameters.max_steps", p.max_steps, 0, 10_000_000)
    checks.within("parameters.seed", p.seed, 0, MAX_SEED)
    checks.one_of("parameters.preset", p.preset, TRAINING_PRESETS)
    checks.one_of("parameters.f0_method", p.f0_method, F0_METHODS)
    checks.one_of("parameters.content_encoder", p.content_encoder, CONTENT_ENCODERS)
    if not re.fullmatch(rf"[A-Za-z0-9._-]{{0,{MAX_WORD}}}", p.gpu_type):
        checks.wrong("parameters.gpu_type", f"has at most {MAX_WORD} of A-Za-z0-9._-, such as H200")
    _check_waiting(request, checks)


def _import_voice(request: voice_pb2.ImportVoiceRequest, checks: Checks) -> None:
    if not request.model_file:
        checks.wrong("model_file", "names the file to import: upload it with the purpose VOICE_FILE")
    if request.weights_licence and not _is_licence(request.weights_licence):
        checks.wrong("weights_licence", "is an SPDX id, such as CC-BY-4.0")


def _export_voice(request: voice_pb2.ExportVoiceRequest, checks: Checks) -> None:
    if request.format not in voice_pb2.VoiceExportFormat.values():
        checks.wrong("format", "is VOXFLEET or PTH")


def _is_licence(text: str) -> bool:
    return re.fullmatch(rf"[A-Za-z0-9.+-]{{1,{MAX_WORD}}}", text) is not None


def _synthesize(request: synthesis_pb2.SynthesizeRequest, checks: Checks) -> None:
    _check_text(request.text, "text", checks)
    _check_speaking(request.parameters, "parameters", checks)
    _check_output(request.output, "output", checks)


def _batch(request: synthesis_pb2.BatchSynthesizeRequest, checks: Checks) -> None:
    # A bad item fails alone, in its row; only what is the batch's own is judged here.
    _check_speaking(request.parameters, "parameters", checks)
    _check_output(request.output, "output", checks)
    _check_waiting(request, checks)
    if not request.items:
        checks.wrong("items", "a batch has at least one item")
    for number, item in enumerate(request.items):
        if item.HasField("parameters"):
            _check_speaking(item.parameters, f"items[{number}].parameters", checks)


def _convert(request: synthesis_pb2.ConvertAudioRequest, checks: Checks) -> None:
    if not 1 <= len(request.audios) <= MAX_BATCH_AUDIOS:
        checks.wrong("audios", f"has 1 to {MAX_BATCH_AUDIOS} entries")
    if request.engine not in ("", *CONVERTING_ENGINES):
        checks.wrong(
            "engine",
            f"must be {' or '.join(CONVERTING_ENGINES)}, not {request.engine[:40]!r}",
            Reason.UNSUPPORTED_ENGINE,
            engine=request.engine[:40],
            supported_engines=", ".join(CONVERTING_ENGINES),
        )
    p = request.parameters
    _check_parts_of_engine(request.engine or "rvc", p, checks)
    checks.note(speaking.conversion_faults(p, "parameters"))
    q = p.preprocessing
    if q.denoise or q.isolate_voice or q.target_lufs:
        checks.wrong(
            "parameters.preprocessing", "cleaning is not built in this release", Reason.FEATURE_NOT_BUILT
        )
    _check_output(request.output, "output", checks)
    _check_waiting(request, checks)


def _check_parts_of_engine(engine: str, p: synthesis_pb2.ConversionParameters, checks: Checks) -> None:
    """What only one of the engines heeds is wrong for the other: it would be passed over in silence."""
    if engine != "f5":
        if p.HasField("speaking"):
            checks.wrong("parameters.speaking", "is of engine f5")
        return
    given = {field.name for field, _ in p.ListFields()}
    for field in ("index_rate", "filter_radius", "rms_mix_rate", "protect", "f0_method", "auto_pitch"):
        if field in given:
            checks.wrong(f"parameters.{field}", "is of engine rvc")
    checks.note(speaking.faults(p.speaking, "parameters.speaking"))
    for field in ("speaker", "conversion"):
        if field in {set_field.name for set_field, _ in p.speaking.ListFields()}:
            checks.wrong(f"parameters.speaking.{field}", "is of texts in a trained voice: leave it out")
    checks.within("parameters.pitch_shift", p.pitch_shift, -12, 12)
    for field, own in (("duration_s", (0.0,)), ("speed", (0.0, 1.0))):
        if getattr(p.speaking, field) not in own:
            checks.wrong(f"parameters.speaking.{field}", "is the recording's own: leave it out")


def _update_quota(request: fleet_pb2.UpdateQuotaRequest, checks: Checks) -> None:
    for field in ("max_gpus", "max_queued_jobs", "max_gpu_seconds_per_day"):
        if field in request.update_mask.paths:
            checks.within(f"quota.{field}", getattr(request.quota, field), 0, MAX_QUOTA)
    # What is not in the mask is not looked at: an unset weight is 0.
    if "weight" in request.update_mask.paths and not 0 < request.quota.weight <= MAX_WEIGHT:
        checks.wrong("quota.weight", f"must be above 0 and at most {MAX_WEIGHT:g}")


def _usage(request: fleet_pb2.GetUsageRequest, checks: Checks) -> None:
    start, end = request.start_time, request.end_time
    both = request.HasField("start_time") and request.HasField("end_time")
    if both and (end.seconds, end.nanos) < (start.seconds, start.nanos):
        checks.wrong("end_time", "is before start_time")


def _create_webhook(request: job_pb2.CreateWebhookRequest, checks: Checks) -> None:
    url = request.webhook.url
    if not re.fullmatch(r"https?://[\x21-\x7e]+", url) or len(url) > MAX_URL:
        checks.wrong("webhook.url", f"is an http or https address of at most {MAX_URL} characters")
    for number, state in enumerate(request.webhook.states):
        if state not in job_pb2.JobState.values() or state == job_pb2.JOB_STATE_UNSPECIFIED:
            checks.wrong(f"webhook.states[{number}]", "is not a state of a job")


_SPECIFIC: Final[dict[str, Callable[[Any, Checks], None]]] = {
    "OpenUpload": _open_upload,
    "ResumeUpload": _resume_upload,
    "AnalyzeAudioRequest": _analyze,
    "DownloadAudioRequest": _download,
    "CreateVoiceRequest": _create_voice,
    "UpdateVoiceRequest": _update_voice,
    "UpdateJobRequest": _update_job,
    "CreateTeamRequest": _team,
    "UpdateTeamRequest": _team,
    "CreateApiKeyRequest": _create_api_key,
    "TrainVoiceRequest": _train_voice,
    "ImportVoiceRequest": _import_voice,
    "ExportVoiceRequest": _export_voice,
    "CreateLexiconRequest": _lexicon,
    "UpdateLexiconRequest": _lexicon,
    "SynthesizeRequest": _synthesize,
    "BatchSynthesizeRequest": _batch,
    "ConvertAudioRequest": _convert,
    "UpdateQuotaRequest": _update_quota,
    "GetUsageRequest": _usage,
    "CreateWebhookRequest": _create_webhook,
}


def validate_first(request: Any, caller: Caller) -> None:
    """Judges the first message of a client's stream: it opens, and is judged as what it opens.

    Errors: INVALID_ARGUMENT where it opens nothing.
    """
    part = request.WhichOneof(request.DESCRIPTOR.oneofs[0].name)
    if part is None or not isinstance(opened := getattr(request, part), message.Message):
        names_of = [field.name for field in request.DESCRIPTOR.oneofs[0].fields if field.message_type]
        raise VoxfleetError(
            Reason.INVALID_ARGUMENT,
            f"the first message of this stream must be {' or '.join(names_of)}",
            kind=Kind.INVALID,
            violations=[FieldViolation(names_of[0], "is missing")],
        )
    validate(opened, caller)
