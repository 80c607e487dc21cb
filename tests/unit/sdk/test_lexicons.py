"""Lexicons in the client and the command: what is asked, what is read of files, what is shown."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf import empty_pb2
from typer.testing import CliRunner

from services.common.errors import Reason, not_found
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.server import TEAM, Double, job
from voxfleet.cli.commands.lexicon_files import parse_entries
from voxfleet.cli.main import app
from voxfleet.client.errors import InvalidArgument, NotFound
from voxfleet.v1 import audio_pb2, job_pb2, lexicon_pb2, synthesis_pb2

ENTRIES = {"Voxfleet": "vox fleet", "Siân": "Sharn"}


class LexiconDouble(Double):
    """A gateway that has lexicons."""

    def CreateLexicon(self, request: Any, context: Any) -> lexicon_pb2.Lexicon:
        self.note("CreateLexicon", request, context)
        made = lexicon_pb2.Lexicon(name=f"{request.parent}/lexicons/{request.lexicon_id or 'made-1'}")
        made.MergeFrom(request.lexicon)
        return made

    def GetLexicon(self, request: Any, context: Any) -> lexicon_pb2.Lexicon:
        self.note("GetLexicon", request, context)
        entries = [lexicon_pb2.LexiconEntry(grapheme=word, alias=said) for word, said in ENTRIES.items()]
        return lexicon_pb2.Lexicon(name=request.name, display_name="Names", entries=entries)

    def ListLexicons(self, request: Any, context: Any) -> lexicon_pb2.ListLexiconsResponse:
        self.note("ListLexicons", request, context)
        page = int(request.page_token or 0)
        found = lexicon_pb2.Lexicon(name=f"{request.parent}/lexicons/l-{page}", display_name=f"No {page}")
        return lexicon_pb2.ListLexiconsResponse(lexicons=[found], next_page_token="1" if page == 0 else "")

    def UpdateLexicon(self, request: Any, context: Any) -> lexicon_pb2.Lexicon:
        self.note("UpdateLexicon", request, context)
        return request.lexicon

    def DeleteLexicon(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.note("DeleteLexicon", request, context)
        return empty_pb2.Empty()


@pytest.fixture
def double() -> Double:
    return LexiconDouble()


@pytest.fixture
def run(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VOXFLEET_ENDPOINT", endpoint)
    monkeypatch.setenv("VOXFLEET_TOKEN", "vf-test")
    monkeypatch.setenv("VOXFLEET_TEAM", "acme")
    runner = CliRunner()
    return lambda *words, **more: runner.invoke(app, list(words), catch_exceptions=False, **more)


def pairs(lexicon: lexicon_pb2.Lexicon) -> dict[str, str]:
    return {entry.grapheme: entry.alias for entry in lexicon.entries}


async def test_made_listed_changed_deleted(face: Face, double: Double) -> None:
    lexicons = face.client.lexicons
    made = await face.call(lexicons.create, ENTRIES, lexicon_id="names", display_name="Names", language="en")
    assert (made.name, pairs(made)) == (f"{TEAM}/lexicons/names", ENTRIES)
    (asked,) = double.asked("CreateLexicon")
    assert (asked.parent, asked.lexicon_id, asked.lexicon.language) == (TEAM, "names", "en")
    assert asked.request_id
    assert pairs(await face.call(lexicons.get, "names")) == ENTRIES
    found = await face.collect(lexicons.list)
    assert [each.name for each in found] == [f"{TEAM}/lexicons/l-0", f"{TEAM}/lexicons/l-1"]

    await face.call(lexicons.update, "names", display_name="People")
    await face.call(lexicons.update, "names", entries={})
    await face.call(lexicons.update, "names", entries={"a": "b"}, display_name="")
    asked = double.asked("UpdateLexicon")
    assert [list(each.update_mask.paths) for each in asked] == [
        ["display_name"],
        ["entries"],
        ["display_name", "entries"],
    ]
    assert (asked[0].lexicon.display_name, pairs(asked[2].lexicon)) == ("People", {"a": "b"})
    await face.call(lexicons.delete, "names")
    assert double.asked("DeleteLexicon")[0].name == f"{TEAM}/lexicons/names"


async def test_a_create_is_repeated_under_one_request_id(face: Face, double: Double) -> None:
    double.failures["CreateLexicon"].append(grpc.StatusCode.UNAVAILABLE)
    await face.call(face.client.lexicons.create, ENTRIES)
    assert len({request.request_id for request in double.asked("CreateLexicon")}) == 1
    assert len(double.asked("CreateLexicon")) == 2
    double.failures["GetLexicon"].append(not_found(Reason.LEXICON_NOT_FOUND, f"{TEAM}/lexicons/none"))
    with pytest.raises(NotFound) as caught:
        await face.call(face.client.lexicons.get, "none")
    assert caught.value.reason == "LEXICON_NOT_FOUND"


async def test_bare_ids_of_lexicons_become_names_wherever_something_is_spoken(
    face: Face, double: Double
) -> None:
    double.speech = [
        synthesis_pb2.SynthesizeResponse(header=synthesis_pb2.SynthesisHeader(rate_hz=24000, chunks=1)),
        synthesis_pb2.SynthesizeResponse(pcm=b"\0\0"),
        synthesis_pb2.SynthesizeResponse(
            summary=synthesis_pb2.SynthesisSummary(provenance=audio_pb2.Provenance(seed=7))
        ),
    ]
    parameters = synthesis_pb2.SynthesisParameters(lexicons=["names", f"{TEAM}/lexicons/places"])
    full = [f"{TEAM}/lexicons/names", f"{TEAM}/lexicons/places"]
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(job_pb2.JOB_STATE_QUEUED)
    synthesis = face.client.synthesis
    await face.call(synthesis.say, "Hello.", "v-anna", parameters=parameters)
    assert list(double.asked("Synthesize")[0].parameters.lexicons) == full
    line = synthesis_pb2.BatchItem(text="Hello.", parameters=parameters)
    await face.call(synthesis.batch, [line, "Hi."], "v-anna", parameters=parameters)
    (batch,) = double.asked("BatchSynthesize")
    assert list(batch.parameters.lexicons) == list(batch.items[0].parameters.lexicons) == full
    assert not batch.items[1].HasField("parameters")
    await face.call(
        synthesis.convert,
        "a-0001",
        "v-anna",
        engine="f5",
        parameters=synthesis_pb2.ConversionParameters(speaking=parameters),
    )
    assert list(double.asked("ConvertAudio")[0].parameters.speaking.lexicons) == full
    # What the caller gave is left as it was.
    assert parameters.lexicons[0] == "names"


@pytest.mark.parametrize(
    "text",
    [
        "Voxfleet,vox fleet\nSiân,Sharn\n",
        "grapheme,alias\r\nVoxfleet,vox fleet\r\n\r\nSiân, Sharn\r\n",
        'word,alias\n"Voxfleet","vox fleet"\nSiân,Sharn',
        "Voxfleet\tvox fleet\nSiân\tSharn\n",
        '{"Voxfleet": "vox fleet", "Siân": "Sharn"}',
        '[{"grapheme": "Voxfleet", "alias": "vox fleet"}, {"grapheme": "Siân", "alias": "Sharn"}]',
        '[["Voxfleet", "vox fleet"], ["Siân", "Sharn"]]',
        json.dumps({"name": "x", "entries": [{"grapheme": g, "alias": a} for g, a in ENTRIES.items()]}),
    ],
)
def test_files_are_read(text: str) -> None:
    assert list(parse_entries(text).items()) == list(ENTRIES.items())


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no words"),
        ("grapheme,alias\n", "no words"),
        ("a,b\nc\n", "line 2 has 1 columns"),
        ("a,b,c\n", "line 1 has 3 columns"),
        ('a,"b\n', "line"),
        ("a,b\na,c\n", "line 2: 'a' is there already"),
        ('{"a": "b", "a": "c"}', "'a' is there already"),
        ('{"a": 5}', "entry 0 is neither"),
        ('[{"word": "a"}]', "entry 0 is neither"),
        ('{"a": ', "Expecting value"),
    ],
)
def test_a_bad_file_is_told_where(text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match="cannot read the lexicon") as caught:
        parse_entries(text)
    assert words in str(caught.value)


def test_the_command_makes_shows_lists_updates_and_deletes(run: Any, double: Double, tmp_path: Path) -> None:
    file = tmp_path / "names.csv"
    file.write_text("﻿Voxfleet,vox fleet\nSiân,Sharn\n", encoding="utf-8")
    made = run("lexicon", "create", str(file), "--id", "names", "--name", "Names", "--json")
    assert made.exit_code == 0, made.stderr
    assert json.loads(made.stdout)["name"] == f"{TEAM}/lexicons/names"
    assert pairs(double.asked("CreateLexicon")[0].lexicon) == ENTRIES
    shown = run("lexicon", "show", "names", "--json").stdout
    assert parse_entries(shown) == ENTRIES
    assert "Voxfleet" in run("lexicon", "show", "names").stdout
    heading, first, _ = (line.split("\t") for line in run("lexicon", "list").stdout.splitlines())
    assert (heading[:3], first[:2]) == (["ID", "NAME", "LANGUAGE"], ["l-0", "No 0"])
    assert len(json.loads(run("lexicon", "list", "--json").stdout)["lexicons"]) == 2

    assert run("lexicon", "update", "names", "-", input=shown).exit_code == 0
    assert pairs(double.asked("UpdateLexicon")[0].lexicon) == ENTRIES
    assert run("lexicon", "update", "names", "--name", "People").exit_code == 0
    assert list(double.asked("UpdateLexicon")[1].update_mask.paths) == ["display_name"]
    assert json.loads(run("lexicon", "delete", "names", "--json").stdout) == {"deleted": "names"}
    double.failures["DeleteLexicon"].append(not_found(Reason.LEXICON_NOT_FOUND, f"{TEAM}/lexicons/names"))
    gone = run("lexicon", "delete", "names", "--json")
    assert (gone.exit_code, json.loads(gone.stderr)["error"]["reason"]) == (3, "LEXICON_NOT_FOUND")
    file.write_text("a,b,c")
    bad = run("lexicon", "create", str(file), "--json")
    assert (bad.exit_code, json.loads(bad.stderr)["error"]["reason"]) == (4, "INVALID_ARGUMENT")


def test_speaking_commands_name_lexicons(run: Any, double: Double, tmp_path: Path) -> None:
    lines = tmp_path / "lines.jsonl"
    lines.write_text('{"text": "Hello."}\n')
    double.jobs[f"{TEAM}/jobs/j-0001"] = job(job_pb2.JOB_STATE_QUEUED)
    words = ["--lexicon", "names", "--lexicon", "places", "--verbatim"]
    assert run("batch", str(lines), "--voice", "v-anna", *words, "--json").exit_code == 0
    (batch,) = double.asked("BatchSynthesize")
    assert list(batch.parameters.lexicons) == [f"{TEAM}/lexicons/names", f"{TEAM}/lexicons/places"]
    assert batch.parameters.verbatim


@pytest.mark.parametrize("words", ["create", "show", "list", "update", "delete"])
def test_every_command_has_help_and_json(run: Any, words: str) -> None:
    shown = run("lexicon", words, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout
