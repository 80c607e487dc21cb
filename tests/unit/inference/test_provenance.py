"""Whether an audio was made by a machine: what is weighed, and how stored audio is read."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import Blob
from services.common.media.decode import decode
from services.common.media.encode import Format, encode
from services.engines.watermark import mark
from services.inference.adapters.audio_examiner import AudioExaminer
from services.inference.app.provenance import Evidence, Provenance, judge
from services.inference.ports import ResolvedAudio, Traces
from tests.unit.inference.fakes import BLOB, FakeCatalog

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"
JOB = "teams/blue/jobs/one"
TAGS = {"generated": "true", "job": JOB, "voice": "teams/blue/voices/anna"}
NOTHING = Traces({}, mark_present=False, mark_confidence=0.001)


def upload(*, generated: bool = False, job: str = "") -> ResolvedAudio:
    return ResolvedAudio(BLOB, 3.0, generated, job)


@pytest.mark.parametrize(
    ("record", "traces", "evidence", "job", "confidence"),
    [
        (upload(), NOTHING, (), "", 0.001),
        (upload(generated=True, job=JOB), NOTHING, (Evidence.RECORD,), JOB, 1.0),
        (upload(), Traces(TAGS, False, 0.001), (Evidence.TAGS,), JOB, 0.9),
        (upload(), Traces({}, True, 0.9999), (Evidence.WATERMARK,), "", 0.9999),
        (upload(), Traces(TAGS, True, 0.9999), (Evidence.WATERMARK, Evidence.TAGS), JOB, 0.9999),
        (upload(), Traces({"job": JOB}, False, 0.001), (), "", 0.001),
        (upload(), Traces(TAGS | {"job": "teams/red/jobs/x"}, False, 0.0), (Evidence.TAGS,), "", 0.9),
        (upload(), Traces(TAGS | {"generated": "no"}, True, 0.8), (Evidence.WATERMARK,), "", 0.8),
    ],
)
def test_each_source_is_enough_and_the_surest_counts(
    record: ResolvedAudio, traces: Traces, evidence: tuple[Evidence, ...], job: str, confidence: float
) -> None:
    found = judge("blue", record, traces)
    assert (found.generated, found.evidence) == (bool(evidence), evidence)
    assert (found.job, found.confidence) == (job, confidence)


async def test_stored_audio_is_read_for_tags_and_mark() -> None:
    store = MemoryArtifactStore()
    plain = decode(SPEECH / "clip_en_4.flac", rate_hz=24_000).samples
    verdicts = []
    for samples, tags in ((plain, {}), (plain, TAGS), (mark(plain, 24_000, "k"), {})):
        data = encode(np.asarray(samples), 24_000, Format.MP3, bitrate_kbps=128, metadata=tags)
        catalog = FakeCatalog(audios={"teams/blue/audios/a": ResolvedAudio(put(store, data), 4.0)})
        verify = Provenance(catalog, AudioExaminer(store, "k")).verify
        verdicts.append(await verify("blue", "teams/blue/audios/a"))
    assert [found.evidence for found in verdicts] == [(), (Evidence.TAGS,), (Evidence.WATERMARK,)]
    assert verdicts[0].confidence < 0.5 < verdicts[2].confidence


async def test_what_is_gone_or_no_sound_says_so() -> None:
    store = MemoryArtifactStore()
    torn = put(store, b"RIFF and then nothing of the kind")
    gone = Blob(key="teams/blue/sha256/00/00", sha256="0" * 64, size_bytes=1)
    for blob, reason in ((torn, Reason.INVALID_FORMAT), (gone, Reason.AUDIO_NOT_FOUND)):
        with pytest.raises(VoxfleetError) as caught:
            await AudioExaminer(store, "k").examine(blob)
        assert caught.value.reason is reason


def test_the_service_starts_without_what_only_examining_needs() -> None:
    code = (
        "import sys, services.inference.adapters.audio_examiner, services.inference.app.provenance, "
        "services.inference.engine.marking; "
        "sys.exit(1 if {'av', 'numpy', 'torch'} & set(sys.modules) else 0)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def put(store: MemoryArtifactStore, data: bytes) -> Blob:
    sha256 = hashlib.sha256(data).hexdigest()
    key = content_key("blue", sha256)
    store.put_bytes(key, data)
    return Blob(key=key, sha256=sha256, size_bytes=len(data))
