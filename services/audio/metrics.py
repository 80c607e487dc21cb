"""What the audio service counts, for Prometheus."""

from __future__ import annotations

import datetime as dt
import threading
from dataclasses import dataclass

from prometheus_client import Counter, Gauge, Histogram

UPLOADS = Counter(
    "voxfleet_audio_uploads_total",
    "Upload streams by how they ended: committed, cut, or the reason of the error.",
    ["outcome"],
)
UPLOAD_BYTES = Counter("voxfleet_audio_upload_bytes_total", "Bytes of uploads made durable.")
STREAMS = Gauge("voxfleet_audio_upload_streams", "Upload streams being served.")
STAGING_BYTES = Gauge(
    "voxfleet_audio_staging_bytes",
    "Bytes this process put into staging and did not delete, of uploads that have not expired.",
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


@dataclass(frozen=True, slots=True)
class _Staged:
    size_bytes: int
    expires_at: dt.datetime | None

    def is_there(self, now: dt.datetime) -> bool:
        return self.expires_at is None or self.expires_at > now


_staged: dict[str, _Staged] = {}
# Prometheus reads in a thread of its own.
_lock = threading.Lock()


def note_staged(prefix: str, size_bytes: int, expires_at: dt.datetime | None) -> None:
    """A part was put under the staging prefix of an upload, which metadata deletes once that has expired."""
    with _lock:
        found = _staged.get(prefix)
        if found is None:
            _forget_expired(_now())
        _staged[prefix] = _Staged((found.size_bytes if found else 0) + size_bytes, expires_at)


def note_unstaged(prefix: str) -> None:
    """Everything under a staging prefix was deleted."""
    with _lock:
        _staged.pop(prefix, None)


def staging_bytes(now: dt.datetime) -> int:
    """What this process put into staging and did not delete, in bytes, of uploads not yet expired."""
    with _lock:
        return sum(each.size_bytes for each in _staged.values() if each.is_there(now))


def _forget_expired(now: dt.datetime) -> None:
    for prefix in [prefix for prefix, each in _staged.items() if not each.is_there(now)]:
        del _staged[prefix]


def _now() -> dt.datetime:
    return dt.datetime.now(dt.UTC)


STAGING_BYTES.set_function(lambda: staging_bytes(_now()))
