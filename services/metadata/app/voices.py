"""Voices: made from a clip, listed, changed, deleted; and what an engine needs to use one."""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping
from typing import Any

from services.common import names
from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_found, precondition
from services.common.jobs.tasks import Blob
from services.metadata.model.catalog import Reference, Voice, VoiceState
from services.metadata.model.jobs import CheckpointRow
from services.metadata.model.page import Page
from services.metadata.ports.store import Store, Transaction

MIN_REFERENCE_S = 3.0
MAX_REFERENCE_S = 30.0
MAX_REFERENCE_TEXT = 1000
_GOOD_REFERENCE_S = 10.0
_NO_CLIP = Reference("", "")


class Voices:
    """The use cases of voices."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, voice: Voice, *, request_id: str, fingerprint: str) -> Voice:
        """Makes a zero-shot voice.

        Errors: AUDIO_NOT_FOUND, AUDIO_TOO_SHORT, AUDIO_TOO_LONG, TEXT_EMPTY, VOICE_EXISTS, REQUEST_ID_REUSED.
        """
        team = voice.team
        async with self._store.tenant(team) as tx:
            # The client may choose the name, which then is the same in a repeat: what is remembered is not.
            made = f"{voice.name} {names.new_id()}"
            first = await tx.remember_request(team, request_id, "CreateVoice", fingerprint, made)
            if first != made:
                return await _get(tx, team, names.parse(first.partition(" ")[0], "voices").id)
            for number, clip in enumerate(voice.references):
                await _check_reference(tx, team, number, clip)
            if not await tx.add_voice(voice):
                raise voice_exists(voice.name)
            return await _get(tx, team, voice.id)

    async def get(self, team: str, voice_id: str) -> Voice:
        """A voice. Errors: VOICE_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            return await _get(tx, team, voice_id)

    async def page(self, team: str, page: Page, *, show_deleted: bool) -> list[Voice]:
        """A team's voices."""
        async with self._store.tenant(team) as tx:
            return await tx.list_voices(team, page, show_deleted=show_deleted)

    async def update(self, team: str, voice_id: str, changes: Mapping[str, Any]) -> Voice:
        """Changes display name, labels, languages or consent. Errors: VOICE_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            await _get(tx, team, voice_id, lock=True)
            if changes:
                await tx.update_voice(team, voice_id, changes)
            return await _get(tx, team, voice_id)

    async def delete(self, team: str, voice_id: str) -> Voice:
        """Deletes a voice; twice is once. Errors: VOICE_NOT_FOUND, JOB_STATE_CONFLICT."""
        async with self._store.tenant(team) as tx:
            voice = await _get(tx, team, voice_id, lock=True)
            if voice.state is VoiceState.TRAINING:
                raise precondition(
                    Reason.JOB_STATE_CONFLICT,
                    f"{voice.name} is being trained: cancel its job first",
                    job=f"teams/{team}/jobs/{voice.job_id}",
                )
            if voice.state is not VoiceState.DELETED:
                changes = {"state": VoiceState.DELETED.value, "deleted_at": dt.datetime.now(dt.UTC)}
                await tx.update_voice(team, voice_id, changes)
            return await _get(tx, team, voice_id)

    async def undelete(self, team: str, voice_id: str) -> Voice:
        """Brings a deleted voice back. Errors: VOICE_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            voice = await _get(tx, team, voice_id, lock=True)
            if voice.state is VoiceState.DELETED:
                usable = voice.engine == "f5" or voice.package is not None
                state = VoiceState.READY if usable else VoiceState.FAILED
                await tx.update_voice(team, voice_id, {"state": state.value, "deleted_at": None})
            return await _get(tx, team, voice_id)

    async def checkpoints(self, team: str, voice_id: str) -> list[CheckpointRow]:
        """The checkpoints of a voice's training, newest first."""
        async with self._store.tenant(team) as tx:
            voice = await _get(tx, team, voice_id)
            return await tx.checkpoints(voice.job_id) if voice.job_id else []

    async def resolve(self, team: str, voice_id: str, style: str) -> tuple[Voice, Blob | None, Reference]:
        """A usable voice, with its reference clip and what is said in that where it is zero-shot.

        A trained voice comes with a recording that it was trained on, where one is left, and no text.

        Errors: VOICE_NOT_FOUND, VOICE_NOT_READY, AUDIO_NOT_FOUND.
        """
        async with self._store.tenant(team) as tx:
            return await resolve_voice(tx, team, voice_id, style=style)


async def resolve_voice(
    tx: Transaction, team: str, voice_id: str, *, style: str = "", field: str = "voice"
) -> tuple[Voice, Blob | None, Reference]:
    """A usable voice within a transaction; see :meth:`Voices.resolve`."""
    voice = await usable_voice(tx, team, voice_id)
    if voice.engine != "f5":
        return voice, *await _own_recording(tx, voice)
    clip = next((each for each in voice.references if each.style == style), None)
    if clip is None:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"{voice.name} has no clip of style {style!r}",
            field="parameters.style",
            styles=",".join(each.style for each in voice.references),
        )
    audio = await tx.get_audio(team, names.parse(clip.audio, "audios", field=field).id)
    if audio is None:
        raise not_found(Reason.AUDIO_NOT_FOUND, clip.audio)
    return voice, audio.blob, clip


async def usable_voice(tx: Transaction, team: str, voice_id: str) -> Voice:
    """A voice that is ready. Errors: VOICE_NOT_FOUND, VOICE_NOT_READY."""
    voice = await _get(tx, team, voice_id)
    if voice.state is not VoiceState.READY:
        raise VoxfleetError(
            Reason.VOICE_NOT_READY,
            f"{voice.name} is {voice.state.value.lower()}: it can be used once it is ready",
            kind=Kind.PRECONDITION,
            metadata={"name": voice.name, "state": voice.state.value},
            retry_after_s=10.0 if voice.state is VoiceState.TRAINING else None,
        )
    return voice


async def _own_recording(tx: Transaction, voice: Voice) -> tuple[Blob | None, Reference]:
    """What a trained voice can be spoken from: the first of its recordings that is long enough for a clip.

    Its text is empty: nobody has listened to it yet.
    """
    found = None
    for name in voice.training_audios:
        audio = await tx.get_audio(voice.team, names.parse(name, "audios").id)
        if audio is None:
            continue
        if found is None or audio.duration_s > found.duration_s:
            found = audio
        if found.duration_s >= _GOOD_REFERENCE_S:
            break
    return (found.blob, Reference(found.name, "")) if found is not None else (None, _NO_CLIP)


def voice_exists(name: str) -> VoxfleetError:
    """The error of a voice id that is taken."""
    return VoxfleetError(
        Reason.VOICE_EXISTS,
        f"{name} exists already: choose another voice_id",
        kind=Kind.CONFLICT,
        metadata={"name": name},
    )


async def _get(tx: Transaction, team: str, voice_id: str, *, lock: bool = False) -> Voice:
    voice = await tx.get_voice(team, voice_id, lock=lock)
    if voice is None:
        raise not_found(Reason.VOICE_NOT_FOUND, f"teams/{team}/voices/{voice_id}")
    return voice


async def _check_reference(tx: Transaction, team: str, number: int, clip: Reference) -> None:
    field = f"voice.references[{number}]"
    name = names.parse(clip.audio, "audios", field=f"{field}.audio")
    audio = await tx.get_audio(team, name.id) if name.team == team else None
    if audio is None:
        raise not_found(Reason.AUDIO_NOT_FOUND, clip.audio)
    if audio.duration_s < MIN_REFERENCE_S:
        raise invalid(
            Reason.AUDIO_TOO_SHORT,
            f"a reference clip has at least {MIN_REFERENCE_S:g} s, best 10; this has {audio.duration_s:.1f}",
            field=f"{field}.audio",
            duration_s=f"{audio.duration_s:.3f}",
            min_duration_s=MIN_REFERENCE_S,
        )
    if audio.duration_s > MAX_REFERENCE_S:
        raise invalid(
            Reason.AUDIO_TOO_LONG,
            f"a reference clip has at most {MAX_REFERENCE_S:g} s; this one has {audio.duration_s:.1f}",
            field=f"{field}.audio",
            duration_s=f"{audio.duration_s:.3f}",
            max_duration_s=MAX_REFERENCE_S,
        )
    if not clip.text.strip():
        raise invalid(
            Reason.TEXT_EMPTY, "write exactly what is said in the reference clip", field=f"{field}.text"
        )
    if len(clip.text) > MAX_REFERENCE_TEXT:
        raise invalid(
            Reason.TEXT_TOO_LONG,
            f"the text of a reference clip has at most {MAX_REFERENCE_TEXT} characters",
            field=f"{field}.text",
            max_characters=MAX_REFERENCE_TEXT,
        )
