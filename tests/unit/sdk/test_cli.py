"""The ``voxfleet`` command, in this process: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from services.common.errors import FieldViolation, Kind, Reason, VoxfleetError
from tests.unit.sdk.server import TEAM, Double, change, job
from tests.unit.sdk.test_synthesis import HEADER, PCM, PIECES, SUMMARY
from voxfleet.cli import output
from voxfleet.cli.main import app
from voxfleet.v1 import audio_pb2, error_pb2, job_pb2, synthesis_pb2

NAME = f"{TEAM}/jobs/j-0001"
SUCCEEDED, FAILED = job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED
Run = Callable[..., Result]


@pytest.fixture
def run(endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    monkeypatch.setenv("VOXFLEET_ENDPOINT", endpoint)
    monkeypatch.setenv("VOXFLEET_TOKEN", "vf-test")
    monkeypatch.setenv("VOXFLEET_TEAM", "acme")
    monkeypatch.chdir(tmp_path)
    runner = CliRunner()
    return lambda *words: runner.invoke(app, list(words), catch_exceptions=False)


def parsed(result: Result) -> Any:
    return json.loads(result.stdout)


def test_upload_and_list_and_download(run: Run, double: Double, tmp_path: Path) -> None:
    for name in ("one.wav", "two.wav"):
        (tmp_path / name).write_bytes(name.encode())
    done = run(
        "audio", "upload", "one.wav", "two.wav", "--purpose", "training", "--label", "a=b", "--wait", "--json"
    )
    assert done.exit_code == 0
    assert [audio["display_name"] for audio in parsed(done)["audios"]] == ["", ""]
    assert [audio["size_bytes"] for audio in parsed(done)["audios"]] == ["7", "7"]
    assert double.asked("UploadAudio")[0].open.audio.purpose == audio_pb2.AUDIO_PURPOSE_TRAINING

    heading, *rows = run("audio", "list").stdout.splitlines()
    assert heading.split("\t")[0] == "ID"
    assert [row.split("\t")[0] for row in rows] == ["a-0001", "a-0002"]

    assert run("audio", "download", "a-0002", "-o", "back.wav").stdout == "back.wav\n"
    assert (tmp_path / "back.wav").read_bytes() == b"two.wav"
    assert run("audio", "download", "a-0001").exit_code == 0
    assert (tmp_path / "a-0001.wav").read_bytes() == b"one.wav"
    assert run("audio", "url", "a-0001").stdout.startswith("https://")


def test_a_file_stands_for_its_upload(run: Run, double: Double, tmp_path: Path) -> None:
    (tmp_path / "clip.wav").write_bytes(b"clip")
    done = run("voice", "create", "--reference", "clip.wav", "--text", "Hello.", "--id", "v-anna", "--json")
    assert done.exit_code == 0
    assert parsed(done)["references"] == [{"audio": f"{TEAM}/audios/a-0001", "text": "Hello.", "style": ""}]
    assert double.asked("UploadAudio")[0].open.audio.purpose == audio_pb2.AUDIO_PURPOSE_REFERENCE
    assert run("voice", "create", "--reference", "missing.wav", "--text", "Hello.").exit_code == 2


def test_untrained_weights_are_named_in_every_output(run: Run, double: Double) -> None:
    made = run("voice", "create", "--reference", "a-0001", "--text", "Hi.", "--id", "v-anna")
    assert "note: untrained weights (f5-smoke)" in made.stderr
    assert "untrained weights" in run("voice", "list").stdout
    as_json = run("voice", "show", "v-anna", "--json")
    assert json.loads(as_json.stderr) == {"note": "untrained weights", "weights": "f5-smoke"}
    assert parsed(as_json)["weights_trained"] is False

    double.speech = [HEADER, *PIECES, SUMMARY]
    assert "untrained weights (f5-smoke)" in run("say", "Hello.", "--voice", "v-anna").stderr

    both = audio_pb2.Provenance(weights_trained=True, generated=True, speaker="v", speaker_weights="f5-other")
    summary = synthesis_pb2.SynthesizeResponse(summary=synthesis_pb2.SynthesisSummary(provenance=both))
    double.speech = [HEADER, *PIECES, summary]
    assert "untrained weights (f5-other)" in run("say", "Hello.", "--voice", "v-rvc").stderr

    double.jobs[NAME] = job(SUCCEEDED, result=job_pb2.JobResult(weights="f5-smoke"))
    double.watches.append([change(1, SUCCEEDED)])
    assert "untrained weights (f5-smoke)" in run("job", "wait", "j-0001").stderr
    double.jobs[NAME].result.weights_trained = True
    double.watches.append([change(1, SUCCEEDED)])
    assert "untrained" not in run("job", "wait", "j-0001").stderr

    double.audios[f"{TEAM}/audios/a-0001"] = b"made"
    double.provenance = audio_pb2.Provenance(generated=True, weights="f5-smoke")
    for words in (("show", "a-0001"), ("list",), ("download", "a-0001", "-o", "x.wav")):
        assert "untrained weights (f5-smoke)" in run("audio", *words).stderr

    double.bundles = [synthesis_pb2.Bundle(name="f5-smoke"), synthesis_pb2.Bundle(name="f5", trained=True)]
    assert "untrained weights (f5-smoke)" in run("models", "list").stderr


def test_say_writes_a_wav(run: Run, double: Double, tmp_path: Path) -> None:
    double.speech = [HEADER, *PIECES, SUMMARY]
    done = run("say", "Hello.", "--voice", "v-anna", "-o", "hello.wav", "--seed", "7", "--json")
    assert parsed(done)["rate_hz"] == 24000
    assert parsed(done)["summary"]["provenance"]["seed"] == "7"
    assert (tmp_path / "hello.wav").read_bytes().endswith(PCM)
    request = double.asked("Synthesize")[0]
    assert (request.voice, request.parameters.seed) == (f"{TEAM}/voices/v-anna", 7)
    piped = run("say", "Hello.", "--voice", "v-anna", "-o", "-")
    assert piped.stdout_bytes == (tmp_path / "hello.wav").read_bytes()


def test_say_in_a_trained_voice_names_the_speaker_and_how_to_convert(run: Run, double: Double) -> None:
    double.speech = [HEADER, *PIECES, SUMMARY]
    how = ("--speaker", "v-anna", "--index-rate", "0", "--f0-method", "swift", "--auto-pitch")
    run("say", "Hello.", "--voice", "v-rvc", *how)
    asked = double.asked("Synthesize")[-1].parameters
    assert asked.speaker == f"{TEAM}/voices/v-anna"
    assert asked.conversion.HasField("index_rate")
    assert (asked.conversion.index_rate, asked.conversion.f0_method) == (0.0, "swift")
    assert not asked.conversion.HasField("protect")
    assert asked.conversion.auto_pitch
    run("say", "Hello.", "--voice", "v-anna")
    plain = double.asked("Synthesize")[-1].parameters
    assert (plain.speaker, plain.HasField("conversion")) == ("", False)


def test_train_follow_shows_changes_and_ends_with_the_job(run: Run, double: Double) -> None:
    double.jobs[NAME] = job(SUCCEEDED, result=job_pb2.JobResult(voice=f"{TEAM}/voices/v-anna"))
    double.watches.append(
        [
            change(1, job_pb2.JOB_STATE_QUEUED),
            change(2, job_pb2.JOB_STATE_RUNNING, phase="train"),
            *[
                job_pb2.WatchJobResponse(
                    cursor=2,
                    job=job_pb2.Job(state=job_pb2.JOB_STATE_RUNNING),
                    progress=job_pb2.JobProgress(phase="train", step=step, percent=step),
                )
                for step in range(50)
            ],
            change(3, SUCCEEDED),
        ]
    )
    done = run("voice", "train", "a-0001", "a-0002", "--name", "Anna", "--epochs", "3", "--follow")
    assert done.exit_code == 0
    assert f"voice: {TEAM}/voices/v-anna" in done.stdout
    lines = done.stderr.splitlines()
    # Fifty steps within a moment are no fifty lines.
    assert lines == [NAME, "QUEUED", "RUNNING  train", "SUCCEEDED"]
    request = double.asked("TrainVoice")[0]
    assert list(request.audios) == [f"{TEAM}/audios/a-0001", f"{TEAM}/audios/a-0002"]
    assert request.parameters.epochs == 3


def test_watch_as_json_lines(run: Run, double: Double) -> None:
    double.jobs[NAME] = job(SUCCEEDED)
    double.watches.append([change(1, job_pb2.JOB_STATE_RUNNING), change(2, SUCCEEDED)])
    done = run("job", "watch", "j-0001", "--json")
    documents = [json.loads(line) for line in done.stdout.splitlines()]
    assert [document["change"]["state"] for document in documents] == [
        "JOB_STATE_RUNNING",
        "JOB_STATE_SUCCEEDED",
    ]


def test_batch_downloads_what_succeeded_and_names_what_failed(
    run: Run, double: Double, tmp_path: Path
) -> None:
    (tmp_path / "lines.jsonl").write_text(
        '{"text": "One.", "id": "a/1"}\n\n{"text": "Two\u2028more.", "parameters": {"seed": 5}}\n',
        encoding="utf-8",
    )
    double.audios[f"{TEAM}/audios/a-0001"] = b"spoken"
    double.jobs[NAME] = job(SUCCEEDED, batch_counts=job_pb2.BatchCounts(total=2, succeeded=1, failed=1))
    double.watches.append([change(1, SUCCEEDED)])
    double.items = [
        job_pb2.Job(
            item_id="a/1", state=SUCCEEDED, result=job_pb2.JobResult(audios=[f"{TEAM}/audios/a-0001"])
        ),
        job_pb2.Job(
            item_index=1, state=FAILED, error=error_pb2.Error(reason="TEXT_EMPTY", message="no text")
        ),
    ]
    done = run("batch", "lines.jsonl", "--voice", "v-anna", "--out-dir", "spoken")
    assert done.exit_code == 0
    assert (tmp_path / "spoken" / "a_1.wav").read_bytes() == b"spoken"
    assert "1: TEXT_EMPTY: no text" in done.stderr
    assert "1 of 2 lines succeeded, 1 failed" in done.stderr
    items = double.asked("BatchSynthesize")[0].items
    assert [(item.id, item.text, item.parameters.seed) for item in items] == [
        ("a/1", "One.", 0),
        ("", "Two\u2028more.", 5),
    ]


def test_a_bad_line_of_a_batch_is_named(run: Run, double: Double, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "One."}\n{"txet": "Two."}\n', encoding="utf-8")
    done = run("batch", "lines.jsonl", "--voice", "v-anna")
    assert done.exit_code == 4
    assert "line 2" in done.stderr
    assert double.asked("BatchSynthesize") == []


def test_convert_downloads_in_the_format_of_the_files_ending(
    run: Run, double: Double, tmp_path: Path
) -> None:
    double.audios[f"{TEAM}/audios/a-out1"] = b"converted"
    double.jobs[NAME] = job(SUCCEEDED, result=job_pb2.JobResult(audios=[f"{TEAM}/audios/a-out1"]))
    double.watches.append([change(1, SUCCEEDED)])
    done = run("convert", "a-0001", "--voice", "v-anna", "--pitch", "0", "-o", "song.flac", "--json")
    assert parsed(done)["file"] == "song.flac"
    assert (tmp_path / "song.flac").read_bytes() == b"converted"
    request = double.asked("ConvertAudio")[0]
    assert request.output.format == synthesis_pb2.AUDIO_FORMAT_FLAC
    assert request.parameters.HasField("pitch_shift")
    assert not request.parameters.HasField("index_rate")


def test_convert_takes_several_files_and_downloads_each_under_its_own_name(
    run: Run, double: Double, tmp_path: Path
) -> None:
    for name in ("one", "two"):
        (tmp_path / f"{name}.wav").write_bytes(name.encode())
    batch = job(SUCCEEDED, batch_counts=job_pb2.BatchCounts(total=2, succeeded=1, failed=1))
    double.jobs[NAME] = batch
    double.watches.append([change(1, SUCCEEDED)])
    double.audios[f"{TEAM}/audios/a-out1"] = b"converted"
    bad = job_pb2.Job(name=f"{TEAM}/jobs/j-2", item_id="x", item_index=1)
    bad.error.reason, bad.error.message = "AUDIO_SILENT", "there is nothing to hear"
    good = job_pb2.Job(name=f"{TEAM}/jobs/j-1", item_id=f"{TEAM}/audios/a", item_index=0)
    good.result.audios.append(f"{TEAM}/audios/a-out1")
    double.items = [good, bad]
    files = ("one.wav", "two.wav")
    done = run("convert", *files, "--voice", "v-anna", "--out-dir", "made", "--format", "flac")
    assert done.exit_code == 0, done.stderr
    assert len(double.asked("ConvertAudio")[0].audios) == 2
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["one.flac"]
    assert "two: AUDIO_SILENT: there is nothing to hear" in done.stderr
    assert "1 of 2 recordings succeeded, 1 failed" in done.stderr
    assert run("convert", *files, "--voice", "v-anna", "-o", "x.flac").exit_code == 2


def test_convert_gives_each_engine_what_is_its_own(run: Run, double: Double) -> None:
    double.jobs[NAME] = job(job_pb2.JOB_STATE_QUEUED)
    assert run("convert", "a-0001", "--voice", "v-anna", "--seed", "3").exit_code == 0
    f5 = ("--engine", "f5", "--preset", "fast", "--language", "en", "--pitch", "-2", "--seed", "3")
    assert run("convert", "a-0001", "--voice", "v-anna", *f5).exit_code == 0
    trained, spoken = double.asked("ConvertAudio")
    assert (trained.engine, trained.parameters.HasField("speaking")) == ("", False)
    assert spoken.engine == "f5"
    assert spoken.parameters == synthesis_pb2.ConversionParameters(
        pitch_shift=-2, seed=3, speaking={"preset": "fast", "language": "en"}
    )


def test_models_pull_asks_for_the_licence(run: Run, double: Double) -> None:
    double.jobs[NAME] = job(job_pb2.JOB_STATE_QUEUED)
    double.bundles = [
        synthesis_pb2.Bundle(
            name="f5-v1-base",
            licence="CC-BY-NC-4.0",
            licence_url="https://cc.example",
            requires_acceptance=True,
        )
    ]
    refused = run("models", "pull", "f5-v1-base")
    assert refused.exit_code == 9
    assert "CC-BY-NC-4.0" in refused.stderr
    assert double.asked("PullBundle") == []
    assert run("models", "pull", "f5-v1-base", "--accept-licence").stdout == f"{NAME}\n"
    assert double.asked("PullBundle")[0].accept_licence
    assert run("models", "pull", "nothing").exit_code == 3


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (Kind.NOT_FOUND, 3),
        (Kind.INVALID, 4),
        (Kind.UNAUTHENTICATED, 5),
        (Kind.FORBIDDEN, 5),
        (Kind.DEADLINE, 6),
        (Kind.PRECONDITION, 9),
        (Kind.CONFLICT, 9),
        (Kind.EXHAUSTED, 10),
        (Kind.INTERNAL, 1),
    ],
)
def test_exit_codes(run: Run, double: Double, kind: Kind, code: int) -> None:
    double.failures["GetFleet"].append(VoxfleetError(Reason.INVALID_ARGUMENT, "no", kind=kind))
    assert run("fleet", "show").exit_code == code


def test_exit_codes_of_jobs(run: Run, double: Double) -> None:
    double.jobs[NAME] = job(FAILED, error=error_pb2.Error(reason="TRAINING_DIVERGED", message="loss is NaN"))
    double.watches.append([change(1, FAILED)])
    failed = run("job", "wait", "j-0001", "--json")
    assert failed.exit_code == 7
    assert parsed(failed)["state"] == "JOB_STATE_FAILED"
    assert json.loads(failed.stderr)["error"]["reason"] == "TRAINING_DIVERGED"
    double.jobs[NAME] = job(job_pb2.JOB_STATE_CANCELLED)
    double.watches.append([change(1, job_pb2.JOB_STATE_CANCELLED)])
    assert run("job", "wait", "j-0001").exit_code == 8


def test_an_error_says_what_is_wrong_and_what_to_do(run: Run, double: Double) -> None:
    error = VoxfleetError(
        Reason.QUEUE_FULL,
        "the team has 100 jobs waiting",
        kind=Kind.EXHAUSTED,
        metadata={"max_queued_jobs": 100},
        violations=[FieldViolation("parent", "at its quota")],
        retry_after_s=30,
    )
    double.failures["GetFleet"].extend([error, error])
    said = run("fleet", "show").stderr
    for part in (
        "QUEUE_FULL",
        "the team has 100 jobs waiting",
        "max_queued_jobs=100",
        "after 30 s",
        "trace-1",
    ):
        assert part in said
    facts = json.loads(run("fleet", "show", "--json").stderr)["error"]
    assert (facts["reason"], facts["retry_after_s"], facts["trace_id"]) == ("QUEUE_FULL", 30.0, "trace-1")


def test_config_says_where_it_comes_from_and_hides_the_token(run: Run, endpoint: str) -> None:
    shown = run("config", "--token", "vf-a-long-secret-1234").stdout
    assert f"endpoint: {endpoint}  (environment (VOXFLEET_ENDPOINT))" in shown
    assert "token: …1234  (argument)" in shown
    assert "secret" not in shown


def test_people_see_the_beginning_of_long_lists(run: Run, double: Double) -> None:
    points = [job_pb2.MetricPoint(step=step, metrics={"loss": 2.5}) for step in range(1, 1001)]
    double.jobs[NAME] = job(SUCCEEDED, result=job_pb2.JobResult(curve=points, audios=["a", "b"]))
    shown = run("job", "show", "j-0001").stdout
    assert "audios: a, b\n" in shown
    assert "- step: 20; metrics: loss=2.5\n" in shown
    assert "step: 21;" not in shown
    assert "… and 980 more" in shown
    assert len(parsed(run("job", "show", "j-0001", "--json"))["result"]["curve"]) == 1000


def test_a_submit_names_what_it_waits_for_and_its_priority(run: Run, double: Double, tmp_path: Path) -> None:
    (tmp_path / "lines.jsonl").write_text('{"text": "One."}\n', encoding="utf-8")
    double.jobs[NAME] = job(job_pb2.JOB_STATE_QUEUED)
    waits = ("--after", "j-0002", "--after", f"{TEAM}/jobs/j-0003", "--priority", "-7")
    for words, method in (
        (("voice", "train", "a-0001", "--gpu-type", "H200"), "TrainVoice"),
        (("convert", "a-0001", "--voice", "v-anna"), "ConvertAudio"),
        (("batch", "lines.jsonl", "--voice", "v-anna"), "BatchSynthesize"),
    ):
        assert run(*words, *waits).exit_code == 0
        assert run(*words).exit_code == 0
        request, plain = double.asked(method)
        assert list(request.depends_on) == [f"{TEAM}/jobs/j-0002", f"{TEAM}/jobs/j-0003"]
        assert (request.priority, list(plain.depends_on), plain.priority) == (-7, [], 0)
    assert double.asked("TrainVoice")[0].parameters.gpu_type == "H200"
    assert run("convert", "a-0001", "--voice", "v-anna", "--after", "teams/acme/voices/v").exit_code == 4


def test_a_priority_is_changed_and_nothing_else(run: Run, double: Double) -> None:
    assert run("job", "priority", "j-0001", "40", "--json").exit_code == 0
    assert run("job", "priority", "j-0001", "--", "-40").exit_code == 0
    up, down = double.asked("UpdateJob")
    assert (up.job.name, up.job.priority, list(up.update_mask.paths)) == (NAME, 40, ["priority"])
    assert down.job.priority == -40


def test_show_lists_the_attempts_and_when_it_is_expected_to_begin(run: Run, double: Double) -> None:
    attempts = [
        job_pb2.JobAttempt(
            attempt=1,
            outcome="FAILED",
            failure_class="resource",
            node="nodes/gpu-1",
            error=error_pb2.Error(reason="GPU_OUT_OF_MEMORY"),
            batch_scale=1.0,
        ),
        job_pb2.JobAttempt(attempt=2, node="nodes/gpu-2", worker="trainer-1", batch_scale=0.5),
    ]
    double.jobs[NAME] = job(
        job_pb2.JOB_STATE_QUEUED,
        attempts=attempts,
        depends_on=[f"{TEAM}/jobs/j-0000"],
        expected_start_time={"seconds": 1_700_000_300},
        earliest_start_time={"seconds": 1_700_000_000},
        latest_start_time={"seconds": 1_700_000_900},
    )
    shown = run("job", "show", "j-0001").stdout
    assert f"depends on: {TEAM}/jobs/j-0000\n" in shown
    heading, first, second = (line.split("\t") for line in shown.splitlines()[-3:])
    assert heading[:6] == ["ATTEMPT", "OUTCOME", "CLASS", "REASON", "NODE", "BATCH"]
    assert first[:6] == ["1", "FAILED", "resource", "GPU_OUT_OF_MEMORY", "gpu-1", ""]
    assert second[:6] == ["2", "RUNNING", "", "", "gpu-2", "0.5"]
    start = [output.when(double.jobs[NAME].expected_start_time)]
    start += [
        output.when(double.jobs[NAME].earliest_start_time),
        output.when(double.jobs[NAME].latest_start_time),
    ]
    assert "expected start: {} (nine of ten between {} and {})\n".format(*start) in shown
    document = parsed(run("job", "show", "j-0001", "--json"))
    assert [attempt["outcome"] for attempt in document["attempts"]] == ["FAILED", ""]


def test_explain_says_why_in_one_line_and_when(run: Run) -> None:
    said = run("job", "explain", "j-0001").stdout.splitlines()
    assert said[0] == "DEPENDENCY: It waits for another job."
    assert said[1:3] == ["queue position: 2", f"depends on: {TEAM}/jobs/j-0000"]
    assert said[3].startswith("expected start: 2023-11-1")
    assert parsed(run("job", "explain", "j-0001", "--json"))["waiting_reason"] == "WAITING_REASON_DEPENDENCY"


def test_operators_steer_the_fleet(run: Run, double: Double) -> None:
    assert run("fleet", "quota").exit_code == run("fleet", "quota", "--team", "blue", "--json").exit_code == 0
    assert [ask.name for ask in double.asked("GetQuota")] == [f"{TEAM}/quota", "teams/blue/quota"]
    changed = run(
        *("fleet", "set-quota", "blue", "--max-gpus", "0", "--max-queued", "50"),
        *("--gpu-seconds-per-day", "3600", "--weight", "1.5", "--json"),
    )
    assert parsed(changed)["name"] == "teams/blue/quota"
    request = double.asked("UpdateQuota")[0]
    assert (request.quota.max_queued_jobs, request.quota.max_gpu_seconds_per_day) == (50, 3600)
    assert (request.quota.weight, request.quota.max_gpus) == (1.5, 0.0)
    assert len(request.update_mask.paths) == 4
    run("fleet", "set-quota", "blue", "--max-gpus", "0")
    assert list(double.asked("UpdateQuota")[1].update_mask.paths) == ["max_gpus"]
    assert run("fleet", "set-quota", "blue").exit_code == 2

    used = run("fleet", "usage", "--team", "blue", "--since", "2025-03-01", "--until", "2025-03-02T12:00:00")
    assert "gpu seconds: 90" in used.stdout
    request = double.asked("GetUsage")[0]
    assert request.parent == "teams/blue"
    assert request.end_time.seconds - request.start_time.seconds == 36 * 3600

    assert "state: draining" in run("fleet", "drain", "gpu-1").stdout
    assert "state: alive" in run("fleet", "resume", "nodes/gpu-1").stdout
    assert [double.asked(method)[0].name for method in ("DrainNode", "ResumeNode")] == ["nodes/gpu-1"] * 2


COMMANDS = {
    "audio": ["upload", "show", "list", "analyze", "download", "url", "verify", "delete"],
    "voice": ["create", "train", "list", "show", "update", "delete", "undelete", "checkpoints"],
    "job": [
        "list", "show", "watch", "wait", "cancel", "pause", "resume", "retry", "update", "priority",
        "explain", "items",
    ],
    "models": ["list", "pull", "import"],
    "fleet": ["show", "queues", "usage", "quota", "set-quota", "drain", "resume"],
    "webhook": ["create", "list", "delete", "verify"],
    "team": ["list", "create", "update"],
    "key": ["list", "create", "revoke"],
    "": ["say", "batch", "convert", "engines", "config", "version"],
}  # fmt: skip


@pytest.mark.parametrize("words", [[g, c] if g else [c] for g, cs in COMMANDS.items() for c in cs])
def test_every_command_has_help_and_json(run: Run, words: list[str]) -> None:
    shown = run(*words, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout
