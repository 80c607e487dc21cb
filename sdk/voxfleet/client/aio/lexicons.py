"""Pronunciation dictionaries of the team: ``client.lexicons``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from voxfleet.client import names
from voxfleet.client.aio.calls import Calls
from voxfleet.v1 import lexicon_pb2, lexicon_pb2_grpc


class LexiconGroup:
    """Makes, lists, changes and deletes lexicons; ``SynthesisParameters.lexicons`` names them in full."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = lexicon_pb2_grpc.LexiconServiceStub(calls.channel)

    async def create(
        self,
        entries: Mapping[str, str],
        *,
        lexicon_id: str = "",
        display_name: str = "",
        language: str = "",
        request_id: str = "",
    ) -> lexicon_pb2.Lexicon:
        """Makes a lexicon.

        Args:
            entries: words as they are written, and as they are spelled for the engine.
            lexicon_id: the last part of its name; made from the display name where empty.
            display_name: for people.
            language: BCP-47, for people.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        request = lexicon_pb2.CreateLexiconRequest(
            parent=self._calls.team,
            lexicon_id=lexicon_id,
            lexicon=lexicon_pb2.Lexicon(
                display_name=display_name, language=language, entries=_entries(entries)
            ),
            request_id=request_id or names.new_request_id(),
        )
        return await self._calls.unary(self._stub.CreateLexicon, request, safe=True)

    async def get(self, name: str) -> lexicon_pb2.Lexicon:
        """One lexicon, with its entries."""
        request = lexicon_pb2.GetLexiconRequest(name=self._calls.name("lexicons", name))
        return await self._calls.unary(self._stub.GetLexicon, request, safe=True)

    async def list(self, *, page_size: int = 0) -> AsyncIterator[lexicon_pb2.Lexicon]:
        """The team's lexicons by id, without their entries: :meth:`get` has those."""
        request = lexicon_pb2.ListLexiconsRequest(parent=self._calls.team, page_size=page_size)
        async for page in self._calls.pages(self._stub.ListLexicons, request):
            for lexicon in page.lexicons:
                yield lexicon

    async def update(
        self, name: str, *, entries: Mapping[str, str] | None = None, display_name: str | None = None
    ) -> lexicon_pb2.Lexicon:
        """Changes what is given, and leaves the rest; ``entries`` replaces all of them."""
        request = lexicon_pb2.UpdateLexiconRequest(
            lexicon=lexicon_pb2.Lexicon(
                name=self._calls.name("lexicons", name),
                display_name=display_name or "",
                entries=_entries(entries or {}),
            )
        )
        given = {"display_name": display_name, "entries": entries}
        request.update_mask.paths.extend(field for field, value in given.items() if value is not None)
        return await self._calls.unary(self._stub.UpdateLexicon, request, safe=True)

    async def delete(self, name: str) -> None:
        """Deletes a lexicon; what was submitted with it is still spoken with it."""
        request = lexicon_pb2.DeleteLexiconRequest(name=self._calls.name("lexicons", name))
        await self._calls.unary(self._stub.DeleteLexicon, request, safe=False)


def _entries(entries: Mapping[str, str]) -> Sequence[lexicon_pb2.LexiconEntry]:
    return [lexicon_pb2.LexiconEntry(grapheme=word, alias=said) for word, said in entries.items()]
