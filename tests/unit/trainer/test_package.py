"""A voice as one file."""

from __future__ import annotations

import zipfile

import pytest

from services.common.errors import Reason, VoxfleetError
from services.engines.rvc.package import pack_voice, unpack_voice


@pytest.fixture
def voice(tmp_path):
    folder = tmp_path / "voice"
    folder.mkdir()
    for name in ("voice.json", "model.safetensors", "index.faiss"):
        (folder / name).write_bytes(name.encode() * 100)
    return folder


def test_a_voice_comes_back_and_its_bytes_are_the_same_each_time(voice, tmp_path):
    first = pack_voice(voice, tmp_path / "a.zip")
    for path in voice.iterdir():
        path.touch()
    (voice / "notes.txt").write_text("not part of it")
    assert pack_voice(voice, tmp_path / "b.zip") == first
    unpack_voice(tmp_path / "a.zip", tmp_path / "back")
    assert {p.name: p.read_bytes() for p in (tmp_path / "back").iterdir()} == {
        name: name.encode() * 100 for name in ("voice.json", "model.safetensors", "index.faiss")
    }
    with zipfile.ZipFile(tmp_path / "a.zip") as package:
        assert {entry.compress_type for entry in package.infolist()} == {zipfile.ZIP_STORED}


def test_an_index_is_optional_weights_are_not(voice, tmp_path):
    (voice / "index.faiss").unlink()
    pack_voice(voice, tmp_path / "a.zip")
    unpack_voice(tmp_path / "a.zip", tmp_path / "back")
    assert not (tmp_path / "back" / "index.faiss").exists()
    (voice / "model.safetensors").unlink()
    with pytest.raises(VoxfleetError):
        pack_voice(voice, tmp_path / "b.zip")


@pytest.mark.parametrize("name", ["../outside", "/etc/passwd", "sub/voice.json", "pickle.pth"])
def test_other_names_are_refused_and_nothing_is_written(voice, tmp_path, name):
    pack_voice(voice, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip", "a") as package:
        package.writestr(name, b"x")
    with pytest.raises(VoxfleetError) as raised:
        unpack_voice(tmp_path / "a.zip", tmp_path / "in" / "back")
    assert raised.value.reason is Reason.MODEL_CORRUPT
    assert list((tmp_path / "in").iterdir()) == []


@pytest.mark.parametrize("damage", ["cut", "flip", "junk"])
def test_damage_is_noticed(voice, tmp_path, damage):
    pack_voice(voice, tmp_path / "a.zip")
    data = bytearray((tmp_path / "a.zip").read_bytes())
    at = data.index(b"model.safetensorsmodel") + 30
    data[at] ^= 0xFF
    changed = {"cut": bytes(data[: len(data) // 2]), "flip": bytes(data), "junk": b"hello"}[damage]
    (tmp_path / "a.zip").write_bytes(changed)
    with pytest.raises(VoxfleetError) as raised:
        unpack_voice(tmp_path / "a.zip", tmp_path / "back")
    assert raised.value.reason is Reason.MODEL_CORRUPT
    assert not (tmp_path / "back").exists()
