"""Lexicons: made, listed, changed, deleted; and what they say of a text."""

from __future__ import annotations

from collections.abc import Sequence

from services.common import limits, names
from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_found
from services.common.jobs.tasks import Pronunciation
from services.common.pronouncing import Pronouncer, faults
from services.metadata.model.lexicons import Lexicon, LexiconChange
from services.metadata.model.page import Page
from services.metadata.ports.store import Store, Transaction


class Lexicons:
    """The use cases of lexicons."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def create(self, lexicon: Lexicon, *, request_id: str, fingerprint: str) -> Lexicon:
        """Makes a lexicon. Errors: INVALID_ARGUMENT, LEXICON_EXISTS, REQUEST_ID_REUSED.

        A repeat of one that was deleted since: LEXICON_NOT_FOUND.
        """
        check_entries(lexicon.entries)
        team = lexicon.team
        async with self._store.tenant(team) as tx:
            # The client may choose the name, which then is the same in a repeat: what is remembered is not.
            made = f"{lexicon.name} {names.new_id()}"
            first = await tx.remember_request(team, request_id, "CreateLexicon", fingerprint, made)
            if first == made and not await tx.add_lexicon(lexicon):
                raise VoxfleetError(
                    Reason.LEXICON_EXISTS,
                    f"{lexicon.name} exists already: choose another lexicon_id, or update it",
                    kind=Kind.CONFLICT,
                    metadata={"name": lexicon.name},
                )
            return await _get(tx, team, names.parse(first.partition(" ")[0], "lexicons").id)

    async def get(self, team: str, lexicon_id: str) -> Lexicon:
        """A lexicon. Errors: LEXICON_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            return await _get(tx, team, lexicon_id)

    async def page(self, team: str, page: Page) -> list[Lexicon]:
        """A team's lexicons by id, without their entries."""
        async with self._store.tenant(team) as tx:
            return await tx.list_lexicons(team, page)

    async def update(self, team: str, lexicon_id: str, change: LexiconChange) -> Lexicon:
        """Changes what is given. Errors: INVALID_ARGUMENT, LEXICON_NOT_FOUND."""
        check_entries(change.entries or ())
        async with self._store.tenant(team) as tx:
            await tx.update_lexicon(team, lexicon_id, change)
            return await _get(tx, team, lexicon_id)

    async def delete(self, team: str, lexicon_id: str) -> None:
        """Deletes a lexicon; what was submitted with it keeps what it said. Errors: LEXICON_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            if not await tx.delete_lexicon(team, lexicon_id):
                raise not_found(Reason.LEXICON_NOT_FOUND, f"teams/{team}/lexicons/{lexicon_id}")

    async def pronunciations(
        self, team: str, lexicons: Sequence[str], text: str
    ) -> tuple[Pronunciation, ...]:
        """What some lexicons say of a text. Errors: INVALID_ARGUMENT, LEXICON_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            return (await pronouncer_of(tx, team, lexicons)).needed(text)


async def pronouncer_of(tx: Transaction, team: str, lexicons: Sequence[str]) -> Pronouncer:
    """Lexicons by name, the first that has a word first. Errors: INVALID_ARGUMENT, LEXICON_NOT_FOUND."""
    if len(lexicons) > limits.MAX_LEXICONS:
        raise invalid(
            Reason.INVALID_ARGUMENT,
            f"a text is spoken with at most {limits.MAX_LEXICONS} lexicons, not {len(lexicons)}",
            field="parameters.lexicons",
        )
    entries: list[Pronunciation] = []
    for number, lexicon in enumerate(lexicons):
        name = names.parse(lexicon, "lexicons", field=f"parameters.lexicons[{number}]")
        if name.team != team:
            raise not_found(Reason.LEXICON_NOT_FOUND, lexicon)
        entries.extend((await _get(tx, team, name.id)).entries)
    return Pronouncer(entries)


def check_entries(entries: Sequence[Pronunciation]) -> None:
    """Errors: INVALID_ARGUMENT, with each entry that is wrong, up to twenty."""
    wrong = faults([(entry.grapheme, entry.alias) for entry in entries], field="lexicon.entries")
    if wrong:
        raise VoxfleetError(
            Reason.INVALID_ARGUMENT,
            "; ".join(f"{each.field}: {each.description}" for each in wrong),
            kind=Kind.INVALID,
            violations=wrong,
        )


async def _get(tx: Transaction, team: str, lexicon_id: str) -> Lexicon:
    lexicon = await tx.get_lexicon(team, lexicon_id)
    if lexicon is None:
        raise not_found(Reason.LEXICON_NOT_FOUND, f"teams/{team}/lexicons/{lexicon_id}")
    return lexicon
