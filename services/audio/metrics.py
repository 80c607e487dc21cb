"""What the audio service counts, for Prometheus."""

from __future__ import annotations

from prometheus_client import Counter, Gauge, Histogram

UPLOADS = Counter(
    "voxfleet_audio_uploads_total",
    "Upload streams by how they ended: committed, cut, or the reason of the error.",
    ["outcome"],
)
UPLOAD_BYTES = Counter("voxfleet_audio_upload_bytes_total", "Bytes of uploads made durable.")
STREAMS = Gauge("voxfleet_audio_upload_streams", "Upload streams being served.")
STAGING_BYTES = Gauge(
    "voxfleet_audio_staging_bytes", "Bytes this process put into staging and did not yet delete."
)
EXAMINE_SECONDS = Histogram(
    "voxfleet_audio_examine_seconds",
    "Time to decode and measure a file, the wait for a worker included.",
    ["task"],
    buckets=(0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 180),
)
EXAMINER_DEATHS = Counter(
    "voxfleet_audio_examiner_deaths_total", "Measuring processes that ended unasked, by cause.", ["cause"]
)
DOWNLOAD_BYTES = Counter("voxfleet_audio_download_bytes_total", "Bytes of audio sent to clients.")
COLLECTED = Counter("voxfleet_audio_collected_total", "Keys and prefixes deleted from the store.", ["kind"])

_staged: dict[str, int] = {}


def note_staged(prefix: str, size_bytes: int) -> None:
    """A part was put under a staging prefix."""
    _staged[prefix] = _staged.get(prefix, 0) + size_bytes
    STAGING_BYTES.inc(size_bytes)


def note_unstaged(prefix: str) -> None:
    """Everything under a staging prefix was deleted."""
    STAGING_BYTES.dec(_staged.pop(prefix, 0))
