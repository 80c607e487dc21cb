import pytest

from services.common.errors import Reason, VoxfleetError
from services.common.jobs import tasks
from services.common.jobs.model import Succeeded, VoiceOutput
from services.metadata.app.bundles import Bundles
from services.metadata.app.resolving import SpokenBy, speakers_of, zero_shot_voice
from services.metadata.model.catalog import VoiceState
from services.metadata.model.page import Page
from services.metadata.servicers.internal import CatalogServicer
from tests.integration.metadata.test_ledger import add_audio, blob, make_voice
from tests.integration.metadata.test_ledger import request as submit_request
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import audio_pb2, voice_pb2


async def test_a_deleted_voice_comes_back(metadata):
    await make_voice(metadata)
    assert (await metadata.voices.delete("alpha", "zero-shot")).state is VoiceState.DELETED
    assert await metadata.voices.page("alpha", Page(10), show_deleted=False) == []
    assert len(await metadata.voices.page("alpha", Page(10), show_deleted=True)) == 1
    with pytest.raises(VoxfleetError) as caught:
        await metadata.voices.resolve("alpha", "zero-shot", "")
    assert caught.value.reason is Reason.VOICE_NOT_READY
    assert (await metadata.voices.undelete("alpha", "zero-shot")).state is VoiceState.READY
    _, reference, clip = await metadata.voices.resolve("alpha", "zero-shot", "")
    assert (reference.sha256, clip.text, clip.words) == ("ab" * 32, "hello", ())


async def test_pages_meet_without_gap_or_repeat(metadata):
    names = {await add_audio(metadata) for _ in range(7)}
    seen, after = [], ""
    while True:
        page = await metadata.audios.page("alpha", Page(3, after))
        seen += [audio.name for audio in page]
        if len(page) < 3:
            break
        after = f"{page[-1].created_at.isoformat()}|{page[-1].id}"
    assert len(seen) == 7
    assert set(seen) == names


async def test_update_changes_only_what_is_named(metadata):
    await make_voice(metadata)
    voice = await metadata.voices.update("alpha", "zero-shot", {"labels": {"a": "b"}})
    assert (voice.labels, voice.display_name) == ({"a": "b"}, "Zero")
    for operation in (metadata.voices.get, metadata.voices.delete, metadata.voices.undelete):
        with pytest.raises(VoxfleetError) as caught:
            await operation("alpha", "none-such")
        assert caught.value.reason is Reason.VOICE_NOT_FOUND


def catalog_of(metadata) -> CatalogServicer:
    return CatalogServicer(metadata.audios, metadata.voices, Bundles(metadata.store), metadata.identity)


def store_request(audio: str, text: str = "", heard: str = "", *, request_id: str = "once"):
    request = catalog_pb2.StoreVoiceRequest(
        request=voice_pb2.CreateVoiceRequest(
            parent="teams/alpha",
            voice_id="heard-voice",
            voice=voice_pb2.Voice(references=[voice_pb2.ReferenceClip(audio=audio, text=text)]),
            request_id=request_id,
        )
    )
    if heard:
        words = [
            audio_pb2.WordTimestamp(word=word, start_s=number, end_s=number + 0.5)
            for number, word in enumerate(heard.split())
        ]
        request.heard.append(catalog_pb2.HeardClip(index=0, text=heard, words=words))
    return request


async def test_what_was_heard_in_a_clip_is_kept_with_it(metadata):
    catalog = catalog_of(metadata)
    audio = await add_audio(metadata, duration_s=10.0)
    made = await catalog.StoreVoice(store_request(audio, heard="Good morning."), None)
    assert made.references[0].text == "Good morning."
    found = await catalog.ResolveVoice(catalog_pb2.ResolveVoiceRequest(name=made.name), None)
    assert found.reference_text == "Good morning."
    assert [(word.word, word.start_s, word.end_s) for word in found.reference_words] == [
        ("Good", 0.0, 0.5),
        ("morning.", 1.0, 1.5),
    ]
    # An item of a batch is handed the same.
    async with metadata.store.tenant("alpha") as tx:
        voice = await zero_shot_voice(tx, "alpha", made.name, "")
    assert voice.reference_text == "Good morning."
    assert [word.text for word in voice.reference_words] == ["Good", "morning."]


async def test_a_repeat_is_the_same_request_whatever_is_heard_then(metadata):
    catalog = catalog_of(metadata)
    audio = await add_audio(metadata, duration_s=10.0)
    first = await catalog.StoreVoice(store_request(audio, heard="Good morning."), None)
    again = await catalog.StoreVoice(store_request(audio, heard="Good mourning."), None)
    assert again == first
    unheard = await catalog.StoreVoice(store_request(audio), None)
    assert unheard == first, "nor where nobody listened this time"
    with pytest.raises(VoxfleetError) as caught:
        await catalog.StoreVoice(store_request(audio, "Another text."), None)
    assert caught.value.reason is Reason.REQUEST_ID_REUSED


@pytest.mark.parametrize(
    ("duration_s", "reason"),
    [(2.0, Reason.AUDIO_TOO_SHORT), (31.0, Reason.AUDIO_TOO_LONG), (10.0, Reason.TEXT_EMPTY)],
)
async def test_a_clip_that_nobody_could_hear_is_refused(metadata, duration_s, reason):
    audio = await add_audio(metadata, duration_s=duration_s)
    with pytest.raises(VoxfleetError) as caught:
        await catalog_of(metadata).StoreVoice(store_request(audio), None)
    assert caught.value.reason is reason
    with pytest.raises(VoxfleetError):
        await metadata.voices.get("alpha", "heard-voice")


async def trained_voice(metadata, *durations_s: float) -> tuple[str, list[str]]:
    audios = [
        await add_audio(metadata, duration_s=duration_s, sha=f"{number:064x}")
        for number, duration_s in enumerate(durations_s, start=1)
    ]
    await metadata.submit.train(submit_request(), "v-anna", audios, tasks.TrainingParameters(), force=False)
    (claimed,) = await metadata.claim("w1", {"rvc.train": 1})
    made = VoiceOutput(blob("cd" * 32), "whisper-base", 40000, {})
    await metadata.work.succeed(claimed.fence, Succeeded(voice=made))
    return "teams/alpha/voices/v-anna", audios


async def test_a_trained_voice_comes_with_a_recording_to_speak_from(metadata):
    name, audios = await trained_voice(metadata, 4.0, 30.0, 60.0)
    found = await catalog_of(metadata).ResolveVoice(catalog_pb2.ResolveVoiceRequest(name=name), None)
    assert (found.voice.engine, found.package.sha256) == ("rvc", "cd" * 32)
    assert (found.reference_audio, found.reference_text) == (audios[1], ""), "the first that is long enough"
    assert found.reference.sha256 == f"{2:064x}"


async def test_who_speaks_a_text_of_a_batch(metadata):
    name, audios = await trained_voice(metadata, 4.0, 8.0)
    speaker = await make_voice(metadata)
    cases = {
        SpokenBy(name, ""): (audios[1], name),
        SpokenBy(name, "", speaker): (speaker, name),
        SpokenBy(speaker, ""): (speaker, None),
        SpokenBy(name, "calm"): Reason.INVALID_ARGUMENT,
        SpokenBy(name, "", name): Reason.UNSUPPORTED_ENGINE,
        SpokenBy(speaker, "", speaker): Reason.INVALID_ARGUMENT,
        SpokenBy(speaker, "", "", has_conversion=True): Reason.INVALID_ARGUMENT,
        SpokenBy(name, "", "teams/beta/voices/anna"): Reason.VOICE_NOT_FOUND,
    }
    async with metadata.store.tenant("alpha") as tx:
        for asked, expected in cases.items():
            found = await speakers_of(tx, "alpha", asked)
            if isinstance(expected, Reason):
                assert isinstance(found, VoxfleetError), asked
                assert found.reason is expected, asked
            else:
                converted = found.converted.name if found.converted else None
                assert (found.voice.name, converted) == expected
