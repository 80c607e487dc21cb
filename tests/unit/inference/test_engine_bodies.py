"""What replicas do, on small random weights, without Ray."""

from __future__ import annotations

import hashlib
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.model import content_key
from services.common.errors import Reason, VoxfleetError
from services.common.jobs.tasks import (
    Blob,
    ConversionParameters,
    ConvertTask,
    F5Voice,
    Output,
    RvcVoice,
    SourceAudio,
    SpeakingParameters,
    SpeakTask,
)
from services.common.media.decode import decode, probe
from services.common.media.encode import Format, encode
from services.engines.bundles.manifest import Manifest, read_manifest
from services.engines.f5 import small
from services.engines.rvc.config import preset
from services.engines.rvc.content import ContentSources
from services.engines.rvc.package import pack_voice
from services.engines.rvc.synthesizer import Synthesizer
from services.engines.rvc.voice import Voice, VoiceFacts, save_voice
from services.inference.app.bundles import stored_key
from services.inference.calls import (
    Advance,
    Convert,
    EngineSpec,
    Made,
    Opened,
    Pcm,
    Probe,
    Speak,
    StreamSpeech,
)
from services.inference.engine import conversion
from services.inference.engine.bundle import small_bundle
from services.inference.engine.conversion import ConversionBody, ConversionLimits
from services.inference.engine.speech import SpeechBody, SpeechLimits
from services.inference.model import Role

SPEECH = Path(__file__).parents[2] / "fixtures" / "speech"


def put(store: MemoryArtifactStore, data: bytes) -> Blob:
    sha256 = hashlib.sha256(data).hexdigest()
    key = content_key("blue", sha256)
    store.put_bytes(key, data)
    return Blob(key=key, sha256=sha256, size_bytes=len(data))


@pytest.fixture(scope="module")
def store() -> MemoryArtifactStore:
    return MemoryArtifactStore()


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.set_num_threads(1)
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def speaker(store: MemoryArtifactStore, cache: Path) -> SpeechBody:
    return SpeechBody(EngineSpec(Role.F5), store, cache, SpeechLimits())


@pytest.fixture(scope="module")
def voice(store: MemoryArtifactStore) -> F5Voice:
    blob = put(store, (SPEECH / "clip_en_1.flac").read_bytes())
    said = "There is currently one other participant in the conference."
    return F5Voice(name="teams/blue/voices/speaker", reference=blob, reference_text=said)


def events_of(body, request, *, stop: threading.Event | None = None) -> list:
    events: list = []
    body.run(request, events.append, (stop or threading.Event()).is_set)
    return events


def item(voice: F5Voice, text: str, seed: int = 1, **output: object) -> Speak:
    parameters = SpeakingParameters(steps=2, seed=seed, duration_s=2.0)
    task = SpeakTask(team="blue", text=text, voice=voice, parameters=parameters, output=Output(**output))
    return Speak(f"teams/blue/jobs/{seed}", task)


def test_the_small_bundle_is_made_once_and_says_what_it_is(speaker: SpeechBody, cache: Path) -> None:
    assert speaker.facts.weights.label == "f5-small-random (untrained weights)"
    assert speaker.facts.device == "cpu"
    directory = small_bundle(cache)
    before = (directory / "model.safetensors").stat().st_mtime_ns
    assert small_bundle(cache) == directory
    assert (directory / "model.safetensors").stat().st_mtime_ns == before
    assert [path.name for path in (cache / "bundles").iterdir()] == ["f5-small-random"]


def test_a_stream_is_what_the_whole_would_be(speaker: SpeechBody, voice: F5Voice) -> None:
    text = " ".join(
        f"This is sentence number {number} of a few." for number in ("one", "two", "three", "four")
    )
    request = StreamSpeech(text, voice, SpeakingParameters(steps=2, seed=3, duration_s=14.0), 48_000)
    events = events_of(speaker, request)
    opened = next(event for event in events if isinstance(event, Opened))
    pieces = [event for event in events if isinstance(event, Pcm)]
    assert opened.chunks == len(pieces) > 1
    assert (opened.rate_hz, opened.seed) == (48_000, 3)
    assert abs(sum(piece.samples for piece in pieces) - 14 * 48_000) <= 2
    assert all(len(piece.data) == 2 * piece.samples for piece in pieces)


def test_a_stream_that_is_stopped_ends(speaker: SpeechBody, voice: F5Voice) -> None:
    stop = threading.Event()
    stop.set()
    with pytest.raises(VoxfleetError) as caught:
        events_of(
            speaker, StreamSpeech("Hello there.", voice, SpeakingParameters(steps=2, seed=3)), stop=stop
        )
    assert caught.value.reason is Reason.CANCELLED


@pytest.mark.parametrize(
    ("output", "expected"),
    [({"format": "wav", "rate_hz": 16_000}, (16_000, "wav")), ({"format": "opus"}, (48_000, "opus"))],
)
def test_a_text_comes_in_its_format(
    speaker: SpeechBody, voice: F5Voice, store: MemoryArtifactStore, output: dict, expected: tuple
) -> None:
    one = item(voice, "The first line.", **output)
    made = events_of(speaker, one)[-1]
    assert (made.rate_hz, made.codec) == expected
    data = store.get_bytes(made.blob.key, sha256=made.blob.sha256)
    assert decode(data).duration_s == pytest.approx(2.0, abs=0.01)
    tags = probe(data).tags
    assert tags["weights"] == "f5-small-random (untrained weights)"
    assert tags["job"] == one.job
    assert tags["generated"] == "true"


def test_a_bad_text_says_what_is_wrong(speaker: SpeechBody, voice: F5Voice) -> None:
    gone = voice.model_copy(
        update={
            "reference": voice.reference.model_copy(update={"key": "teams/blue/x"}),
            "reference_text": "Other.",
        }
    )
    for one, reason in (
        (item(voice, "ꙮ"), Reason.UNSUPPORTED_CHARACTERS),
        (item(gone, "The fourth line."), Reason.AUDIO_NOT_FOUND),
        (item(voice, "The fifth line.", rate_hz=96_000), Reason.INVALID_ARGUMENT),
    ):
        with pytest.raises(VoxfleetError) as caught:
            events_of(speaker, one)
        assert caught.value.reason is reason


def test_texts_that_are_asked_for_at_once_each_get_their_own(speaker: SpeechBody, voice: F5Voice) -> None:
    texts = ["One line.", "Another line, a little longer.", "ꙮ", "The last line."]
    found: dict[str, object] = {}

    def speak(text: str) -> None:
        try:
            found[text] = events_of(speaker, item(voice, text, 3))[-1].blob
        except VoxfleetError as error:
            found[text] = error.reason

    threads = [threading.Thread(target=speak, args=(text,)) for text in texts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found.pop("ꙮ") is Reason.UNSUPPORTED_CHARACTERS
    assert found == {text: events_of(speaker, item(voice, text, 3))[-1].blob for text in found}


def test_the_same_text_is_the_same_object(speaker: SpeechBody, voice: F5Voice) -> None:
    one = item(voice, "The same line.", 9)
    first, second = (events_of(speaker, one)[-1] for _ in range(2))
    assert first.blob == second.blob


def test_a_stored_bundle_is_fetched_to_the_node(
    store: MemoryArtifactStore, cache: Path, voice: F5Voice, tmp_path: Path
) -> None:
    directory = small_bundle(cache)
    manifest = read_manifest(directory)
    for file in manifest.files:
        store.put_file(stored_key(manifest, file.path), directory / file.path)
    body = SpeechBody(EngineSpec(Role.F5, bundle=manifest), store, tmp_path, SpeechLimits())
    assert isinstance(events_of(body, item(voice, "From the store."))[-1], Made)
    store.corrupt_for_test(stored_key(manifest, "vocab.txt"), b"torn")
    with pytest.raises(VoxfleetError) as caught:
        SpeechBody(EngineSpec(Role.F5, bundle=manifest), store, tmp_path / "other", SpeechLimits())
    assert caught.value.reason is Reason.MODEL_CORRUPT


def other_bundle(store: MemoryArtifactStore, directory: Path, name: str, language: str) -> Manifest:
    """A stored bundle of other random weights, said to be of another language."""
    made = small.build(directory, seed=7)
    manifest = replace(made, name=name, languages=(language,), origin="custom")
    for file in manifest.files:
        store.put_file(stored_key(manifest, file.path), directory / file.path)
    return manifest


def test_each_language_is_spoken_by_the_bundle_that_has_it(
    store: MemoryArtifactStore, voice: F5Voice, speaker: SpeechBody, tmp_path: Path
) -> None:
    german = other_bundle(store, tmp_path / "german", "f5-german", "de")
    torn = other_bundle(store, tmp_path / "torn", "f5-torn", "fi")
    store.corrupt_for_test(stored_key(torn, "vocab.txt"), b"torn")
    body = SpeechBody(EngineSpec(Role.F5, more=(german, torn)), store, tmp_path / "node", SpeechLimits())
    assert [one.weights.name for one in body.facts.speaking] == ["f5-small-random", "f5-german"]
    assert [name for name, _ in body.facts.broken] == ["f5-torn"]

    def said(language: str, **request: object) -> Made:
        one = item(voice, "Ein Satz, zwei Sprachen.")
        parameters = one.task.parameters.model_copy(update={"language": language})
        task = one.task.model_copy(update={"parameters": parameters})
        return events_of(body, replace(one, task=task, **request))[-1]

    assert said("de").weights.name == "f5-german"
    assert probe(store.get_bytes(said("de").blob.key)).tags["weights"] == "f5-german (untrained weights)"
    assert said("en").weights.name == "f5-small-random"
    assert said("de").blob != said("en").blob
    # What shares its replica with another bundle is what it would be without.
    assert said("en").blob == events_of(speaker, item(voice, "Ein Satz, zwei Sprachen."))[-1].blob
    for language, request, reason in (
        ("fi", {}, Reason.UNSUPPORTED_LANGUAGE),
        ("de", {"allowed": ("Apache-2.0",)}, Reason.LICENCE_NOT_ALLOWED),
    ):
        with pytest.raises(VoxfleetError) as caught:
            said(language, **request)
        assert caught.value.reason is reason
    stream = StreamSpeech(
        "Guten Tag.", voice, SpeakingParameters(steps=2, seed=3, duration_s=1.5, language="de")
    )
    opened = next(event for event in events_of(body, stream) if isinstance(event, Opened))
    assert opened.weights.name == "f5-german"
    assert events_of(body, Probe()) == []


class Content:
    """Features without a network."""

    name = "whisper-base"
    width = 512

    def encode(self, samples: np.ndarray) -> np.ndarray:
        frames = -(-len(samples) // 320)
        return np.random.default_rng(frames).standard_normal((frames, 512)).astype(np.float32)


def packed_voice(folder: Path, store: MemoryArtifactStore, seed: int, **training: object) -> RvcVoice:
    torch.manual_seed(seed)
    config = preset("tiny_40k", content_width=512)
    facts = VoiceFacts(config, "whisper-base", "swift", {"steps": 0} | training)
    save_voice(folder / f"voice-{seed}", facts, Synthesizer(config).state_dict(), None)
    pack_voice(folder / f"voice-{seed}", folder / f"{seed}.zip")
    return RvcVoice(
        name=f"teams/blue/voices/v{seed}", package=put(store, (folder / f"{seed}.zip").read_bytes())
    )


@pytest.fixture
def loads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Voices that were loaded, in order; their content encoder is a light one."""
    found: list[str] = []
    load = conversion.load_voice

    def counted(directory: Path, sources: ContentSources, *, device: str) -> Voice:
        found.append(directory.name)
        return load(directory, sources, device=device, encoder=Content())

    monkeypatch.setattr(conversion, "load_voice", counted)
    return found


def convert_task(store: MemoryArtifactStore, voice: RvcVoice, **output: object) -> Convert:
    tone = (0.3 * np.sin(np.arange(16_000) * 2 * np.pi * 220 / 16_000)).astype(np.float32)
    source = SourceAudio(
        name="teams/blue/audios/a", blob=put(store, encode(tone, 16_000, Format.FLAC)), duration_s=1
    )
    parameters = ConversionParameters(index_rate=0.0, f0_method="swift", seed=4)
    task = ConvertTask(team="blue", audio=source, voice=voice, parameters=parameters, output=Output(**output))
    return Convert("teams/blue/jobs/c", task)


def test_a_conversion_and_its_cache(store: MemoryArtifactStore, tmp_path: Path, loads: list[str]) -> None:
    one, two = (packed_voice(tmp_path, store, seed) for seed in (1, 2))
    body = ConversionBody(EngineSpec(Role.RVC), store, tmp_path / "cache", ConversionLimits(voices=1))
    events = events_of(body, convert_task(store, one, format="flac"))
    phases = list(dict.fromkeys(event.phase for event in events if isinstance(event, Advance)))
    assert phases == ["fetch", "load", "convert", "encode", "store"]
    made = events[-1]
    assert isinstance(made, Made)
    assert (made.rate_hz, made.duration_s, made.seed) == (40_000, 1.0, 4)
    assert made.weights.label == "teams/blue/voices/v1 (untrained weights)"
    tags = probe(store.get_bytes(made.blob.key)).tags
    assert tags["source_audio"] == "teams/blue/audios/a"
    again = events_of(body, convert_task(store, one, format="flac"))[-1]
    assert again.blob == made.blob, "the same seed gives the same bytes"
    assert len(loads) == 1
    events_of(body, convert_task(store, two))
    events_of(body, convert_task(store, one))
    assert loads == [one.package.sha256, two.package.sha256, one.package.sha256], (
        "one voice is kept in memory"
    )
    kept = sorted(path.name for path in (tmp_path / "cache" / "voices").iterdir() if path.is_dir())
    assert kept == sorted([one.package.sha256, two.package.sha256])


def test_voices_on_disk_are_bounded(store: MemoryArtifactStore, tmp_path: Path, loads: list[str]) -> None:
    limits = ConversionLimits(voices=1, voices_on_disk=1)
    body = ConversionBody(EngineSpec(Role.RVC), store, tmp_path / "cache", limits)
    for seed in (1, 2):
        voice = packed_voice(tmp_path, store, seed)
        events_of(body, convert_task(store, voice))
    kept = [path.name for path in (tmp_path / "cache" / "voices").iterdir() if path.is_dir()]
    assert kept == [voice.package.sha256]


def test_a_voice_that_is_gone_or_torn_says_so(
    store: MemoryArtifactStore, tmp_path: Path, loads: list[str]
) -> None:
    body = ConversionBody(EngineSpec(Role.RVC), store, tmp_path / "cache", ConversionLimits())
    gone = RvcVoice(name="v", package=Blob(key=content_key("blue", "0" * 64), sha256="0" * 64, size_bytes=1))
    torn = RvcVoice(name="v", package=put(store, b"not a package"))
    for voice, reason in ((gone, Reason.MODEL_NOT_FOUND), (torn, Reason.MODEL_CORRUPT)):
        with pytest.raises(VoxfleetError) as caught:
            events_of(body, convert_task(store, voice))
        assert caught.value.reason is reason


def test_a_conversion_that_is_stopped_makes_nothing(
    store: MemoryArtifactStore, tmp_path: Path, loads: list[str]
) -> None:
    body = ConversionBody(EngineSpec(Role.RVC), store, tmp_path / "cache", ConversionLimits())
    stop = threading.Event()
    stop.set()
    with pytest.raises(VoxfleetError) as caught:
        events_of(body, convert_task(store, packed_voice(tmp_path, store, 3)), stop=stop)
    assert caught.value.reason is Reason.CANCELLED
