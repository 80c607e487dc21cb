"""The layout of keys, and the settings."""

from __future__ import annotations

import hashlib

import pytest

from services.common.artifacts import model
from services.common.artifacts.settings import S3Settings
from services.common.errors import Reason, VoxfleetError

DIGEST = hashlib.sha256(b"voice").hexdigest()


def test_keys_stand_where_the_layout_says() -> None:
    assert model.content_key("blue", DIGEST) == f"teams/blue/sha256/{DIGEST[:2]}/{DIGEST}"
    assert model.staging_key("blue", "up-1", 4096) == "teams/blue/staging/up-1/0000000000004096"
    assert model.work_key("blue", "job-1", 2, "ckpt/G.pth") == "teams/blue/work/job-1/2/ckpt/G.pth"
    assert model.bundle_key("f5-v1-base", "vocab.txt") == "bundles/f5-v1-base/vocab.txt"


def test_parts_of_an_upload_sort_by_offset() -> None:
    offsets = [0, 5, 99, 2**20, 10**12]
    assert sorted(model.staging_key("t1", "u", each) for each in reversed(offsets)) == [
        model.staging_key("t1", "u", each) for each in offsets
    ]


@pytest.mark.parametrize("team", ["", "..", ".", "a/b", "../green", "-x", "a b", "é"])
def test_a_team_cannot_leave_its_folder(team: str) -> None:
    with pytest.raises(VoxfleetError) as caught:
        model.content_key(team, DIGEST)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("name", ["", "../G.pth", "a/../b", "/G.pth", "a//b", "a/"])
def test_a_file_cannot_leave_its_job(name: str) -> None:
    with pytest.raises(VoxfleetError):
        model.work_key("blue", "job-1", 0, name)


@pytest.mark.parametrize("sha256", ["", DIGEST[:-1], DIGEST.upper(), "g" * 64])
def test_only_a_whole_hash_names_content(sha256: str) -> None:
    with pytest.raises(VoxfleetError):
        model.content_key("blue", sha256)


def test_a_content_key_promises_its_hash_and_no_other_key_does() -> None:
    assert model.content_sha256(model.content_key("blue", DIGEST)) == DIGEST
    assert model.content_sha256(f"teams/blue/sha256/zz/{DIGEST}") == ""
    assert model.content_sha256(model.work_key("blue", "job-1", 1, DIGEST)) == ""


@pytest.mark.parametrize("prefix", ["", "/", "teams/", "teams//", "teams", "teams/blue", "bundles/", "x/y/"])
def test_no_prefix_reaches_beyond_one_team(prefix: str) -> None:
    with pytest.raises(VoxfleetError):
        model.check_prefix(prefix)


def test_a_team_and_what_stands_below_it_are_prefixes() -> None:
    for prefix in (model.team_prefix("blue"), model.work_prefix("blue", "job-1"), model.bundle_prefix("f5")):
        assert model.check_prefix(prefix) == prefix


def test_the_scheme_of_an_endpoint_decides_whether_it_is_secure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXFLEET_S3_ENDPOINT", "http://127.0.0.1:9000/")
    monkeypatch.setenv("VOXFLEET_S3_ACCESS_KEY", "key")
    monkeypatch.setenv("VOXFLEET_S3_SECRET_KEY", "hidden")
    monkeypatch.setenv("VOXFLEET_S3_PUBLIC_ENDPOINT", "https://media.example.org")
    settings = S3Settings()  # type: ignore[call-arg]
    assert (settings.endpoint, settings.secure) == ("127.0.0.1:9000", False)
    assert settings.public == ("media.example.org", True)
    assert "hidden" not in repr(settings)


def test_settings_survive_the_way_through_an_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VOXFLEET_S3_REGION", "not-this-one")
    settings = S3Settings.model_validate(
        {"endpoint": "s3.example.org", "access_key": "key", "secret_key": "hidden", "region": "eu-west-1"}
    )
    assert settings.public == ("s3.example.org", True)
    assert S3Settings.from_environ(settings.to_environ()) == settings
