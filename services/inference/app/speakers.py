"""Who speaks for a trained voice: a stretch of a recording that it was trained on, found and heard once."""

from __future__ import annotations

import asyncio
import weakref
from collections import OrderedDict
from collections.abc import Collection

from services.common.errors import Reason, VoxfleetError, internal
from services.common.jobs.tasks import F5Voice
from services.common.speakers import no_speaker
from services.inference.app.pool import Pool
from services.inference.calls import EngineFacts, Excerpt, Heard
from services.inference.languages import speakers
from services.inference.model import Rank

_UNUSABLE = frozenset(
    {
        Reason.SPEECH_NOT_HEARD,
        Reason.AUDIO_NOT_FOUND,
        Reason.AUDIO_EMPTY,
        Reason.AUDIO_SILENT,
        Reason.AUDIO_TOO_SHORT,
        Reason.AUDIO_TOO_LONG,
        Reason.TEXT_EMPTY,
        Reason.TEXT_TOO_LONG,
    }
)
"""What is the recording's fault: hearing it again would say the same."""


class Speakers:
    """Makes recordings ready to speak from.

    Args:
        pool: of F5 replicas, each of which has a recogniser.
        most: recordings that are remembered.
    """

    def __init__(self, pool: Pool, *, most: int = 512) -> None:
        self._pool = pool
        self._most = most
        self._found: OrderedDict[str, Heard | VoxfleetError] = OrderedDict()
        self._hearing: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    async def ready(
        self, speaker: F5Voice, voice: str, rank: Rank, *, avoid: Collection[str] = ()
    ) -> F5Voice:
        """The speaker with what it says: itself where that is known, else a stretch of its recording.

        Args:
            speaker: a zero-shot voice, or a recording without a text.
            voice: the trained voice that it speaks for, by name.
            rank: of the request.
            avoid: nodes to be passed over.

        Errors: INVALID_ARGUMENT where the recording is none to speak from; those of a pool's call,
        MODEL_NOT_FOUND.
        """
        if speaker.reference_text:
            return speaker
        heard = await self._heard(Excerpt(speaker.reference, _language(speaker)), rank, avoid)
        if isinstance(heard, VoxfleetError):
            raise no_speaker(voice, f"cannot be spoken from {speaker.name} ({heard.message})")
        return _speaking(speaker, heard, self._pool.last_facts)

    async def _heard(self, request: Excerpt, rank: Rank, avoid: Collection[str]) -> Heard | VoxfleetError:
        key = f"{request.blob.sha256} {request.language}"
        lock = self._hearing.get(key) or self._hearing.setdefault(key, asyncio.Lock())
        async with lock:
            if key not in self._found:
                self._found[key] = await self._ask(request, rank, avoid)
                while len(self._found) > self._most:
                    self._found.popitem(last=False)
            self._found.move_to_end(key)
            return self._found[key]

    async def _ask(self, request: Excerpt, rank: Rank, avoid: Collection[str]) -> Heard | VoxfleetError:
        heard: Heard | None = None
        try:
            async with self._pool.call(lambda _: request, rank, avoid=avoid) as running:
                async for event in running.events():
                    if isinstance(event, Heard):
                        heard = event
        except VoxfleetError as error:
            if error.reason in _UNUSABLE:
                return error
            raise
        if heard is None:
            raise internal("the engine ended without an answer")
        return heard


def _language(speaker: F5Voice) -> str:
    return next(iter(speaker.languages), "")


def _speaking(speaker: F5Voice, heard: Heard, facts: EngineFacts | None) -> F5Voice:
    """The stretch as a voice; its language is the recording's where some weights speak that."""
    languages = speaker.languages
    if not languages and heard.language and facts is not None and speakers(heard.language, facts):
        languages = (heard.language,)
    return speaker.model_copy(
        update={
            "reference_text": heard.text,
            "reference_words": heard.words,
            "languages": languages,
            "start_s": heard.start_s,
            "end_s": heard.end_s,
        }
    )
