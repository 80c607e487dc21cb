import pytest

from services.common.errors import Reason, VoxfleetError
from services.metadata.model.catalog import VoiceState
from services.metadata.model.page import Page
from tests.integration.metadata.test_ledger import add_audio, make_voice


async def test_a_deleted_voice_comes_back(metadata):
    await make_voice(metadata)
    assert (await metadata.voices.delete("alpha", "zero-shot")).state is VoiceState.DELETED
    assert await metadata.voices.page("alpha", Page(10), show_deleted=False) == []
    assert len(await metadata.voices.page("alpha", Page(10), show_deleted=True)) == 1
    with pytest.raises(VoxfleetError) as caught:
        await metadata.voices.resolve("alpha", "zero-shot", "")
    assert caught.value.reason is Reason.VOICE_NOT_READY
    assert (await metadata.voices.undelete("alpha", "zero-shot")).state is VoiceState.READY
    _, reference, text = await metadata.voices.resolve("alpha", "zero-shot", "")
    assert (reference.sha256, text) == ("ab" * 32, "hello")


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
