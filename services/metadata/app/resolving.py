"""What a submit names, resolved: audios and voices to bytes, texts to jobs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from services.common import names
from services.common.community import check_exportable
from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_found
from services.common.jobs import tasks
from services.common.licences import check_licence
from services.common.limits import MAX_RESPOKEN_S, MAX_TEXT
from services.common.pronouncing import Pronouncer
from services.common.speakers import SPEAKER_FIELD, check_own, check_unconverted
from services.metadata.app.lexicons import pronouncer_of
from services.metadata.app.voices import resolve_voice, usable_voice
from services.metadata.model.catalog import VOICE_FILE, Audio, Voice, VoiceState
from services.metadata.model.jobs import JobState, NewJob, PriorityClass
from services.metadata.ports.store import Transaction

MIN_TRAINING_S = 10.0
MAX_RESPOKEN_WORDS = 200_000
"""Of lexicons, over all recordings of a batch: each job holds them."""
# Shares of a GPU by which a job counts against its team's quota: a GPU does three conversions or five texts
# at once at full pace; a replica takes more texts together, each of them then slower.
CONVERSION_GPUS = 1 / 3
SPEECH_GPUS = 1 / 5


@dataclass(frozen=True, slots=True)
class Line:
    """One text of a batch, with the batch's own settings already applied.

    ``speaker`` and ``conversion`` are of texts in a trained voice; ``has_conversion`` says whether the
    request had any.
    """

    id: str
    text: str
    voice: str
    parameters: tasks.SpeakingParameters
    style: str = ""
    lexicons: tuple[str, ...] = ()
    speaker: str = ""
    conversion: tasks.ConversionParameters = field(default_factory=tasks.ConversionParameters)
    has_conversion: bool = False

    @property
    def spoken_by(self) -> SpokenBy:
        """What many lines have in common, and is resolved once."""
        return SpokenBy(self.voice, self.style, self.speaker, self.has_conversion)


@dataclass(frozen=True, slots=True)
class SpokenBy:
    """Who is to speak a text, by name, as :class:`Line` says it."""

    voice: str
    style: str
    speaker: str = ""
    has_conversion: bool = False


@dataclass(frozen=True, slots=True)
class Speakers:
    """Who speaks a text, and the trained voice that it is then converted into, where it is one."""

    voice: tasks.F5Voice
    converted: tasks.RvcVoice | None = None


def line_job(
    team: str,
    line: Line,
    voice: Speakers | VoxfleetError,
    pronouncer: Pronouncer | VoxfleetError,
    output: tasks.Output,
) -> NewJob:
    """The job of one text; a bad one is recorded as failed from the start."""
    error = next((each for each in (voice, pronouncer) if isinstance(each, VoxfleetError)), None)
    if not line.text.strip():
        error = invalid(Reason.TEXT_EMPTY, "this item has no text to speak", field="text")
    elif len(line.text) > MAX_TEXT:
        error = invalid(
            Reason.TEXT_TOO_LONG,
            f"an item has at most {MAX_TEXT} characters; this one has {len(line.text)}",
            field="text",
            max_characters=MAX_TEXT,
        )
    elif "\x00" in line.text:
        error = invalid(Reason.UNSUPPORTED_CHARACTERS, "this item's text holds a NUL character", field="text")
    if error is not None or isinstance(voice, VoxfleetError) or isinstance(pronouncer, VoxfleetError):
        assert error is not None
        task = tasks.BatchTask(team=team, item_kind="f5.item").model_dump_json()
        state, stored = JobState.FAILED, error.to_dict()
    else:
        task = tasks.SpeakTask(
            team=team,
            text=line.text,
            voice=voice.voice,
            parameters=line.parameters,
            output=output,
            display_name=line.id,
            pronunciations=pronouncer.needed(line.text),
            converted=voice.converted,
            conversion=line.conversion,
        ).model_dump_json()
        state, stored = JobState.QUEUED, None
    text = line.text[:MAX_TEXT].replace("\x00", "\N{REPLACEMENT CHARACTER}")
    return NewJob(
        team=team,
        id=names.new_id(),
        kind="f5.item",
        priority_class=PriorityClass.BATCH,
        task=task,
        spec={"text": text},
        display_name=text[:80],
        item_id=line.id,
        gpus=SPEECH_GPUS,
        size=float(len(line.text.encode())),
        state=state,
        error=stored,
    )


@dataclass(frozen=True, slots=True)
class Respeaking:
    """How recordings are to be spoken again: with which clip of the voice, which lexicons, and how."""

    parameters: tasks.SpeakingParameters
    style: str = ""
    lexicons: tuple[str, ...] = ()


def converting_item(
    team: str, clip: Audio, voice: tasks.RvcVoice, how: tasks.ConversionParameters, output: tasks.Output
) -> NewJob:
    """The job of one recording that is turned into a trained voice."""
    task = tasks.ConvertTask(team=team, audio=source_of(clip), voice=voice, parameters=how, output=output)
    return _recording_job(task, CONVERSION_GPUS)


def respeaking_item(
    team: str,
    clip: Audio,
    voice: tasks.F5Voice,
    how: Respeaking,
    output: tasks.Output,
    *,
    words: tuple[tasks.Pronunciation, ...] = (),
) -> NewJob:
    """The job of one recording that is spoken again in a zero-shot voice."""
    task = tasks.RespeakTask(
        team=team,
        audio=source_of(clip),
        voice=voice,
        parameters=how.parameters,
        output=output,
        pronunciations=words,
    )
    return _recording_job(task, SPEECH_GPUS)


def _recording_job(task: tasks.ConvertTask | tasks.RespeakTask, gpus: float) -> NewJob:
    return NewJob(
        team=task.team,
        id=names.new_id(),
        kind=task.kind,
        priority_class=PriorityClass.BATCH,
        task=task.model_dump_json(),
        spec={},
        display_name=task.audio.display_name,
        item_id=task.audio.name,
        gpus=gpus,
        size=task.audio.duration_s,
    )


async def converting_voice(
    tx: Transaction, team: str, voice_name: str, depends_on: Sequence[str]
) -> tasks.RvcVoice:
    """The trained voice; one still in training where the conversion waits for that very training."""
    voice_id = names.parse(voice_name, "voices", field="voice").id
    found = await tx.get_voice(team, voice_id)
    if (
        found is not None
        and found.engine == "rvc"
        and found.state is VoiceState.TRAINING
        and f"teams/{team}/jobs/{found.job_id}" in depends_on
    ):
        return tasks.RvcVoice(name=found.name)
    return await _trained(tx, await usable_voice(tx, team, voice_id))


async def _trained(tx: Transaction, voice: Voice) -> tasks.RvcVoice:
    """A trained voice, as an engine is handed it. Errors: UNSUPPORTED_ENGINE, LICENCE_NOT_ALLOWED."""
    if voice.engine != "rvc" or voice.package is None:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"{voice.name} is a zero-shot voice; converting needs a trained one: use TrainVoice",
            field="voice",
            engine=voice.engine,
        )
    if voice.weights_licence:
        # A voice that was trained here says nothing of a licence: it is the team's own.
        check_licence(await tx.allowed_licences(voice.team), voice.weights_licence, voice.name)
    return tasks.RvcVoice(name=voice.name, package=voice.package)


async def speakers_of(tx: Transaction, team: str, asked: SpokenBy) -> Speakers | VoxfleetError:
    """Who speaks a text; what is wrong with them, where something is."""
    try:
        found = await _voice_named(tx, team, asked.voice)
        if found.engine != "rvc":
            check_unconverted(found.name, asked.speaker, has_conversion=asked.has_conversion)
            return Speakers(await zero_shot_voice(tx, team, asked.voice, asked.style))
        converted = await _trained(tx, found)
        if asked.speaker:
            speaker = await zero_shot_voice(tx, team, asked.speaker, asked.style, field=SPEAKER_FIELD)
            return Speakers(speaker, converted)
        return Speakers(await _own_speaker(tx, found, asked.style), converted)
    except VoxfleetError as error:
        return error


async def zero_shot_voice(
    tx: Transaction, team: str, voice_name: str, style: str, *, field: str = "voice"
) -> tasks.F5Voice:
    """A voice that speaks by itself. Errors: VOICE_NOT_FOUND, VOICE_NOT_READY, UNSUPPORTED_ENGINE."""
    named = await _voice_named(tx, team, voice_name, field)
    if named.engine != "f5":
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"{named.name} is a trained voice, which converts; a zero-shot voice is needed here",
            field=field,
            engine=named.engine,
        )
    voice, reference, clip = await resolve_voice(tx, team, named.id, style=style)
    assert reference is not None, "resolve_voice finds the clip of a zero-shot voice, or raises"
    return tasks.F5Voice(
        name=voice.name,
        reference=reference,
        reference_text=clip.text,
        languages=voice.languages,
        reference_words=clip.words,
    )


async def _own_speaker(tx: Transaction, voice: Voice, style: str) -> tasks.F5Voice:
    """A trained voice as it was recorded: a worker listens to the recording before it speaks from it."""
    _, recording, clip = await resolve_voice(tx, voice.team, voice.id)
    check_own(voice.name, style, has_recording=recording is not None)
    assert recording is not None
    return tasks.F5Voice(name=clip.audio, reference=recording, reference_text="", languages=voice.languages)


async def _voice_named(tx: Transaction, team: str, name: str, field: str = "voice") -> Voice:
    parsed = names.parse(name, "voices", field=field)
    if parsed.team != team:
        raise not_found(Reason.VOICE_NOT_FOUND, name)
    return await usable_voice(tx, team, parsed.id)


async def speaking_pronouncer(
    tx: Transaction, team: str, lexicons: Sequence[str]
) -> Pronouncer | VoxfleetError:
    """The lexicons that a text names; what is wrong with them, where something is."""
    try:
        return await pronouncer_of(tx, team, lexicons)
    except VoxfleetError as error:
        return error


async def respeaking_words(
    tx: Transaction, team: str, how: Respeaking, recordings: int
) -> tuple[tasks.Pronunciation, ...]:
    """All that the lexicons say: what is said in a recording is known only when it is heard.

    Errors: INVALID_ARGUMENT, LEXICON_NOT_FOUND.
    """
    words = (await pronouncer_of(tx, team, how.lexicons)).entries
    if len(words) * recordings > MAX_RESPOKEN_WORDS:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"{recordings} recordings with lexicons of {len(words)} words are too many for one batch: their "
            f"product is at most {MAX_RESPOKEN_WORDS}",
            field="parameters.speaking.lexicons",
        )
    return words


async def team_audio(tx: Transaction, team: str, name: str, field: str) -> Audio:
    """An audio of the team, by name. Errors: AUDIO_NOT_FOUND, INVALID_FORMAT."""
    audio = await _team_file(tx, team, name, field)
    if audio.purpose == VOICE_FILE:
        raise invalid(
            Reason.INVALID_FORMAT,
            f"{audio.name} is a voice's file, not audio",
            field=field,
            detail="the purpose of its upload",
        )
    return audio


async def _team_file(tx: Transaction, team: str, name: str, field: str) -> Audio:
    parsed = names.parse(name, "audios", field=field)
    audio = await tx.get_audio(team, parsed.id) if parsed.team == team else None
    if audio is None:
        raise not_found(Reason.AUDIO_NOT_FOUND, name)
    return audio


async def voice_file(tx: Transaction, team: str, name: str, field: str) -> tasks.VoiceFile:
    """A file of the team that may hold a voice, by name. Errors: AUDIO_NOT_FOUND, INVALID_FORMAT."""
    found = await _team_file(tx, team, name, field)
    if found.purpose != VOICE_FILE:
        raise invalid(
            Reason.INVALID_FORMAT,
            f"{found.name} was not uploaded as a voice's file: upload it with the purpose VOICE_FILE",
            field=field,
            detail="the purpose of its upload",
        )
    return tasks.VoiceFile(name=found.name, blob=found.blob, display_name=found.display_name)


async def exporting_voice(
    tx: Transaction, team: str, voice_id: str, form: Literal["voxfleet", "pth"]
) -> tasks.ExportVoiceTask:
    """What is to be exported.

    Errors: VOICE_NOT_FOUND, VOICE_NOT_READY, LICENCE_NOT_ALLOWED; UNSUPPORTED_ENGINE where the format cannot
    hold the voice.
    """
    voice, _, _ = await resolve_voice(tx, team, voice_id, field="name")
    if voice.engine != "rvc" or voice.package is None:
        raise invalid(
            Reason.UNSUPPORTED_ENGINE,
            f"{voice.name} is a zero-shot voice: it is its reference clip, which DownloadAudio gives",
            field="name",
            engine=voice.engine,
        )
    if form == "pth":
        check_exportable(voice.name, voice.content_encoder, field="format")
    if voice.weights_licence:
        check_licence(await tx.allowed_licences(team), voice.weights_licence, voice.name)
    return tasks.ExportVoiceTask(
        team=team,
        voice=tasks.RvcVoice(name=voice.name, package=voice.package),
        format=form,
        licence=voice.weights_licence,
        weights_trained=voice.weights_trained,
    )


def source_of(audio: Audio) -> tasks.SourceAudio:
    """An audio as a task names it."""
    return tasks.SourceAudio(
        name=audio.name,
        blob=audio.blob,
        duration_s=audio.duration_s,
        display_name=audio.display_name,
    )


def check_respeakable(clips: Sequence[Audio]) -> None:
    """Errors: AUDIO_TOO_LONG."""
    for number, clip in enumerate(clips):
        if clip.duration_s > MAX_RESPOKEN_S:
            raise invalid(
                Reason.AUDIO_TOO_LONG,
                f"engine f5 converts at most {MAX_RESPOKEN_S:g} s; this recording has {clip.duration_s:.1f}",
                field=f"audios[{number}]",
                duration_s=f"{clip.duration_s:.3f}",
                max_duration_s=MAX_RESPOKEN_S,
            )


def check_trainable(clips: Sequence[Audio], *, force: bool) -> None:
    """Errors: AUDIO_TOO_SHORT, QUALITY_TOO_LOW."""
    total_s = sum(clip.duration_s for clip in clips)
    if total_s < MIN_TRAINING_S:
        raise invalid(
            Reason.AUDIO_TOO_SHORT,
            f"training needs at least {MIN_TRAINING_S:g} s of audio, best 5 to 10 minutes; "
            f"these have {total_s:.1f} s",
            field="audios",
            duration_s=f"{total_s:.3f}",
            min_duration_s=MIN_TRAINING_S,
        )
    for number, clip in enumerate(clips):
        if force or clip.assessment.get("trainable"):
            continue
        reasons = "; ".join(clip.assessment.get("reasons", ()))
        raise VoxfleetError(
            Reason.QUALITY_TOO_LOW,
            f"audios[{number}] is graded {clip.assessment.get('grade', '?')}: {reasons or 'too noisy'}. "
            "Record it again, clean it, or set `force`",
            kind=Kind.PRECONDITION,
            metadata={
                "grade": clip.assessment.get("grade", ""),
                "actual_snr_db": f"{clip.measures.get('snr_db', 0.0):.1f}",
                "min_snr_db": 15,
            },
        )
