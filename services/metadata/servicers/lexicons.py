"""The public methods on lexicons, and what inference asks of them."""

from __future__ import annotations

from collections.abc import Iterable

from google.protobuf import empty_pb2

from services.common import names
from services.common.jobs.tasks import Pronunciation
from services.metadata.app.lexicons import Lexicons
from services.metadata.app.listing import next_token, page_of
from services.metadata.model.lexicons import Lexicon, LexiconChange
from services.metadata.servicers import convert
from services.metadata.servicers.resources import check_mask
from voxfleet.internal.v1 import catalog_pb2
from voxfleet.v1 import lexicon_pb2

UPDATABLE_FIELDS = ("display_name", "entries")


class LexiconServicer:
    """``voxfleet.v1.LexiconService``, and ``CatalogService.ResolvePronunciations``."""

    def __init__(self, lexicons: Lexicons) -> None:
        self._lexicons = lexicons

    async def CreateLexicon(
        self, request: lexicon_pb2.CreateLexiconRequest, _: object
    ) -> lexicon_pb2.Lexicon:
        """Makes a lexicon."""
        wanted = request.lexicon
        lexicon_id = (
            names.check_id(request.lexicon_id, field="lexicon_id")
            if request.lexicon_id
            else names.slug(wanted.display_name or "lexicon")
        )
        lexicon = Lexicon(
            team=names.parse_team(request.parent),
            id=lexicon_id,
            display_name=wanted.display_name or lexicon_id,
            language=wanted.language,
            entries=_entries(wanted.entries),
        )
        made = await self._lexicons.create(
            lexicon, request_id=request.request_id, fingerprint=convert.fingerprint(request)
        )
        return lexicon_to_proto(made)

    async def GetLexicon(self, request: lexicon_pb2.GetLexiconRequest, _: object) -> lexicon_pb2.Lexicon:
        """One lexicon."""
        name = names.parse(request.name, "lexicons")
        return lexicon_to_proto(await self._lexicons.get(name.team, name.id))

    async def ListLexicons(
        self, request: lexicon_pb2.ListLexiconsRequest, _: object
    ) -> lexicon_pb2.ListLexiconsResponse:
        """A team's lexicons, without their entries."""
        page = page_of(request.page_size, request.page_token)
        found = await self._lexicons.page(names.parse_team(request.parent), page)
        return lexicon_pb2.ListLexiconsResponse(
            lexicons=[lexicon_to_proto(lexicon) for lexicon in found],
            next_page_token=next_token(found[-1].id) if len(found) == page.size else "",
        )

    async def UpdateLexicon(
        self, request: lexicon_pb2.UpdateLexiconRequest, _: object
    ) -> lexicon_pb2.Lexicon:
        """Changes a lexicon."""
        name = names.parse(request.lexicon.name, "lexicons", field="lexicon.name")
        paths = check_mask(request.update_mask.paths, UPDATABLE_FIELDS)
        change = LexiconChange(
            display_name=request.lexicon.display_name if "display_name" in paths else None,
            entries=_entries(request.lexicon.entries) if "entries" in paths else None,
        )
        return lexicon_to_proto(await self._lexicons.update(name.team, name.id, change))

    async def DeleteLexicon(self, request: lexicon_pb2.DeleteLexiconRequest, _: object) -> empty_pb2.Empty:
        """Deletes a lexicon."""
        name = names.parse(request.name, "lexicons")
        await self._lexicons.delete(name.team, name.id)
        return empty_pb2.Empty()

    async def ResolvePronunciations(
        self, request: catalog_pb2.ResolvePronunciationsRequest, _: object
    ) -> catalog_pb2.ResolvePronunciationsResponse:
        """How lexicons say the words of a text."""
        found = await self._lexicons.pronunciations(
            names.parse_team(request.parent), list(request.lexicons), request.text
        )
        return catalog_pb2.ResolvePronunciationsResponse(pronunciations=_to_proto(found))


def lexicon_to_proto(lexicon: Lexicon) -> lexicon_pb2.Lexicon:
    """A lexicon as the API shows it."""
    return lexicon_pb2.Lexicon(
        name=lexicon.name,
        display_name=lexicon.display_name,
        language=lexicon.language,
        entries=_to_proto(lexicon.entries),
        create_time=convert.stamp(lexicon.created_at),
        update_time=convert.stamp(lexicon.updated_at),
    )


def _entries(entries: Iterable[lexicon_pb2.LexiconEntry]) -> tuple[Pronunciation, ...]:
    return tuple(Pronunciation(grapheme=entry.grapheme, alias=entry.alias) for entry in entries)


def _to_proto(entries: Iterable[Pronunciation]) -> list[lexicon_pb2.LexiconEntry]:
    return [lexicon_pb2.LexiconEntry(grapheme=entry.grapheme, alias=entry.alias) for entry in entries]
