"""Reference clips of a new voice: heard by an F5 replica, their texts filled in or checked."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass

from services.common.errors import FieldViolation, Reason, VoxfleetError, internal
from services.inference.app.pool import Pool
from services.inference.calls import Heard, Listen
from services.inference.model import Rank
from services.inference.ports import Catalog

log = logging.getLogger(__name__)

MAX_LISTEN_S = 30.0
"""Of a clip; a longer one is no reference, which the record says better."""
_WITHOUT_IT = frozenset(
    {
        Reason.MODEL_NOT_FOUND,
        Reason.MODEL_CORRUPT,
        Reason.QUEUE_FULL,
        Reason.SERVICE_UNAVAILABLE,
        Reason.WORKER_LOST,
        Reason.SYNTHESIS_FAILED,
        Reason.INTERNAL,
    }
)
"""A given text is then taken as it is: listening is a check, and not what the voice needs."""
_FIELDS = {"reference_audio": "audio", "reference_text": "text"}


@dataclass(frozen=True, slots=True)
class Clip:
    """A clip to be heard.

    Args:
        audio: its name.
        text: what is said in it; empty where that is to be found out.
        field: of the request, such as ``voice.references[0]``.
    """

    audio: str
    text: str
    field: str


class Listening:
    """Hears reference clips.

    Args:
        pool: of F5 replicas, each of which has a recogniser.
        catalog: says where a clip's bytes are.
        max_word_error_rate: a given text that differs by more from what is heard is refused; 0 for no check.
        check_wait_s: how long a check may wait for a slot; then it is left out.
    """

    def __init__(
        self, pool: Pool, catalog: Catalog, *, max_word_error_rate: float, check_wait_s: float
    ) -> None:
        self._pool = pool
        self._catalog = catalog
        self._max_word_error_rate = max_word_error_rate
        self._check_wait_s = check_wait_s

    async def hear(self, clip: Clip, language: str) -> Heard | None:
        """What is said in a clip, and when; None where nobody listened: its text is as it was given then.

        Args:
            clip: the clip.
            language: BCP-47; detected where empty.

        Errors: those of :class:`~services.inference.calls.Listen`, their fields within the request; where the
        text is empty also QUEUE_FULL, SERVICE_UNAVAILABLE, WORKER_LOST and MODEL_NOT_FOUND.
        """
        if clip.text and not self._max_word_error_rate:
            return None
        try:
            found = await self._catalog.resolve_audio(clip.audio)
        except VoxfleetError as error:
            if error.reason is not Reason.AUDIO_NOT_FOUND:
                raise
            # The record refuses it, unless this is a repeat of a request that it has answered.
            return None
        if found.duration_s > MAX_LISTEN_S:
            return None
        request = Listen(found.blob, clip.text, language, self._max_word_error_rate)
        try:
            return await self._listen(request, self._check_wait_s if clip.text else None)
        except TimeoutError:
            log.warning("no slot in %g s: the text of %s is not checked", self._check_wait_s, clip.audio)
            return None
        except VoxfleetError as error:
            if clip.text and error.reason in _WITHOUT_IT:
                log.warning("the text of %s is not checked: %s", clip.audio, error.message)
                return None
            raise _within(error, clip.field) from None

    async def _listen(self, request: Listen, wait_s: float | None) -> Heard:
        heard: Heard | None = None
        async with (
            asyncio.timeout(wait_s) as waiting,
            self._pool.call(lambda _: request, Rank.INTERACTIVE) as running,
        ):
            waiting.reschedule(None)
            async for event in running.events():
                if isinstance(event, Heard):
                    heard = event
        if heard is None:
            raise internal("the engine ended without an answer")
        return heard


def _within(error: VoxfleetError, field: str) -> VoxfleetError:
    """The error with fields of the request instead of the engine's."""
    error.violations = tuple(
        FieldViolation(f"{field}.{_FIELDS[each.field]}", each.description) if each.field in _FIELDS else each
        for each in error.violations
    )
    return error
