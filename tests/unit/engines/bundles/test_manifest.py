from __future__ import annotations

import json

import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.bundles import catalogue
from services.engines.bundles.manifest import BundleFile, Manifest, read_manifest, verify, write_manifest

from .conftest import manifest_of

CONTENTS = {"model.bin": b"weights" * 100, "deep/config.yaml": b"a: 1\n"}


def write(directory, contents):
    for path, data in contents.items():
        (directory / path).parent.mkdir(parents=True, exist_ok=True)
        (directory / path).write_bytes(data)


def test_a_manifest_survives_json():
    for manifest in (*catalogue.CATALOGUE, manifest_of(CONTENTS, parameters={"dim": 4, "qk_norm": None})):
        assert Manifest.from_json(manifest.to_json()) == manifest


def test_a_whole_bundle_verifies(tmp_path):
    write(tmp_path, CONTENTS)
    manifest = manifest_of(CONTENTS)
    write_manifest(tmp_path, manifest)
    verify(tmp_path, read_manifest(tmp_path))


@pytest.mark.parametrize(
    ("spoil", "why"),
    [
        (lambda d: (d / "model.bin").write_bytes(b"Weights" + b"weights" * 99), "SHA-256 differs"),
        (lambda d: (d / "model.bin").write_bytes(b"weights"), "size differs"),
        (lambda d: (d / "model.bin").unlink(), "missing"),
    ],
)
def test_a_spoilt_file_is_named(tmp_path, spoil, why):
    write(tmp_path, CONTENTS)
    spoil(tmp_path)
    with pytest.raises(VoxfleetError, match=why) as caught:
        verify(tmp_path, manifest_of(CONTENTS))
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert caught.value.kind is Kind.DATA_LOSS
    assert caught.value.metadata["path"] == "model.bin"


@pytest.mark.parametrize("path", ["../out", "/etc/passwd", "a/../b", "a\\b", "", "a//b", "manifest.json"])
def test_a_path_stays_in_the_bundle(path):
    with pytest.raises(VoxfleetError) as caught:
        manifest_of({}, files=(BundleFile(path, None, None),))
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize(
    "changes",
    [
        {"name": "Upper Case"},
        {"licence": ""},
        {"engine": ""},
        {"origin": "elsewhere"},
        {"languages": ("english language",)},
        {"files": (BundleFile("a", "12", 1),)},
        {"files": (BundleFile("a", None, -1),)},
        {"files": (BundleFile("a", None, 1), BundleFile("a", None, 1))},
        {"files": (BundleFile("a", None, 1, "file:///etc/passwd"),)},
    ],
)
def test_a_wrong_manifest_is_refused(changes):
    with pytest.raises(VoxfleetError):
        manifest_of(CONTENTS, **changes)


@pytest.mark.parametrize("text", ["", "[]", "{}", json.dumps({"schema": 99}), '{"surprise": 1}'])
def test_what_is_no_manifest_is_refused(text):
    with pytest.raises(VoxfleetError) as caught:
        Manifest.from_json(text)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_the_digest_is_of_the_weights_and_not_of_the_words():
    manifest = manifest_of(CONTENTS)
    assert manifest_of(CONTENTS, description="Other words.").digest == manifest.digest
    assert manifest_of(CONTENTS | {"model.bin": b"other"}).digest != manifest.digest


def test_a_draft_has_no_identity_and_does_not_verify(tmp_path):
    write(tmp_path, CONTENTS)
    draft = manifest_of(CONTENTS, stated=False)
    assert not draft.complete
    with pytest.raises(VoxfleetError):
        _ = draft.digest
    with pytest.raises(VoxfleetError):
        verify(tmp_path, draft)


def test_untrained_weights_say_so():
    assert manifest_of(CONTENTS).label == "test-bundle"
    assert manifest_of(CONTENTS, trained=False).label == "test-bundle (untrained weights)"
    assert "untrained" in catalogue.F5_SMALL_RANDOM.label


def test_the_catalogue_is_complete_where_the_publisher_states_checksums():
    assert catalogue.known("f5-v1-base").complete
    assert catalogue.known("f5-v1-base").requires_acceptance
    assert catalogue.known("whisper-base").complete
    with pytest.raises(VoxfleetError) as caught:
        catalogue.known("f5-v9")
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    # The official vocabulary is the one that f5-tts ships, with CRLF for LF.
    assert catalogue.known("f5-v1-base").file("vocab.txt").size_bytes == 11_255 + 2_545
