"""The recorded speech that every other test leans on is what its manifest says, and good enough."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from services.audio.grade import assess, check_file, check_training_set
from services.audio.measure.whole import measure
from services.audio.model import Grade, Purpose
from services.common.media.decode import decode

ROOT = Path(__file__).resolve().parents[3]
SPEECH = ROOT / "tests" / "fixtures" / "speech"
ENTRIES = json.loads((SPEECH / "manifest.json").read_text(encoding="utf-8"))["files"]
IDS = [entry["file"] for entry in ENTRIES]


def of_kind(kind: str) -> list[dict]:
    return [entry for entry in ENTRIES if entry["kind"] == kind]


@pytest.mark.parametrize("entry", ENTRIES, ids=IDS)
def test_file_is_what_the_manifest_says(entry: dict) -> None:
    data = (SPEECH / entry["file"]).read_bytes()
    assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    audio = decode(data, mono=False)
    assert (audio.rate_hz, audio.info.channels, audio.info.codec) == (16_000, 1, "flac")
    assert audio.duration_s == pytest.approx(entry["duration_s"], abs=1e-4)
    assert entry["licence"] in audio.info.tags["copyright"]
    assert (entry["text"] is not None) is (entry["language"] == "en")
    assert assess(measure(audio)).grade in (Grade.A_PLUS, Grade.A)


def test_manifest_and_folder_agree_and_stay_small() -> None:
    files = sorted(path.name for path in SPEECH.glob("*.flac"))
    assert files == sorted(IDS)
    assert sum(path.stat().st_size for path in SPEECH.iterdir()) < 3.5 * 2**20


def test_roles_are_filled_as_the_main_job_needs() -> None:
    (target,), (held_out,), (reference,) = of_kind("target"), of_kind("heldout"), of_kind("reference")
    assert 55 < target["duration_s"] < 65
    assert held_out["duration_s"] > 28
    assert target["speaker"] == held_out["speaker"] == reference["speaker"]
    check_file(Purpose.REFERENCE, size_bytes=1, duration_s=reference["duration_s"])
    # The F5 engine wants its reference under 12 s.
    assert reference["duration_s"] < 12
    assert all(source["speaker"] != target["speaker"] for source in of_kind("source"))
    assert all(8 <= source["duration_s"] <= 10 for source in of_kind("source"))
    prompts = {
        kind: {p["name"] for e in of_kind(kind) if e["language"] == "en" for p in e["prompts"]}
        for kind in ("target", "heldout", "reference", "clip")
    }
    assert not prompts["target"] & (prompts["heldout"] | prompts["reference"] | prompts["clip"])
    assert not prompts["heldout"] & (prompts["reference"] | prompts["clip"])


def test_target_can_be_trained_on() -> None:
    check_training_set([measure(decode(SPEECH / "target_en.flac", mono=False))])


def test_demo_lines_are_twenty_with_one_bad() -> None:
    path = ROOT / "demo" / "fixtures" / "lines.jsonl"
    lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len({line["id"] for line in lines}) == len(lines) == 20
    assert all(line.keys() == {"id", "text"} for line in lines)
    assert sum(not line["text"].strip() for line in lines) == 1
