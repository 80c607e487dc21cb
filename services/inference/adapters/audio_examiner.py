"""Looks for traces of a machine in stored audio, in a thread of this process: it takes no GPU."""

from __future__ import annotations

import asyncio

from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Reason
from services.common.jobs.tasks import Blob
from services.inference.ports import Traces


class AudioExaminer:
    """Reads tags and looks for the mark.

    Args:
        store: where the audio is.
        key: that outputs are marked with.
    """

    def __init__(self, store: ArtifactStore, key: str) -> None:
        self._store = store
        self._key = key

    async def examine(self, blob: Blob) -> Traces:
        """See :class:`services.inference.ports.Examiner`."""
        return await asyncio.to_thread(self._examine, blob)

    def _examine(self, blob: Blob) -> Traces:
        # FFmpeg and numpy are for the few who ask: the process starts without them.
        from services.common.media.decode import decode
        from services.engines.watermark import DETECT_HZ, detect
        from services.inference.engine.blobs import fetch

        audio = decode(fetch(self._store, blob, Reason.AUDIO_NOT_FOUND), rate_hz=DETECT_HZ)
        found = detect(audio.samples, audio.rate_hz, self._key)
        return Traces(dict(audio.info.tags), found.present, found.confidence)
