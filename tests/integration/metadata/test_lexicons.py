"""Lexicons, on real Postgres and in memory; and what a submit takes of them, on real Postgres."""

import asyncio

import psycopg
import pytest

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.jobs import tasks
from services.metadata.adapters.memory import MemoryStore
from services.metadata.app.lexicons import Lexicons
from services.metadata.app.resolving import Line, Respeaking
from services.metadata.model.jobs import JobState
from services.metadata.model.lexicons import Lexicon, LexiconChange
from services.metadata.model.page import Page
from services.metadata.servicers.lexicons import LexiconServicer
from tests.integration.metadata.test_ledger import add_audio, make_voice, request
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import lexicon_pb2


def words(*pairs: tuple[str, str]) -> tuple[tasks.Pronunciation, ...]:
    return tuple(tasks.Pronunciation(grapheme=grapheme, alias=alias) for grapheme, alias in pairs)


def lexicon(lexicon_id: str = "names", *pairs: tuple[str, str], team: str = "alpha") -> Lexicon:
    return Lexicon(team, lexicon_id, "Names", "en", words(*pairs or [("Voxfleet", "vox fleet")]))


async def make(lexicons: Lexicons, made: Lexicon, request_id: str = "", fingerprint: str = "f") -> Lexicon:
    return await lexicons.create(made, request_id=request_id, fingerprint=fingerprint)


@pytest.fixture(params=["postgres", "memory"])
def lexicons(request) -> Lexicons:
    if request.param == "memory":
        return Lexicons(MemoryStore())
    return Lexicons(request.getfixturevalue("metadata").store)


async def refused(call, reason: Reason, kind: Kind | None = None) -> VoxfleetError:
    with pytest.raises(VoxfleetError) as caught:
        await call
    assert caught.value.reason is reason
    assert kind is None or caught.value.kind is kind
    return caught.value


async def test_made_read_listed_changed_deleted(lexicons):
    made = await make(lexicons, lexicon("names", ("b", "bee"), ("a", "ay")))
    assert (made.name, made.display_name, made.language) == ("teams/alpha/lexicons/names", "Names", "en")
    assert made.entries == words(("b", "bee"), ("a", "ay"))
    assert made.created_at is not None
    assert await lexicons.get("alpha", "names") == made
    (listed,) = await lexicons.page("alpha", Page(10))
    assert (listed.id, listed.entries, listed.updated_at) == ("names", (), made.updated_at)

    renamed = await lexicons.update("alpha", "names", LexiconChange(display_name="People"))
    assert (renamed.display_name, renamed.entries) == ("People", made.entries)
    changed = await lexicons.update("alpha", "names", LexiconChange(entries=words(("c", "see"))))
    assert (changed.display_name, changed.entries) == ("People", words(("c", "see")))
    assert changed.updated_at >= changed.created_at == made.created_at
    assert (await lexicons.update("alpha", "names", LexiconChange(entries=()))).entries == ()

    await lexicons.delete("alpha", "names")
    for call in (
        lexicons.get("alpha", "names"),
        lexicons.delete("alpha", "names"),
        lexicons.update("alpha", "names", LexiconChange(display_name="x")),
        lexicons.pronunciations("alpha", ["teams/alpha/lexicons/names"], "a"),
    ):
        error = await refused(call, Reason.LEXICON_NOT_FOUND, Kind.NOT_FOUND)
        assert error.metadata["name"] == "teams/alpha/lexicons/names"


async def test_a_taken_id_is_refused_and_keeps_what_it_has(lexicons):
    await make(lexicons, lexicon("names", ("a", "ay")))
    error = await refused(
        make(lexicons, lexicon("names", ("b", "bee"))), Reason.LEXICON_EXISTS, Kind.CONFLICT
    )
    assert error.metadata["name"] == "teams/alpha/lexicons/names"
    assert (await lexicons.get("alpha", "names")).entries == words(("a", "ay"))


async def test_a_repeat_returns_the_first_answer(lexicons):
    first = await make(lexicons, lexicon("names"), "r-1")
    assert await make(lexicons, lexicon("names"), "r-1") == first
    # Without an id of the client's each call makes another, but for a repeat.
    assert await make(lexicons, lexicon("other-one"), "r-1") == first
    assert len(await lexicons.page("alpha", Page(10))) == 1
    await refused(make(lexicons, lexicon("names"), "r-1", "another"), Reason.REQUEST_ID_REUSED)
    # Another request for the same id is no repeat.
    await refused(make(lexicons, lexicon("names"), "r-2"), Reason.LEXICON_EXISTS)
    # What was refused has not used its request id up.
    assert (await make(lexicons, lexicon("second"), "r-2")).id == "second"


async def test_of_many_that_make_one_at_once_one_does(lexicons):
    tries = [make(lexicons, lexicon("names"), f"r-{n % 2}") for n in range(8)]
    results = await asyncio.gather(*tries, return_exceptions=True)
    made = [each for each in results if isinstance(each, Lexicon)]
    assert len(made) == 4
    assert len(set(made)) == 1
    assert {e.reason for e in results if isinstance(e, VoxfleetError)} == {Reason.LEXICON_EXISTS}


async def test_bad_entries_are_refused_with_each_field_and_leave_nothing(lexicons):
    bad = lexicon("names", ("good", "word"), ("", "x"), ("Good", "again"), ("x", "y" * 201))
    error = await refused(make(lexicons, bad, "r-1"), Reason.INVALID_ARGUMENT, Kind.INVALID)
    assert [violation.field for violation in error.violations] == [
        "lexicon.entries[1].grapheme",
        "lexicon.entries[2].grapheme",
        "lexicon.entries[3].alias",
    ]
    assert await lexicons.page("alpha", Page(10)) == []
    await make(lexicons, lexicon("names"))
    await refused(
        lexicons.update("alpha", "names", LexiconChange(entries=bad.entries)), Reason.INVALID_ARGUMENT
    )
    assert (await lexicons.get("alpha", "names")).entries == lexicon().entries


async def test_ten_thousand_words_are_kept_in_order(lexicons):
    pairs = [(f"word{n}", f"wörd {n}") for n in range(10_000)]
    await make(lexicons, lexicon("large", *pairs))
    assert [(e.grapheme, e.alias) for e in (await lexicons.get("alpha", "large")).entries] == pairs
    (needed,) = await lexicons.pronunciations("alpha", ["teams/alpha/lexicons/large"], "Say Word77, please.")
    assert needed.alias == "wörd 77"


async def test_another_teams_lexicon_does_not_exist(lexicons):
    await make(lexicons, lexicon("names", team="beta"))
    await refused(lexicons.get("alpha", "names"), Reason.LEXICON_NOT_FOUND)
    await refused(lexicons.delete("alpha", "names"), Reason.LEXICON_NOT_FOUND)
    name = "teams/beta/lexicons/names"
    await refused(lexicons.pronunciations("alpha", [name], "Voxfleet"), Reason.LEXICON_NOT_FOUND)
    assert await lexicons.page("alpha", Page(10)) == []
    assert (await make(lexicons, lexicon("names"))).team == "alpha"
    assert (await lexicons.get("beta", "names")).team == "beta"


async def test_the_first_lexicon_that_has_a_word_counts(lexicons):
    await make(lexicons, lexicon("first", ("api", "a pee eye")))
    await make(lexicons, lexicon("second", ("API", "app ee"), ("voice", "voyce")))
    names = ["teams/alpha/lexicons/first", "teams/alpha/lexicons/second"]
    found = await lexicons.pronunciations("alpha", names, "An API for a voice, and not an apiary.")
    assert found == words(("api", "a pee eye"), ("voice", "voyce"))
    found = await lexicons.pronunciations("alpha", names[::-1], "An API")
    assert found == words(("API", "app ee"))
    assert await lexicons.pronunciations("alpha", names, "Nothing of it.") == ()
    await refused(lexicons.pronunciations("alpha", names * 5, ""), Reason.INVALID_ARGUMENT)


async def test_pages_meet_without_gap_or_repeat(lexicons):
    for number in range(5):
        await make(lexicons, lexicon(f"lexicon-{number}"))
    first = await lexicons.page("alpha", Page(3))
    rest = await lexicons.page("alpha", Page(3, first[-1].id))
    assert [each.id for each in [*first, *rest]] == [f"lexicon-{number}" for number in range(5)]


async def test_row_level_security_stands_behind_the_code(metadata):
    lexicons = Lexicons(metadata.store)
    await make(lexicons, lexicon("names", team="beta"))
    with psycopg.connect(metadata.url) as connection:
        connection.execute("SELECT set_config('role', 'voxfleet_tenant', true)")
        connection.execute("SELECT set_config('voxfleet.team', 'alpha', true)")
        assert connection.execute("SELECT count(*) FROM lexicons").fetchone() == (0,)
        assert connection.execute("UPDATE lexicons SET display_name = 'x'").rowcount == 0
        assert connection.execute("DELETE FROM lexicons").rowcount == 0
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute("INSERT INTO lexicons (team, id) VALUES ('beta', 'another')")


async def test_the_servicer_speaks_the_api(metadata):
    servicer = LexiconServicer(Lexicons(metadata.store))
    wanted = lexicon_pb2.Lexicon(
        display_name="People",
        language="en",
        entries=[lexicon_pb2.LexiconEntry(grapheme="Siân", alias="Sharn")],
    )
    asked = lexicon_pb2.CreateLexiconRequest(
        parent="teams/alpha", lexicon_id="people", lexicon=wanted, request_id="r-1"
    )
    made = await servicer.CreateLexicon(asked, None)
    assert await servicer.CreateLexicon(asked, None) == made
    assert (made.name, made.entries[0].alias) == ("teams/alpha/lexicons/people", "Sharn")
    nameless = await servicer.CreateLexicon(
        lexicon_pb2.CreateLexiconRequest(parent="teams/alpha", lexicon={"display_name": "My Words"}), None
    )
    assert nameless.name.startswith("teams/alpha/lexicons/my-words-")
    assert await servicer.GetLexicon(lexicon_pb2.GetLexiconRequest(name=made.name), None) == made

    page = await servicer.ListLexicons(
        lexicon_pb2.ListLexiconsRequest(parent="teams/alpha", page_size=1), None
    )
    rest = await servicer.ListLexicons(
        lexicon_pb2.ListLexiconsRequest(parent="teams/alpha", page_size=5, page_token=page.next_page_token),
        None,
    )
    assert [each.name for each in [*page.lexicons, *rest.lexicons]] == sorted([made.name, nameless.name])
    assert not any(each.entries for each in [*page.lexicons, *rest.lexicons])
    assert rest.next_page_token == ""

    change = lexicon_pb2.UpdateLexiconRequest(
        lexicon={"name": made.name, "display_name": "Team"}, update_mask={"paths": ["display_name"]}
    )
    changed = await servicer.UpdateLexicon(change, None)
    assert (changed.display_name, list(changed.entries)) == ("Team", list(made.entries))
    change.update_mask.paths.append("language")
    await refused(servicer.UpdateLexicon(change, None), Reason.INVALID_ARGUMENT)

    found = await servicer.ResolvePronunciations(
        catalog_pb2.ResolvePronunciationsRequest(
            parent="teams/alpha", lexicons=[made.name], text="Here is Siân."
        ),
        None,
    )
    assert [(e.grapheme, e.alias) for e in found.pronunciations] == [("Siân", "Sharn")]
    await servicer.DeleteLexicon(lexicon_pb2.DeleteLexiconRequest(name=made.name), None)
    await refused(
        servicer.GetLexicon(lexicon_pb2.GetLexiconRequest(name=made.name), None), Reason.LEXICON_NOT_FOUND
    )


async def tasks_of(metadata, batch) -> list[dict]:
    with psycopg.connect(metadata.url) as connection:
        query = "SELECT task FROM jobs WHERE parent_id = %s ORDER BY item_index"
        return [row[0] for row in connection.execute(query, (batch.id,)).fetchall()]


async def test_each_line_of_a_batch_takes_with_it_what_it_needs_of_the_lexicons(metadata):
    lexicons = Lexicons(metadata.store)
    await make(lexicons, lexicon("names", ("Voxfleet", "vox fleet"), ("Siân", "Sharn")))
    voice = await make_voice(metadata)
    how, names = tasks.SpeakingParameters(verbatim=True), ("teams/alpha/lexicons/names",)
    lines = [
        Line("a", "Voxfleet speaks.", voice, how, lexicons=names),
        Line("b", "Nobody speaks.", voice, how, lexicons=names),
        Line("c", "Voxfleet speaks.", voice, how),
        Line("d", "Voxfleet.", voice, how, lexicons=("teams/alpha/lexicons/none",)),
        Line("e", "Voxfleet.", voice, how, lexicons=("teams/beta/lexicons/names",)),
    ]
    batch = await metadata.submit.batch(request(), lines, tasks.Output())
    stored = await tasks_of(metadata, batch)
    said = [{"grapheme": "Voxfleet", "alias": "vox fleet"}]
    assert [task.get("pronunciations") for task in stored[:3]] == [said, [], []]
    task = tasks.SpeakTask.model_validate(stored[0])
    assert (task.parameters.verbatim, task.pronunciations) == (True, words(("Voxfleet", "vox fleet")))
    with psycopg.connect(metadata.url) as connection:
        query = "SELECT item_id, error->>'reason' FROM jobs WHERE parent_id = %s AND error IS NOT NULL"
        errors = dict(connection.execute(query, (batch.id,)).fetchall())
    assert errors == {"d": "LEXICON_NOT_FOUND", "e": "LEXICON_NOT_FOUND"}
    # What was submitted keeps what it was to say.
    await lexicons.delete("alpha", "names")
    assert (await tasks_of(metadata, batch))[0]["pronunciations"] == said


async def test_a_batch_whose_every_line_names_a_lexicon_that_is_not_there_is_refused(metadata):
    voice = await make_voice(metadata)
    lines = [
        Line(str(n), "Hello.", voice, tasks.SpeakingParameters(), lexicons=("teams/alpha/lexicons/none",))
        for n in range(3)
    ]
    await refused(metadata.submit.batch(request(), lines, tasks.Output()), Reason.LEXICON_NOT_FOUND)
    with psycopg.connect(metadata.url) as connection:
        assert connection.execute("SELECT count(*) FROM jobs").fetchone() == (0,)


async def test_a_recording_that_is_spoken_again_takes_the_lexicons_whole(metadata):
    lexicons = Lexicons(metadata.store)
    await make(lexicons, lexicon("names", ("Voxfleet", "vox fleet"), ("Siân", "Sharn")))
    voice, audio = await make_voice(metadata), await add_audio(metadata)
    how = Respeaking(tasks.SpeakingParameters(), "", ("teams/alpha/lexicons/names",))
    job = await metadata.submit.convert(request(), [audio], voice, how, tasks.Output())
    assert job.state is JobState.QUEUED
    assert [entry["alias"] for entry in job.task["pronunciations"]] == ["vox fleet", "Sharn"]
    await make(lexicons, lexicon("large", *((f"w{n}", "x") for n in range(10_000))))
    how = Respeaking(tasks.SpeakingParameters(), "", ("teams/alpha/lexicons/large",))
    error = await refused(
        metadata.submit.convert(request(), [audio] * 21, voice, how, tasks.Output()), Reason.INVALID_ARGUMENT
    )
    assert error.violations[0].field == "parameters.speaking.lexicons"
