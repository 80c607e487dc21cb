from __future__ import annotations

import io
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.bundles.cache import BundleCache, open_from
from services.engines.bundles.manifest import verify, write_manifest

from .conftest import manifest_of

CONTENTS = {"model.bin": bytes(range(256)) * 4000, "deep/config.yaml": b"a: 1\n"}


class Source:
    def __init__(self, contents):
        self.contents = dict(contents)
        self.opened: list[str] = []

    def __call__(self, path):
        self.opened.append(path)
        return io.BytesIO(self.contents[path])


def test_each_file_is_read_once_and_then_never_again(tmp_path):
    manifest, source = manifest_of(CONTENTS), Source(CONTENTS)
    directory = BundleCache(tmp_path).ensure(manifest, source)
    verify(directory, manifest)
    assert BundleCache(tmp_path).ensure(manifest, source) == directory
    assert sorted(source.opened) == sorted(CONTENTS)


def test_a_wrong_copy_never_appears(tmp_path):
    manifest = manifest_of(CONTENTS)
    cache = BundleCache(tmp_path)
    with pytest.raises(VoxfleetError) as caught:
        cache.ensure(manifest, Source(CONTENTS | {"model.bin": b"x" * len(CONTENTS["model.bin"])}))
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert not cache.holds(manifest)
    assert not cache.path(manifest).exists()


def test_what_arrived_before_a_failure_is_not_fetched_again(tmp_path):
    manifest, cache = manifest_of(CONTENTS), BundleCache(tmp_path)
    broken = Source({"model.bin": CONTENTS["model.bin"]})
    with pytest.raises(KeyError):
        cache.ensure(manifest, broken)
    whole = Source(CONTENTS)
    cache.ensure(manifest, whole)
    assert whole.opened == ["deep/config.yaml"]


def test_a_file_cut_short_is_fetched_again(tmp_path):
    manifest, cache, source = manifest_of(CONTENTS), BundleCache(tmp_path), Source(CONTENTS)
    directory = cache.ensure(manifest, source)
    (directory / "model.bin").write_bytes(b"short")
    source.opened.clear()
    verify(cache.ensure(manifest, source), manifest)
    assert source.opened == ["model.bin"]


def test_recheck_finds_a_flipped_bit(tmp_path):
    manifest, cache, source = manifest_of(CONTENTS), BundleCache(tmp_path), Source(CONTENTS)
    directory = cache.ensure(manifest, source)
    spoilt = bytearray(CONTENTS["model.bin"])
    spoilt[77] ^= 1
    (directory / "model.bin").write_bytes(spoilt)
    source.opened.clear()
    verify(cache.ensure(manifest, source, recheck=True), manifest)
    assert source.opened == ["model.bin"]


def test_two_versions_of_a_bundle_lie_side_by_side(tmp_path):
    cache = BundleCache(tmp_path)
    one, two = manifest_of(CONTENTS), manifest_of(CONTENTS | {"model.bin": b"newer"})
    first = cache.ensure(one, Source(CONTENTS))
    second = cache.ensure(two, Source(CONTENTS | {"model.bin": b"newer"}))
    assert first != second
    assert cache.holds(one)
    assert cache.holds(two)


def test_threads_that_want_one_bundle_fetch_it_once(tmp_path):
    manifest, source = manifest_of(CONTENTS), Source(CONTENTS)
    with ThreadPoolExecutor(8) as pool:
        found = set(pool.map(lambda _: BundleCache(tmp_path).ensure(manifest, source), range(16)))
    assert len(found) == 1
    assert sorted(source.opened) == sorted(CONTENTS)


CHILD = """
import sys
from pathlib import Path
from services.engines.bundles.cache import BundleCache, open_from
from services.engines.bundles.manifest import read_manifest
source, root = Path(sys.argv[1]), Path(sys.argv[2])
def fetch(path):
    with open(root / "log", "a") as log:
        log.write(path + "\\n")
    return open_from(source)(path)
print(BundleCache(root).ensure(read_manifest(source), fetch))
"""


def test_processes_that_want_one_bundle_fetch_it_once(tmp_path):
    source, root = tmp_path / "source", tmp_path / "cache"
    root.mkdir()
    for path, data in CONTENTS.items():
        (source / path).parent.mkdir(parents=True, exist_ok=True)
        (source / path).write_bytes(data)
    manifest = manifest_of(CONTENTS)
    write_manifest(source, manifest)
    checkout = Path(__file__).parents[4]
    command = [sys.executable, "-c", CHILD, str(source), str(root)]
    children = [subprocess.Popen(command, cwd=checkout, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    found = {child.communicate(timeout=60)[0].strip() for child in children}
    assert [child.returncode for child in children] == [0, 0, 0]
    assert found == {str(BundleCache(root).path(manifest))}
    assert sorted((root / "log").read_text().split()) == sorted(CONTENTS)
    verify(Path(found.pop()), manifest)


def test_open_from_reads_another_directory(tmp_path):
    (tmp_path / "a").write_bytes(b"1")
    with open_from(tmp_path)("a") as file:
        assert file.read() == b"1"
