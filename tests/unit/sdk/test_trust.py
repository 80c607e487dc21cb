"""Teams' licences and provenance, from Python and from the command line."""

from __future__ import annotations

from pathlib import Path

from tests.unit.sdk.conftest import Face
from tests.unit.sdk.server import TEAM, Double
from tests.unit.sdk.test_cli import Run, parsed, run  # noqa: F401 - a fixture
from voxfleet.v1 import trust_pb2

MADE = trust_pb2.VerifyProvenanceResponse(
    generated=True,
    confidence=0.9999,
    job=f"{TEAM}/jobs/j-0001",
    evidence=[
        trust_pb2.PROVENANCE_EVIDENCE_RECORD,
        trust_pb2.PROVENANCE_EVIDENCE_WATERMARK,
        trust_pb2.PROVENANCE_EVIDENCE_TAGS,
    ],
)


async def test_a_team_is_changed_in_what_is_given_alone(face: Face, double: Double) -> None:
    await face.call(face.client.trust.update_team, "blue", allowed_licences=["MIT"])
    await face.call(face.client.trust.update_team, "teams/blue", allowed_licences=[], display_name="Blue")
    first, second = double.asked("UpdateTeam")
    assert (first.team.name, list(first.team.allowed_licences)) == ("teams/blue", ["MIT"])
    assert list(first.update_mask.paths) == ["allowed_licences"]
    assert (second.team.name, list(second.team.allowed_licences)) == ("teams/blue", [])
    assert list(second.update_mask.paths) == ["display_name", "allowed_licences"]


async def test_an_audio_is_verified_by_its_id(face: Face, double: Double) -> None:
    double.verified = MADE
    assert await face.call(face.client.trust.verify_provenance, "a-0001") == MADE
    assert double.asked("VerifyProvenance")[0].audio == f"{TEAM}/audios/a-0001"


def test_licences_are_set_and_lifted_by_command(run: Run, double: Double) -> None:  # noqa: F811
    done = run("team", "update", "blue", "--allow-licence", "MIT", "--allow-licence", "CC-BY-4.0")
    assert done.exit_code == 0
    assert "CC-BY-4.0" in done.stdout
    assert run("team", "update", "blue", "--allow-any-licence", "--name", "Blue", "--json").exit_code == 0
    first, second = double.asked("UpdateTeam")
    assert list(first.team.allowed_licences) == ["MIT", "CC-BY-4.0"]
    assert list(first.update_mask.paths) == ["allowed_licences"]
    assert (second.team.display_name, list(second.team.allowed_licences)) == ("Blue", [])
    assert run("team", "update", "blue").exit_code == 2
    assert run("team", "update", "blue", "--allow-any-licence", "--allow-licence", "MIT").exit_code == 2
    assert len(double.asked("UpdateTeam")) == 2


def test_verify_says_what_says_so_and_uploads_a_file_first(
    run: Run,  # noqa: F811
    double: Double,
    tmp_path: Path,
) -> None:
    assert "not known to be generated" in run("audio", "verify", "a-0009").stdout
    double.verified = MADE
    (tmp_path / "found.mp3").write_bytes(b"bytes")
    done = run("audio", "verify", "found.mp3")
    assert done.exit_code == 0
    assert "generated (0.9999), by the record, the mark in its sound, the tags of its file" in done.stdout
    assert f"made by {TEAM}/jobs/j-0001" in done.stdout
    assert double.asked("VerifyProvenance")[1].audio == f"{TEAM}/audios/a-0001"
    shown = parsed(run("audio", "verify", "a-0001", "--json"))
    assert (shown["audio"], shown["generated"]) == ("a-0001", True)
    assert shown["evidence"][1] == "PROVENANCE_EVIDENCE_WATERMARK"
    assert run("audio", "verify", "no-such-file.wav").exit_code == 2
