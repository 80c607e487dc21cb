"""The steps of the main job, each through the public API alone."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc

from demo.record import Record, Step
from services.audio.measure.whole import measure
from services.common.media.decode import decode
from voxfleet.client import Client, JobFailed
from voxfleet.v1 import audio_pb2, audio_pb2_grpc, job_pb2, synthesis_pb2, voice_pb2

CHUNK_BYTES = 64 * 1024
SENTENCE = "Please leave your message after the tone, and someone will call you back."

Say = Callable[[str], None]


@dataclass
class Demo:
    """What the steps share."""

    client: Client
    endpoint: str
    token: str
    team: str
    speech: Path
    lines: Path
    out: Path
    record: Record
    say: Say
    watch: Callable[[str], job_pb2.Job]
    """Waits for a job and draws its progress."""
    clips: dict[str, dict[str, Any]] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)
    """Resource names by what they are to the demo."""

    def __post_init__(self) -> None:
        manifest = json.loads((self.speech / "manifest.json").read_text())
        self.clips = {clip["file"]: clip for clip in manifest["files"]}
        (self.out / "audio").mkdir(parents=True, exist_ok=True)

    def keep(self, step: Step, name: str, data: bytes) -> Path:
        """Keeps an audio file beside the report."""
        path = self.out / "audio" / name
        path.write_bytes(data)
        step.files.append(f"audio/{name}")
        return path


def upload(demo: Demo, step: Step) -> None:
    """Uploads a minute of speech by streaming; the first stream is cut half way, the second resumes."""
    path = demo.speech / "target_en.flac"
    data = path.read_bytes()
    half = len(data) // 2
    parent = f"teams/{demo.team}"
    headers = (("authorization", f"Bearer {demo.token}"),)
    spec = audio_pb2.AudioSpec(
        display_name=path.name,
        purpose=audio_pb2.AUDIO_PURPOSE_TRAINING,
        size_bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
    )
    upload_id = (
        f"demo-{hashlib.sha256(str(demo.out).encode() + data).hexdigest()[:12]}-{len(demo.record.steps)}"
    )
    with grpc.insecure_channel(demo.endpoint) as channel:
        stub = audio_pb2_grpc.AudioServiceStub(channel)
        name = f"{parent}/uploads/{upload_id}"

        def cut() -> Iterator[audio_pb2.UploadAudioRequest]:
            opened = audio_pb2.OpenUpload(parent=parent, upload_id=upload_id, audio=spec)
            yield audio_pb2.UploadAudioRequest(open=opened)
            yield from _chunks(data[:half])
            _wait_known(stub, name, headers)
            raise ConnectionError("the demo cuts its own stream here")

        try:
            stub.UploadAudio(cut(), metadata=headers, timeout=60)
        except grpc.RpcError:
            demo.say("stream cut on purpose")
        offset = _durable_offset(stub, name, headers)
        demo.say(f"resuming at byte {offset} of {len(data)}")

        def rest() -> Iterator[audio_pb2.UploadAudioRequest]:
            resumed = audio_pb2.ResumeUpload(upload=name, offset=offset)
            yield audio_pb2.UploadAudioRequest(resume=resumed)
            yield from _chunks(data[offset:])

        audio = stub.UploadAudio(rest(), metadata=headers, timeout=120)
    if audio.sha256 != spec.sha256:
        raise AssertionError("the committed bytes are not the file's")
    demo.names["target"] = step.artifact = audio.name
    step.measures |= {"size_mb": len(data) / 1e6, "resumed_at_byte": float(offset)}


def analyse(demo: Demo, step: Step) -> None:
    """Shows the quality report of the upload."""
    found = demo.client.audio.analyze(demo.names["target"], waveform_points=512)
    m = found.measures
    step.artifact = demo.names["target"]
    step.measures |= {
        "duration_s": m.duration_s,
        "snr_db": m.snr_db,
        "integrated_lufs": m.integrated_lufs,
        "peak_dbfs": m.peak_dbfs,
        "voice_activity_ratio": m.voice_activity_ratio,
        "grade": found.assessment.grade,
    }
    demo.keep(step, "target.flac", (demo.speech / "target_en.flac").read_bytes())
    demo.say("; ".join([*found.assessment.reasons, *found.assessment.recommendations]) or "no complaints")


def train(demo: Demo, step: Step) -> None:
    """Trains an RVC voice on one whole GPU."""
    job = demo.client.voices.train(
        [demo.names["target"]], display_name="Demo voice", parameters=voice_pb2.RvcTrainingParameters()
    )
    done = demo.watch(job.name)
    voice = demo.client.voices.get(done.result.voice)
    demo.names["voice"] = step.artifact = voice.name
    step.weights = _weights(done.result.weights, trained=done.result.weights_trained)
    step.measures |= dict(sorted(done.result.metrics.items()))
    step.curve = [(point.step, dict(point.metrics)) for point in done.result.curve]


def clone(demo: Demo, step: Step) -> None:
    """Makes a zero-shot voice from a ten-second clip."""
    clip = demo.clips["reference_en.flac"]
    audio = demo.client.audio.upload(demo.speech / clip["file"], purpose="reference")
    voice = demo.client.voices.create(
        reference=audio.name, text=clip["text"], display_name="Demo clone", languages=["en"]
    )
    demo.names |= {"reference": audio.name, "clone": voice.name}
    step.artifact = voice.name
    step.measures |= {"snr_db": audio.measures.snr_db, "integrated_lufs": audio.measures.integrated_lufs}
    demo.keep(step, "reference.flac", (demo.speech / clip["file"]).read_bytes())


def synthesise(demo: Demo, step: Step) -> None:
    """Speaks a sentence in the zero-shot voice, streamed."""
    speech = demo.client.synthesis.say(SENTENCE, demo.names["clone"])
    path = demo.out / "audio" / "spoken.wav"
    speech.save_wav(path)
    step.files.append("audio/spoken.wav")
    step.artifact = "audio/spoken.wav"
    step.weights = _weights(speech.provenance.weights, trained=speech.provenance.weights_trained)
    step.measures |= {"rtf": speech.summary.rtf, "steps": float(speech.summary.steps), **_measured(path)}
    if not speech.pcm.strip(b"\0"):
        raise AssertionError("the speech is silent")


def convert(demo: Demo, step: Step) -> None:
    """Turns another speaker's clip into the trained voice."""
    source = demo.speech / "source_it.flac"
    audio = demo.client.audio.upload(source, purpose="conversion")
    done = demo.watch(demo.client.synthesis.convert(audio.name, demo.names["voice"], format="flac").name)
    (output,) = done.result.audios
    demo.names |= {"source": audio.name, "converted": output}
    step.artifact = output
    step.weights = _weights(done.result.weights, trained=done.result.weights_trained)
    demo.keep(step, "before.flac", source.read_bytes())
    path = demo.keep(step, "after.flac", demo.client.audio.download_bytes(output))
    step.measures |= _measured(path)
    step.measures["duration_ratio"] = float(step.measures["duration_s"]) / audio.measures.duration_s


def batch(demo: Demo, step: Step) -> None:
    """Speaks twenty lines as one job; one of them is bad and fails alone."""
    lines = [json.loads(line) for line in demo.lines.read_text().splitlines() if line.strip()]
    job = demo.client.synthesis.batch(
        [(line["id"], line["text"]) for line in lines],
        demo.names["clone"],
        format="opus",
        parameters=synthesis_pb2.SynthesisParameters(preset="fast"),
        display_name="Demo lines",
    )
    done = demo.watch(job.name)
    step.artifact = demo.names["batch"] = done.name
    step.weights = _weights(done.result.weights, trained=done.result.weights_trained)
    items = list(demo.client.jobs.items(done.name))
    for item in items:
        verdict = item.error.reason or ", ".join(item.result.audios)
        demo.say(f"{item.item_id}: {job_pb2.JobState.Name(item.state)[10:].lower()} {verdict}")
    failed = [item for item in items if item.state == job_pb2.JOB_STATE_FAILED]
    step.measures |= {
        "items": float(len(items)),
        "succeeded": float(done.batch_counts.succeeded),
        "failed": float(done.batch_counts.failed),
        "failed_item": ", ".join(f"{item.item_id} {item.error.reason}" for item in failed),
    }
    if len(items) != len(lines) or [item.error.reason for item in failed] != ["TEXT_EMPTY"]:
        raise AssertionError("exactly the empty line should have failed")


def download(demo: Demo, step: Step) -> None:
    """Downloads what the batch made, each verified by its SHA-256."""
    count = size = 0
    for item in demo.client.jobs.items(demo.names["batch"]):
        for name in item.result.audios:
            data = demo.client.audio.download_bytes(name)
            (demo.out / "audio" / f"{item.item_id}.opus").write_bytes(data)
            if not step.files:
                step.files.append(f"audio/{item.item_id}.opus")
            count, size = count + 1, size + len(data)
    step.artifact = f"{count} files"
    step.measures |= {"files": float(count), "size_mb": size / 1e6}


def tidy(demo: Demo, step: Step) -> None:
    """Lists what the team has, and deletes what it may; what is in use is refused."""
    before = list(demo.client.audio.list())
    voices = list(demo.client.voices.list())
    demo.client.audio.delete(demo.names["converted"])
    demo.client.voices.delete(demo.names["clone"])
    demo.client.audio.delete(demo.names["reference"])
    after = {audio.name for audio in demo.client.audio.list()}
    if {demo.names["converted"], demo.names["reference"]} & after:
        raise AssertionError("what was deleted is still listed")
    step.artifact = f"{len(after)} audios left"
    step.measures |= {
        "audios": float(len(before)),
        "voices": float(len(voices)),
        "deleted": float(len(before) - len(after)),
    }


STEPS: tuple[Callable[[Demo, Step], None], ...] = (
    upload,
    analyse,
    train,
    clone,
    synthesise,
    convert,
    batch,
    download,
    tidy,
)


def explain(error: Exception) -> str:
    """What to print of a step that failed."""
    if isinstance(error, JobFailed):
        return f"{error.reason}: {error}"
    return f"{type(error).__name__}: {error}"


def _chunks(data: bytes) -> Iterator[audio_pb2.UploadAudioRequest]:
    for start in range(0, len(data), CHUNK_BYTES):
        yield audio_pb2.UploadAudioRequest(chunk=data[start : start + CHUNK_BYTES])


def _wait_known(
    stub: audio_pb2_grpc.AudioServiceStub, name: str, headers: tuple[tuple[str, str], ...]
) -> None:
    """Waits until the server knows the upload: a stream cut before that leaves nothing to resume."""
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            stub.GetUpload(audio_pb2.GetUploadRequest(name=name), metadata=headers, timeout=10)
            return
        except grpc.RpcError:
            time.sleep(0.1)


def _durable_offset(
    stub: audio_pb2_grpc.AudioServiceStub, name: str, headers: tuple[tuple[str, str], ...]
) -> int:
    """Where to resume; the server may still be putting away what came before the cut."""
    offset, deadline = 0, time.monotonic() + 20
    while offset == 0 and time.monotonic() < deadline:
        try:
            request = audio_pb2.GetUploadRequest(name=name)
            offset = stub.GetUpload(request, metadata=headers, timeout=10).durable_offset
        except grpc.RpcError:
            time.sleep(0.1)
    return offset


def _measured(path: Path) -> dict[str, float | str]:
    found = measure(decode(path, mono=False))
    return {
        "duration_s": found.duration_s,
        "integrated_lufs": found.integrated_lufs,
        "peak_dbfs": found.peak_dbfs,
    }


def _weights(name: str, *, trained: bool) -> str:
    return name if trained else f"{name} (untrained weights)"
