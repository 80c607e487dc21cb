from __future__ import annotations

import hashlib
import socket

import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.engines.bundles.catalogue import F5_SMALL_RANDOM
from services.engines.bundles.manifest import read_manifest, verify
from services.engines.bundles.pull import Hub, pull

from .conftest import manifest_of

BIG = bytes(range(251)) * 5000  # several reads of the downloader
CONTENTS = {"model.bin": BIG, "deep/config.yaml": b"a: 1\n"}


@pytest.fixture(autouse=True)
def _no_proxy(monkeypatch):
    monkeypatch.setenv("no_proxy", "127.0.0.1")


@pytest.fixture
def pauses():
    return []


@pytest.fixture
def hub(fake_hub, pauses):
    fake_hub.contents = dict(CONTENTS)
    fake_hub.large = {"model.bin"}
    return Hub(url=fake_hub.url, timeout_s=5, attempts=3, backoff_s=1.0, sleep=pauses.append)


def test_a_bundle_arrives_whole_with_its_manifest(fake_hub, hub, tmp_path):
    seen = []
    manifest = pull(manifest_of(CONTENTS), tmp_path, hub=hub, progress=lambda *args: seen.append(args))
    verify(tmp_path, read_manifest(tmp_path))
    assert read_manifest(tmp_path) == manifest
    assert seen[-1][0] == "deep/config.yaml"
    big = [(done, total) for path, done, total in seen if path == "model.bin"]
    assert big[-1] == (len(BIG), len(BIG))
    assert [done for done, _ in big] == sorted(done for done, _ in big)
    # No checksum was wanting, so nothing was asked beforehand.
    assert {method for method, _, _ in fake_hub.requests} == {"GET"}


def test_a_cut_connection_goes_on_where_it_stopped(fake_hub, hub, pauses, tmp_path):
    fake_hub.cut_after["model.bin"] = [400_000, 500_000]
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    verify(tmp_path, manifest_of(CONTENTS))
    assert fake_hub.ranges_of("/cdn/rev1/model.bin") == [None, "bytes=400000-", "bytes=900000-"]
    assert fake_hub.sent_bytes == len(BIG) + 5
    assert len(pauses) == 2


def test_a_later_pull_goes_on_with_what_an_earlier_one_left(fake_hub, hub, tmp_path):
    (tmp_path / "model.bin.part").write_bytes(BIG[:1_000_000])
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    assert fake_hub.sent_bytes == len(BIG) - 1_000_000 + 5
    fake_hub.requests.clear()
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    assert fake_hub.requests == []


def test_a_server_without_ranges_starts_over(fake_hub, hub, tmp_path):
    fake_hub.ignore_ranges = True
    fake_hub.cut_after["model.bin"] = [400_000]
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    verify(tmp_path, manifest_of(CONTENTS))


def test_a_stale_partial_file_is_dropped_and_fetched_anew(fake_hub, hub, tmp_path):
    (tmp_path / "model.bin.part").write_bytes(b"\0" * 600_000)
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    verify(tmp_path, manifest_of(CONTENTS))
    assert fake_hub.ranges_of("/cdn/rev1/model.bin") == ["bytes=600000-", None]


def test_a_partial_file_longer_than_the_whole_is_dropped(fake_hub, hub, tmp_path):
    (tmp_path / "model.bin.part").write_bytes(BIG + b"more")
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    verify(tmp_path, manifest_of(CONTENTS))


def test_wrong_bytes_are_refused_and_not_kept(fake_hub, hub, tmp_path):
    fake_hub.contents["model.bin"] = BIG[:-1] + b"?"
    with pytest.raises(VoxfleetError) as caught:
        pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert caught.value.metadata["expected"] == hashlib.sha256(BIG).hexdigest()
    assert not any(path.is_file() for path in tmp_path.rglob("model.bin*"))


def test_a_busy_hub_is_asked_again_with_growing_pauses(fake_hub, hub, pauses, tmp_path):
    fake_hub.statuses = [503, 429]
    pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    assert pauses == [1.0, 2.0]


def test_a_hub_that_stays_busy_is_unreachable(fake_hub, hub, tmp_path):
    fake_hub.statuses = [503] * 3
    with pytest.raises(VoxfleetError) as caught:
        pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    assert caught.value.reason is Reason.HUB_UNREACHABLE


def test_a_missing_file_is_said_at_once(fake_hub, hub, pauses, tmp_path):
    del fake_hub.contents["model.bin"]
    with pytest.raises(VoxfleetError) as caught:
        pull(manifest_of(CONTENTS), tmp_path, hub=hub)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
    assert caught.value.metadata["http_status"] == "404"
    assert pauses == []


def test_without_a_network_the_error_says_what_to_do(pauses, tmp_path):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
    hub = Hub(url=f"http://127.0.0.1:{port}", attempts=2, sleep=pauses.append)
    for stated in (True, False):
        with pytest.raises(VoxfleetError, match="voxfleet models import DIR") as caught:
            pull(manifest_of(CONTENTS, stated=stated), tmp_path, hub=hub)
        assert caught.value.reason is Reason.HUB_UNREACHABLE
        assert caught.value.kind is Kind.UNAVAILABLE
    assert len(pauses) == 2


def test_the_hub_states_the_checksums_that_the_catalogue_lacks(fake_hub, hub, tmp_path):
    manifest = pull(manifest_of(CONTENTS, stated=False), tmp_path, hub=hub)
    assert manifest.complete
    assert {file.checksum_source for file in manifest.files} == {"hub"}
    assert manifest.file("model.bin").sha256 == hashlib.sha256(BIG).hexdigest()
    assert manifest.digest == manifest_of(CONTENTS).digest


@pytest.mark.parametrize("path", ["model.bin", "deep/config.yaml"])
def test_bytes_that_differ_from_what_the_hub_states_are_refused(fake_hub, hub, tmp_path, path):
    class Turning(dict):
        """Other bytes once the headers have been read."""

        def get(self, name, default=None):
            data = CONTENTS.get(name, default)
            asked = [at for method, at, _ in fake_hub.requests if at.endswith(path)]
            return data[:-1] + b"?" if name == path and len(asked) > 1 else data

    fake_hub.contents = Turning(CONTENTS)
    with pytest.raises(VoxfleetError) as caught:
        pull(manifest_of(CONTENTS, stated=False), tmp_path, hub=hub)
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert caught.value.metadata["path"] == path


def test_a_bundle_without_addresses_is_not_pulled(hub, tmp_path):
    with pytest.raises(VoxfleetError) as caught:
        pull(F5_SMALL_RANDOM, tmp_path, hub=hub)
    assert caught.value.reason is Reason.INVALID_ARGUMENT


def test_a_mirror_stands_in_for_the_hub_only():
    hub = Hub(url="https://mirror.example/hf/")
    assert hub.address("https://huggingface.co/a/b") == "https://mirror.example/hf/a/b"
    assert hub.address("https://elsewhere.example/a") == "https://elsewhere.example/a"
