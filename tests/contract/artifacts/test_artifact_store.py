"""One suite for every artefact store: in memory, and on a real S3 server."""

from __future__ import annotations

import hashlib
import io
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeAlias

import pytest

from services.common.artifacts import model
from services.common.artifacts.memory_store import MemoryArtifactStore
from services.common.artifacts.minio_store import MinioArtifactStore
from services.common.artifacts.ports import ArtifactStore
from services.common.errors import Kind, Reason, VoxfleetError

Damage: TypeAlias = Callable[[str, bytes], None]


@pytest.fixture(params=["memory", "minio"])
def store(request: pytest.FixtureRequest) -> ArtifactStore:
    if request.param == "memory":
        return MemoryArtifactStore()
    return MinioArtifactStore(request.getfixturevalue("s3_settings"))


@pytest.fixture
def damage(store: ArtifactStore) -> Damage:
    """Replaces what is stored under a key, behind the store's back."""
    if isinstance(store, MemoryArtifactStore):
        return store.corrupt_for_test
    assert isinstance(store, MinioArtifactStore)
    client = store._client

    def replace(key: str, data: bytes) -> None:
        stat = client.stat_object("voxfleet", key)
        kept = {name: each for name, each in stat.metadata.items() if name.lower().startswith("x-amz-meta-")}
        client.put_object("voxfleet", key, io.BytesIO(data), len(data), metadata=kept)

    return replace


@pytest.fixture
def team() -> str:
    return f"team-{uuid.uuid4().hex[:12]}"


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def reason_of(action: Callable[[], object]) -> Reason:
    with pytest.raises(VoxfleetError) as caught:
        action()
    return caught.value.reason


def test_bytes_come_back_with_their_description(store: ArtifactStore, team: str) -> None:
    data = b"RIFF" * 1000
    key = model.content_key(team, sha256(data))
    blob = store.put_bytes(key, data, media_type="audio/wav")
    assert blob == model.Blob(key, sha256(data), 4000, "audio/wav")
    assert store.get_bytes(key) == data
    assert store.stat(key) == blob
    assert store.exists(key)


def test_nothing_at_all_can_be_stored(store: ArtifactStore, team: str) -> None:
    key = model.work_key(team, "job-1", 0, "empty")
    assert store.put_bytes(key, b"").size_bytes == 0
    assert store.get_bytes(key) == b""
    assert list(store.open_range(key)) == []


def test_a_file_of_several_parts_comes_back_whole(store: ArtifactStore, team: str, tmp_path: Path) -> None:
    data = bytes(range(256)) * 4096 * 20  # 20 MiB: more than one part
    source, target = tmp_path / "in", tmp_path / "out"
    source.write_bytes(data)
    key = model.content_key(team, sha256(data))
    blob = store.put_file(key, source, verify_content=True)
    assert (blob.size_bytes, blob.sha256) == (len(data), sha256(data))
    assert store.get_file(key, target) == store.stat(key)
    assert target.read_bytes() == data
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]


def test_a_name_that_lies_is_refused_and_stores_nothing(store: ArtifactStore, team: str) -> None:
    key = model.content_key(team, sha256(b"one"))
    assert reason_of(lambda: store.put_bytes(key, b"two")) is Reason.ARTIFACT_CORRUPT
    assert not store.exists(key)


def test_a_wrong_belief_about_a_file_is_refused(store: ArtifactStore, team: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"two")
    key = model.work_key(team, "job-1", 1, "file")
    assert reason_of(lambda: store.put_file(key, path, sha256=sha256(b"one"))) is Reason.ARTIFACT_CORRUPT
    assert not store.exists(key)


def test_a_repeated_put_sends_nothing(store: ArtifactStore, team: str) -> None:
    key = model.content_key(team, sha256(b"same"))
    store.put_bytes(key, b"same", media_type="audio/wav")
    written = next(iter(store.list_prefix(key))).modified_at
    # The first description stands: nothing was written again.
    assert store.put_bytes(key, b"same", media_type="audio/flac").media_type == "audio/wav"
    assert next(iter(store.list_prefix(key))).modified_at == written


def test_another_content_of_the_same_size_replaces_a_working_file(store: ArtifactStore, team: str) -> None:
    key = model.work_key(team, "job-1", 1, "state.json")
    store.put_bytes(key, b"epoch 1")
    assert store.put_bytes(key, b"epoch 2").sha256 == sha256(b"epoch 2")
    assert store.get_bytes(key) == b"epoch 2"


def test_damage_is_noticed_and_leaves_no_file(
    store: ArtifactStore, damage: Damage, team: str, tmp_path: Path
) -> None:
    key = model.content_key(team, sha256(b"good bytes"))
    store.put_bytes(key, b"good bytes")
    damage(key, b"evil bytes")
    target = tmp_path / "out"
    target.write_bytes(b"from before")
    assert reason_of(lambda: store.get_file(key, target)) is Reason.ARTIFACT_CORRUPT
    assert reason_of(lambda: store.get_bytes(key)) is Reason.ARTIFACT_CORRUPT
    assert target.read_bytes() == b"from before"
    assert list(tmp_path.iterdir()) == [target]


def test_damage_to_a_working_file_is_noticed_too(store: ArtifactStore, damage: Damage, team: str) -> None:
    key = model.work_key(team, "job-1", 1, "G.pth")
    store.put_bytes(key, b"good weights")
    damage(key, b"evil weights")
    assert reason_of(lambda: store.get_bytes(key)) is Reason.ARTIFACT_CORRUPT


def test_a_wrong_expectation_is_refused(store: ArtifactStore, team: str) -> None:
    key = model.bundle_key(team, "weights.bin")
    store.put_bytes(key, b"weights")
    assert reason_of(lambda: store.get_bytes(key, sha256=sha256(b"others"))) is Reason.ARTIFACT_CORRUPT
    assert store.get_bytes(key, sha256=sha256(b"weights")) == b"weights"


def test_what_is_missing_is_said_to_be(store: ArtifactStore, team: str, tmp_path: Path) -> None:
    key = model.content_key(team, sha256(b"never stored"))
    assert not store.exists(key)
    for action in (
        lambda: store.stat(key),
        lambda: store.get_bytes(key),
        lambda: store.get_file(key, tmp_path / "out"),
        lambda: store.open_range(key),
        lambda: store.open_range(key, 5),
        lambda: store.copy(key, key + "0"),
    ):
        assert reason_of(action) is Reason.ARTIFACT_NOT_FOUND
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("offset_bytes", "length_bytes", "expected"),
    [
        (0, None, b"0123456789"),
        (3, None, b"3456789"),
        (3, 4, b"3456"),
        (0, 1, b"0"),
        (8, 100, b"89"),
        (9, 1, b"9"),
        (10, None, b""),
        (10, 5, b""),
        (4, 0, b""),
        (0, 0, b""),
    ],
)
def test_ranges(
    store: ArtifactStore, team: str, offset_bytes: int, length_bytes: int | None, expected: bytes
) -> None:
    key = model.work_key(team, "job-1", 0, "digits")
    store.put_bytes(key, b"0123456789")
    assert b"".join(store.open_range(key, offset_bytes, length_bytes)) == expected


@pytest.mark.parametrize("offset_bytes", [-1, 11, 10**9])
def test_a_range_outside_says_how_much_there_is(store: ArtifactStore, team: str, offset_bytes: int) -> None:
    key = model.work_key(team, "job-1", 0, "digits")
    store.put_bytes(key, b"0123456789")
    with pytest.raises(VoxfleetError) as caught:
        store.open_range(key, offset_bytes)
    assert (caught.value.reason, caught.value.kind) == (Reason.RANGE_NOT_SATISFIABLE, Kind.OUT_OF_RANGE)
    assert caught.value.metadata["size_bytes"] == "10"


def test_a_range_can_be_left_half_read(store: ArtifactStore, team: str) -> None:
    key = model.work_key(team, "job-1", 0, "long")
    data = bytes(3 * 2**20)
    store.put_bytes(key, data)
    for _ in range(20):
        chunks = store.open_range(key)
        assert 0 < len(next(chunks)) < len(data)
        del chunks
    assert store.get_bytes(key) == data


def test_a_copy_keeps_bytes_hash_and_description(store: ArtifactStore, team: str) -> None:
    staged = model.staging_key(team, "up-1", 0)
    store.put_bytes(staged, b"uploaded", media_type="audio/flac")
    target = model.content_key(team, sha256(b"uploaded"))
    blob = store.copy(staged, target)
    assert blob == model.Blob(target, sha256(b"uploaded"), 8, "audio/flac")
    store.delete(staged)
    assert store.get_bytes(target) == b"uploaded"


def test_deleting_twice_is_no_error(store: ArtifactStore, team: str) -> None:
    key = model.work_key(team, "job-1", 0, "gone")
    store.put_bytes(key, b"x")
    store.delete(key)
    store.delete(key)
    assert not store.exists(key)


def test_a_prefix_is_listed_in_order_and_deleted_alone(store: ArtifactStore, team: str) -> None:
    mine = [model.work_key(team, "job-1", attempt, f"f{number}") for attempt in (0, 1) for number in (0, 1)]
    neighbour = model.work_key(team, "job-10", 0, "f0")
    for key in [*reversed(mine), neighbour]:
        store.put_bytes(key, key.encode())
    listed = list(store.list_prefix(model.work_prefix(team, "job-1")))
    assert [each.key for each in listed] == mine
    assert [each.size_bytes for each in listed] == [len(key) for key in mine]
    assert all(each.modified_at.tzinfo is not None for each in listed)
    assert store.delete_prefix(model.work_prefix(team, "job-1")) == 4
    assert [each.key for each in store.list_prefix(model.team_prefix(team))] == [neighbour]
    assert store.delete_prefix(model.work_prefix(team, "job-1")) == 0


def test_everybody_cannot_be_deleted_at_once(store: ArtifactStore, team: str) -> None:
    key = model.work_key(team, "job-1", 0, "kept")
    store.put_bytes(key, b"x")
    for prefix in ("", "teams/", f"teams/{team}", "bundles/"):
        assert reason_of(lambda prefix=prefix: store.delete_prefix(prefix)) is Reason.INVALID_ARGUMENT
    assert store.exists(key)


def test_many_put_the_same_content_at_once(store: ArtifactStore, team: str) -> None:
    data = b"popular" * 50_000
    key = model.content_key(team, sha256(data))
    with ThreadPoolExecutor(8) as threads:
        blobs = list(threads.map(lambda _: store.put_bytes(key, data), range(8)))
    assert {blob.sha256 for blob in blobs} == {sha256(data)}
    assert store.get_bytes(key) == data


def test_presigned_addresses_differ_by_key_and_use(store: ArtifactStore, team: str) -> None:
    one, two = model.staging_key(team, "up-1", 0), model.staging_key(team, "up-1", 5)
    urls = {store.presign_get(one, 60), store.presign_get(two, 60), store.presign_put(one, 60)}
    assert len(urls) == 3


def test_a_bucket_can_be_ensured_again(store: ArtifactStore) -> None:
    store.ensure_bucket()
    store.ensure_bucket()
