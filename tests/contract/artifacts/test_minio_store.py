"""What only a store behind a network can do, or suffer."""

from __future__ import annotations

import hashlib
import uuid
from pathlib import Path

import pytest
import urllib3

from services.common.artifacts import model
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.settings import S3Settings
from services.common.errors import FailureClass, Reason, VoxfleetError


@pytest.fixture
def store(s3_settings: S3Settings) -> MinioArtifactStore:
    return MinioArtifactStore(s3_settings)


@pytest.fixture
def key() -> str:
    return model.staging_key("blue", uuid.uuid4().hex, 0)


def test_a_presigned_upload_and_download_need_no_key(store: MinioArtifactStore, key: str) -> None:
    data = b"\x00voice" * 1000
    http = urllib3.PoolManager()
    assert http.request("PUT", store.presign_put(key, 60), body=data).status == 200
    assert store.stat(key).sha256 == ""  # nobody has hashed it yet
    answer = http.request("GET", store.presign_get(key, 60, file_name="Grüße.wav"))
    assert answer.data == data
    assert "Gr%C3%BC%C3%9Fe.wav" in answer.headers["content-disposition"]
    part = http.request("GET", store.presign_get(key, 60), headers={"Range": "bytes=1-5"})
    assert (part.status, part.data) == (206, b"voice")


def test_a_presigned_address_is_good_for_one_key_and_method(store: MinioArtifactStore, key: str) -> None:
    store.put_bytes(key, b"x")
    http = urllib3.PoolManager()
    url = store.presign_get(key, 60)
    assert http.request("GET", url).status == 200
    assert http.request("PUT", url, body=b"y").status == 403
    assert http.request("GET", url.replace(key, key + "0")).status == 403
    assert http.request("GET", url.partition("?")[0]).status == 403


def test_presigned_addresses_name_the_public_endpoint(s3_settings: S3Settings, key: str) -> None:
    public = s3_settings.model_copy(update={"public_endpoint": "https://media.example.org"})
    url = MinioArtifactStore(public).presign_get(key, 60)
    assert url.startswith(f"https://media.example.org/voxfleet/{key}?")


def test_a_store_that_is_down_is_unavailable_and_worth_a_retry(s3_settings: S3Settings, key: str) -> None:
    nobody = s3_settings.model_copy(update={"endpoint": "127.0.0.1:9"})
    store = MinioArtifactStore(nobody, retries=0)
    for action in (
        lambda: store.stat(key),
        lambda: store.put_bytes(key, b"x"),
        lambda: store.get_bytes(key),
        lambda: list(store.list_prefix("teams/blue/")),
        store.ensure_bucket,
    ):
        with pytest.raises(VoxfleetError) as caught:
            action()
        assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
        assert caught.value.failure is FailureClass.TRANSIENT


def test_wrong_keys_are_said_to_be_wrong(s3_settings: S3Settings, key: str) -> None:
    store = MinioArtifactStore(s3_settings.model_copy(update={"access_key": "wrong"}))
    with pytest.raises(VoxfleetError, match="check the access key") as caught:
        store.put_bytes(key, b"x")
    assert caught.value.reason is Reason.STORAGE_UNAVAILABLE
    assert s3_settings.secret_key.get_secret_value() not in str(caught.value)


def test_a_file_that_changes_under_the_upload_is_not_kept(
    store: MinioArtifactStore, key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"first ")
    find = store._find

    def change_then_find(key: str) -> model.Blob | None:
        path.write_bytes(b"second")  # after it was hashed, before it is sent
        return find(key)

    monkeypatch.setattr(store, "_find", change_then_find)
    with pytest.raises(VoxfleetError) as caught:
        store.put_file(key, path)
    assert caught.value.reason is Reason.ARTIFACT_CORRUPT
    assert caught.value.metadata["expected_sha256"] == hashlib.sha256(b"first ").hexdigest()
    assert not store.exists(key)
