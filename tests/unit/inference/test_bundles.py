"""Bundles: which one is used, what is pulled and imported, and under which conditions."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path

import pytest

from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.errors import Reason, VoxfleetError
from services.engines.bundles import catalogue
from services.engines.bundles.manifest import BundleFile, Manifest
from services.engines.bundles.pull import Hub
from services.inference.app.bundles import Bundles, ImportFile, ImportOpen, stored_key
from tests.unit.inference.fakes import FakeCatalog

FILES = {
    "model.safetensors": b"weights",
    "vocab.txt": b" \na\n",
    "vocos/config.yaml": b"{}",
    "vocos/model.safetensors": b"vocoder",
}
CUSTOM = Manifest(
    name="f5-blue",
    engine="f5",
    files=tuple(BundleFile(p, hashlib.sha256(d).hexdigest(), len(d)) for p, d in FILES.items()),
    licence="LicenseRef-blue",
    licence_url="https://example.org/licence",
    requires_acceptance=True,
    languages=("en",),
    trained=True,
    source="blue",
    description="A bundle of the blue team.",
)


class Rig:
    def __init__(self, tmp_path: Path, **settings: object) -> None:
        self.catalog = FakeCatalog()
        self.store = MemoryArtifactStore()
        self.bundles = Bundles(self.catalog, self.store, tmp_path, **settings)
        self.tmp_path = tmp_path


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


async def parts(
    *,
    accepted: bool = True,
    files: dict[str, bytes] = FILES,
    bundle: str = "f5-blue",
    manifest: str | None = None,
    announced: bytes = b"",
) -> AsyncIterator[ImportOpen | ImportFile | bytes]:
    yield ImportOpen("blue", bundle, accepted, CUSTOM.to_json() if manifest is None else manifest)
    for path, data in files.items():
        yield ImportFile(path, len(data), hashlib.sha256(announced or data).hexdigest())
        for at in range(0, len(data), 3):
            yield data[at : at + 3]


async def refused(rig: Rig, found: AsyncIterator) -> Reason:
    with pytest.raises(VoxfleetError) as caught:
        await rig.bundles.import_bundle(found)
    assert not list(rig.store.list_prefix("bundles/"))
    assert not rig.catalog.bundles
    assert not list(rig.tmp_path.iterdir()), "nothing is left behind"
    return caught.value.reason


async def test_an_import_is_stored_under_its_identity_and_recorded(rig: Rig) -> None:
    view = await rig.bundles.import_bundle(parts())
    assert (view.manifest.name, view.present, view.is_default) == ("f5-blue", True, False)
    for path, data in FILES.items():
        assert rig.store.get_bytes(stored_key(CUSTOM, path)) == data
    assert rig.catalog.accepted == {"f5-blue": "blue"}
    assert not list(rig.tmp_path.iterdir())
    replaced = replace(CUSTOM, files=CUSTOM.files[1:])
    assert stored_key(replaced, "vocab.txt") != stored_key(CUSTOM, "vocab.txt")


async def test_a_licence_must_be_accepted(rig: Rig) -> None:
    assert await refused(rig, parts(accepted=False)) is Reason.LICENCE_NOT_ACCEPTED
    official = parts(accepted=False, bundle="f5-v1-base", manifest="")
    assert await refused(rig, official) is Reason.LICENCE_NOT_ACCEPTED


async def test_bytes_that_are_not_the_announced_ones_are_refused(rig: Rig) -> None:
    assert await refused(rig, parts(announced=b"other")) is Reason.CHECKSUM_MISMATCH


async def test_files_that_are_not_the_manifests_are_refused(rig: Rig) -> None:
    wrong = FILES | {"vocab.txt": b"something else"}
    assert await refused(rig, parts(files=wrong)) is Reason.MODEL_CORRUPT
    short = {path: data for path, data in FILES.items() if path != "model.safetensors"}
    assert await refused(rig, parts(files=short)) is Reason.MODEL_CORRUPT
    official = parts(bundle="f5-v1-base", manifest="")
    assert await refused(rig, official) is Reason.MODEL_CORRUPT


@pytest.mark.parametrize("path", ["../evil", "/etc/evil", "a/../../evil", "", "manifest.json", "a\\b"])
async def test_a_path_stays_in_its_bundle(rig: Rig, path: str) -> None:
    assert await refused(rig, parts(files={path: b"x"})) is Reason.INVALID_ARGUMENT


async def test_an_import_begins_with_open(rig: Rig) -> None:
    async def headless() -> AsyncIterator[bytes]:
        yield b"chunk"

    assert await refused(rig, headless()) is Reason.INVALID_ARGUMENT


async def test_the_official_weights_are_used_once_they_are_stored(rig: Rig) -> None:
    await rig.bundles.refresh()
    assert rig.bundles.default_name == "f5-small-random"
    assert rig.bundles.f5_spec().bundle is None
    told: list[str] = []
    rig.bundles.on_change(lambda: told.append(rig.bundles.default_name))
    rig.catalog.bundles["f5-v1-base"] = catalogue.F5_V1_BASE
    rig.catalog.bundles["contentvec-base"] = catalogue.CONTENTVEC_BASE
    await rig.bundles.refresh()
    await rig.bundles.refresh()
    assert told == ["f5-v1-base"]
    assert rig.bundles.f5_spec().bundle == catalogue.F5_V1_BASE
    assert rig.bundles.rvc_spec().contentvec == catalogue.CONTENTVEC_BASE


async def test_a_bundle_of_the_settings_must_be_there_and_of_f5(tmp_path: Path) -> None:
    rig = Rig(tmp_path, wanted="f5-blue")
    with pytest.raises(VoxfleetError) as caught:
        rig.bundles.f5_spec()
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    rig.catalog.bundles["f5-blue"] = replace(CUSTOM, engine="whisper")
    await rig.bundles.refresh()
    with pytest.raises(VoxfleetError):
        rig.bundles.f5_spec()
    rig.catalog.bundles["f5-blue"] = CUSTOM
    await rig.bundles.refresh()
    assert rig.bundles.f5_spec().bundle == CUSTOM


async def test_stored_bundles_add_the_languages_that_the_default_lacks(tmp_path: Path) -> None:
    rig = Rig(tmp_path, wanted="f5-blue", more=2)

    def stored(name: str, *languages: str, **other: object) -> None:
        rig.catalog.bundles[name] = replace(CUSTOM, name=name, languages=languages, **other)

    stored("f5-blue", "en")
    stored("f5-english", "en-GB")
    stored("f5-czech", "cs", "en")
    stored("f5-czech-2", "cs-CZ")
    stored("f5-draft", "fi", trained=False)
    stored("f5-german", "de")
    stored("f5-italian", "it")
    stored("whisper-large", "fr", engine="whisper")
    await rig.bundles.refresh()
    assert [one.name for one in rig.bundles.f5_spec().more] == ["f5-czech", "f5-german"]
    speaks = {view.manifest.name: view.speaks for view in await rig.bundles.views() if view.speaks}
    assert speaks == {"f5-blue": ("en",), "f5-czech": ("cs",), "f5-german": ("de",)}


async def test_no_more_than_the_default_is_held_where_nothing_is_to_be_added(tmp_path: Path) -> None:
    rig = Rig(tmp_path, more=0)
    rig.catalog.bundles["f5-german"] = replace(CUSTOM, name="f5-german", languages=("de",))
    await rig.bundles.refresh()
    assert rig.bundles.f5_spec().more == ()


async def test_views_hold_known_and_stored_bundles(rig: Rig) -> None:
    rig.catalog.bundles["f5-blue"] = CUSTOM
    views = {view.manifest.name: view for view in await rig.bundles.views()}
    assert list(views) == sorted(views)
    assert {name for name, view in views.items() if view.present} == {
        "f5-blue",
        "f5-small-random",
        "whisper-base",
    }
    assert [name for name, view in views.items() if view.is_default] == ["f5-small-random"]


async def test_a_pull_needs_the_licence_a_known_name_and_a_hub(tmp_path: Path) -> None:
    rig = Rig(tmp_path, hub=Hub(url="http://127.0.0.1:9", attempts=1, timeout_s=1.0))

    async def reason(name: str, *, accepted: bool) -> Reason:
        with pytest.raises(VoxfleetError) as caught:
            await rig.bundles.pull(name, team="blue", accepted=accepted, advance=lambda *_: None)
        return caught.value.reason

    assert await reason("f5-v1-base", accepted=False) is Reason.LICENCE_NOT_ACCEPTED
    assert await reason("nobody-knows", accepted=True) is Reason.MODEL_NOT_FOUND
    assert await reason("f5-v1-base", accepted=True) is Reason.HUB_UNREACHABLE
    assert await reason("f5-small-random", accepted=True) is Reason.INVALID_ARGUMENT
    assert not rig.catalog.bundles


async def test_what_is_stored_is_not_pulled_again(rig: Rig) -> None:
    rig.catalog.bundles["f5-v1-base"] = catalogue.F5_V1_BASE
    await rig.bundles.refresh()
    told: list[tuple[str, float]] = []
    found = await rig.bundles.pull(
        "f5-v1-base", team="blue", accepted=True, advance=lambda phase, share, _: told.append((phase, share))
    )
    assert found == catalogue.F5_V1_BASE
    assert told == [("store", 1.0)]
