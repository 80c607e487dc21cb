"""What work looks like on the wire: the values of jobs as the messages of the protos, and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict

from services.common.jobs.model import (
    AudioOutput,
    Fence,
    GpuFacts,
    PitchMatch,
    PoolState,
    Progress,
    SpeechQuality,
    Spoken,
    TrainingGpus,
)
from services.common.jobs.tasks import Blob, TimedWord
from voxfleet.internal.v1 import work_pb2
from voxfleet.v1 import audio_pb2, job_pb2


def fence_to_proto(fence: Fence) -> work_pb2.Fence:
    """The fence on the wire."""
    return work_pb2.Fence(job_id=fence.job_id, attempt=fence.attempt, lease_token=fence.lease_token)


def fence_from_proto(fence: work_pb2.Fence) -> Fence:
    """The fence from the wire."""
    return Fence(fence.job_id, fence.attempt, fence.lease_token)


def blob_to_proto(blob: Blob) -> work_pb2.BlobRef:
    """The blob on the wire."""
    return work_pb2.BlobRef(
        key=blob.key, sha256=blob.sha256, size_bytes=blob.size_bytes, media_type=blob.media_type
    )


def blob_from_proto(blob: work_pb2.BlobRef) -> Blob:
    """The blob from the wire."""
    return Blob(key=blob.key, sha256=blob.sha256, size_bytes=blob.size_bytes, media_type=blob.media_type)


def gpu_facts_from_proto(capacity: work_pb2.WorkerCapacity) -> GpuFacts:
    """The GPU facts from the wire."""
    return GpuFacts(
        tuple(TrainingGpus(one.job_id, round(one.gpus), one.node, one.held_s) for one in capacity.trainings),
        tuple(
            PoolState(
                name=pool.name,
                gpus_each=pool.gpus_each,
                places_each=pool.places_each,
                least=pool.least,
                most=pool.most,
                held_gpus=pool.held_gpus,
                streams_waiting=pool.streams_waiting,
                streams_running=pool.streams_running,
                begun=pool.begun,
                streams_waited_s=pool.streams_waited_s,
                since_begin_s=pool.since_begin_s,
            )
            for pool in capacity.pools
        ),
    )


def progress_to_proto(progress: Progress) -> job_pb2.JobProgress:
    """The snapshot on the wire."""
    return job_pb2.JobProgress(
        phase=progress.phase,
        step=progress.step,
        total_steps=progress.total_steps,
        percent=progress.percent,
        metrics=progress.metrics,
        message=progress.message,
        remaining_s=progress.remaining_s,
    )


def words_to_proto(words: Iterable[TimedWord]) -> list[audio_pb2.WordTimestamp]:
    """Words with their times, on the wire."""
    return [audio_pb2.WordTimestamp(word=word.text, start_s=word.start_s, end_s=word.end_s) for word in words]


def words_from_proto(words: Iterable[audio_pb2.WordTimestamp]) -> tuple[TimedWord, ...]:
    """Words with their times, from the wire."""
    return tuple(TimedWord(text=word.word, start_s=word.start_s, end_s=word.end_s) for word in words)


def quality_to_proto(quality: SpeechQuality | None) -> audio_pb2.SpeechQuality | None:
    """How speech came out, on the wire; None where nobody measured."""
    return None if quality is None else audio_pb2.SpeechQuality(**asdict(quality))


def pitch_to_proto(match: PitchMatch | None) -> audio_pb2.PitchMatch | None:
    """What a pitch was moved by, on the wire; None where nothing was chosen."""
    return None if match is None else audio_pb2.PitchMatch(**asdict(match))


def output_to_proto(audio: AudioOutput) -> work_pb2.OutputAudio:
    """Audio that an attempt made, on the wire."""
    spoken = audio.spoken or Spoken("", "", weights_trained=False, weights_licence="")
    return work_pb2.OutputAudio(
        blob=blob_to_proto(audio.blob),
        duration_s=audio.duration_s,
        rate_hz=audio.rate_hz,
        channels=audio.channels,
        codec=audio.codec,
        display_name=audio.display_name,
        engine=audio.engine,
        weights=audio.weights,
        weights_trained=audio.weights_trained,
        weights_licence=audio.weights_licence,
        seed=audio.seed,
        voice=audio.voice,
        source_audio=audio.source_audio,
        watermarked=audio.watermarked,
        words=words_to_proto(audio.words),
        quality=quality_to_proto(audio.quality),
        voice_file=audio.voice_file,
        speaker=spoken.name,
        speaker_weights=spoken.weights,
        speaker_weights_trained=spoken.weights_trained,
        speaker_weights_licence=spoken.weights_licence,
        pitch_match=pitch_to_proto(audio.pitch_match),
    )


def output_from_proto(audio: work_pb2.OutputAudio) -> AudioOutput:
    """Audio that an attempt made, from the wire."""
    return AudioOutput(
        blob=blob_from_proto(audio.blob),
        duration_s=audio.duration_s,
        rate_hz=audio.rate_hz,
        channels=audio.channels,
        codec=audio.codec,
        display_name=audio.display_name,
        engine=audio.engine,
        weights=audio.weights,
        weights_trained=audio.weights_trained,
        weights_licence=audio.weights_licence,
        seed=audio.seed,
        voice=audio.voice,
        source_audio=audio.source_audio,
        watermarked=audio.watermarked,
        words=words_from_proto(audio.words),
        quality=_quality(audio),
        voice_file=audio.voice_file,
        spoken=Spoken(
            audio.speaker,
            audio.speaker_weights,
            audio.speaker_weights_trained,
            audio.speaker_weights_licence,
        )
        if audio.speaker
        else None,
        pitch_match=_pitch(audio),
    )


def _pitch(audio: work_pb2.OutputAudio) -> PitchMatch | None:
    if not audio.HasField("pitch_match"):
        return None
    found = audio.pitch_match
    return PitchMatch(found.semitones, found.source_hz, found.voice_hz)


def _quality(audio: work_pb2.OutputAudio) -> SpeechQuality | None:
    if not audio.HasField("quality"):
        return None
    found = audio.quality
    return SpeechQuality(found.word_error_rate, found.similarity, found.tries, found.heard, found.passed)
