"""The public methods on audios, voices, teams and the fleet that metadata serves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from google.protobuf import empty_pb2

from services.common import names
from services.common.errors import Kind, Reason, VoxfleetError, invalid
from services.common.rpc.caller import current_caller, require_operator
from services.metadata.app.audios import Audios
from services.metadata.app.identity import Identity
from services.metadata.app.listing import next_token, page_of
from services.metadata.app.voices import Voices
from services.metadata.model.catalog import Audio, Voice
from services.metadata.servicers import convert
from voxfleet.v1 import audio_pb2, trust_pb2, voice_pb2

UPDATABLE_VOICE_FIELDS = ("display_name", "labels", "languages", "consent")
UPDATABLE_TEAM_FIELDS = ("display_name", "allowed_licences")


class AudioServicer:
    """``voxfleet.v1.AudioService``: the rows."""

    def __init__(self, audios: Audios) -> None:
        self._audios = audios

    async def GetAudio(self, request: audio_pb2.GetAudioRequest, _: object) -> audio_pb2.Audio:
        """One audio."""
        name = names.parse(request.name, "audios")
        return convert.audio_to_proto(await self._audios.get(name.team, name.id))

    async def ListAudios(
        self, request: audio_pb2.ListAudiosRequest, _: object
    ) -> audio_pb2.ListAudiosResponse:
        """A team's audios."""
        scope = {"filter_text": request.filter, "order_by": request.order_by, "query": request.query}
        page = page_of(request.page_size, request.page_token, **scope)
        found = await self._audios.page(names.parse_team(request.parent), page)
        return audio_pb2.ListAudiosResponse(
            audios=[convert.audio_to_proto(audio) for audio in found],
            next_page_token=next_token(_mark(found), **scope) if len(found) == page.size else "",
        )

    async def DeleteAudio(self, request: audio_pb2.DeleteAudioRequest, _: object) -> empty_pb2.Empty:
        """Deletes an audio."""
        name = names.parse(request.name, "audios")
        await self._audios.delete(name.team, name.id)
        return empty_pb2.Empty()


class VoiceServicer:
    """``voxfleet.v1.VoiceService``, except what makes voices: that begins where engines are."""

    def __init__(self, voices: Voices) -> None:
        self._voices = voices

    async def GetVoice(self, request: voice_pb2.GetVoiceRequest, _: object) -> voice_pb2.Voice:
        """One voice."""
        name = names.parse(request.name, "voices")
        return convert.voice_to_proto(await self._voices.get(name.team, name.id))

    async def ListVoices(
        self, request: voice_pb2.ListVoicesRequest, _: object
    ) -> voice_pb2.ListVoicesResponse:
        """A team's voices."""
        scope = {"filter_text": request.filter, "order_by": request.order_by, "query": request.query}
        page = page_of(request.page_size, request.page_token, **scope)
        team = names.parse_team(request.parent)
        found = await self._voices.page(team, page, show_deleted=request.show_deleted)
        return voice_pb2.ListVoicesResponse(
            voices=[convert.voice_to_proto(voice) for voice in found],
            next_page_token=next_token(_mark(found), **scope) if len(found) == page.size else "",
        )

    async def UpdateVoice(self, request: voice_pb2.UpdateVoiceRequest, _: object) -> voice_pb2.Voice:
        """Changes a voice."""
        name = names.parse(request.voice.name, "voices", field="voice.name")
        paths = check_mask(request.update_mask.paths, UPDATABLE_VOICE_FIELDS)
        values: Mapping[str, Any] = {
            "display_name": request.voice.display_name,
            "labels": dict(request.voice.labels),
            "languages": list(request.voice.languages),
            "consent": request.voice.consent,
        }
        found = await self._voices.update(name.team, name.id, {path: values[path] for path in paths})
        return convert.voice_to_proto(found)

    async def DeleteVoice(self, request: voice_pb2.DeleteVoiceRequest, _: object) -> voice_pb2.Voice:
        """Deletes a voice."""
        name = names.parse(request.name, "voices")
        return convert.voice_to_proto(await self._voices.delete(name.team, name.id))

    async def UndeleteVoice(self, request: voice_pb2.UndeleteVoiceRequest, _: object) -> voice_pb2.Voice:
        """Brings a voice back."""
        name = names.parse(request.name, "voices")
        return convert.voice_to_proto(await self._voices.undelete(name.team, name.id))

    async def ListCheckpoints(
        self, request: voice_pb2.ListCheckpointsRequest, _: object
    ) -> voice_pb2.ListCheckpointsResponse:
        """The checkpoints of a voice; few are kept, so one page holds them."""
        name = names.parse(request.parent, "voices", field="parent")
        rows = await self._voices.checkpoints(name.team, name.id)
        return voice_pb2.ListCheckpointsResponse(
            checkpoints=[convert.checkpoint_to_proto(request.parent, row) for row in rows]
        )


class TrustServicer:
    """``voxfleet.v1.TrustService``: teams and keys."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    async def CreateTeam(self, request: trust_pb2.CreateTeamRequest, _: object) -> trust_pb2.Team:
        """Makes a team."""
        require_operator()
        team = names.parse_team(f"teams/{request.team_id}", field="team_id")
        wanted = request.team
        made = await self._identity.create_team(
            team, wanted.display_name or team, tuple(wanted.allowed_licences)
        )
        return convert.team_to_proto(made)

    async def UpdateTeam(self, request: trust_pb2.UpdateTeamRequest, _: object) -> trust_pb2.Team:
        """Changes a team."""
        require_operator()
        team = names.parse_team(request.team.name, field="team.name")
        paths = check_mask(request.update_mask.paths, UPDATABLE_TEAM_FIELDS)
        values: Mapping[str, Any] = {
            "display_name": request.team.display_name,
            "allowed_licences": tuple(request.team.allowed_licences),
        }
        found = await self._identity.update_team(team, {path: values[path] for path in paths})
        return convert.team_to_proto(found)

    async def ListTeams(self, request: trust_pb2.ListTeamsRequest, _: object) -> trust_pb2.ListTeamsResponse:
        """The teams this key may see: an operator's all, a member's its own."""
        caller = current_caller()
        page = page_of(request.page_size, request.page_token)
        if not caller.operator:
            own = await self._identity.own_team(caller.team)
            return trust_pb2.ListTeamsResponse(teams=[convert.team_to_proto(team) for team in own])
        found = await self._identity.list_teams(page)
        return trust_pb2.ListTeamsResponse(
            teams=[convert.team_to_proto(team) for team in found],
            next_page_token=next_token(found[-1].id) if len(found) == page.size else "",
        )

    async def CreateApiKey(self, request: trust_pb2.CreateApiKeyRequest, _: object) -> trust_pb2.ApiKey:
        """Makes a key; only an operator makes one for another team or an operator's."""
        caller = current_caller()
        team = names.parse_team(request.parent)
        operator = request.api_key.role == trust_pb2.ROLE_OPERATOR
        if not caller.operator and (operator or team != caller.team):
            raise VoxfleetError(
                Reason.PERMISSION_DENIED,
                "only an operator makes an operator's key, or another team's",
                kind=Kind.FORBIDDEN,
            )
        key, token = await self._identity.create_key(team, request.api_key.display_name, operator=operator)
        return convert.key_to_proto(key, token)

    async def ListApiKeys(
        self, request: trust_pb2.ListApiKeysRequest, _: object
    ) -> trust_pb2.ListApiKeysResponse:
        """A team's keys."""
        page = page_of(request.page_size, request.page_token)
        found = await self._identity.list_keys(names.parse_team(request.parent), page)
        return trust_pb2.ListApiKeysResponse(
            api_keys=[convert.key_to_proto(key) for key in found],
            next_page_token=next_token(found[-1].id) if len(found) == page.size else "",
        )

    async def RevokeApiKey(self, request: trust_pb2.RevokeApiKeyRequest, _: object) -> empty_pb2.Empty:
        """Revokes a key; only an operator revokes an operator's."""
        name = names.parse(request.name, "apiKeys")
        caller = current_caller()
        await self._identity.revoke_key(name.team, name.id, operators=caller.operator or caller.is_service)
        return empty_pb2.Empty()


def check_mask(paths: Sequence[str], allowed: Sequence[str]) -> Sequence[str]:
    """The fields that an update names. Errors: INVALID_ARGUMENT for any other (AIP-134)."""
    for path in paths:
        if path not in allowed:
            raise invalid(
                Reason.INVALID_ARGUMENT,
                f"{path!r} cannot be updated: use {', '.join(allowed)}",
                field="update_mask",
            )
    if not paths:
        raise invalid(
            Reason.INVALID_ARGUMENT, f"name the fields to change: {', '.join(allowed)}", field="update_mask"
        )
    return paths


def _mark(rows: Sequence[Audio] | Sequence[Voice]) -> str:
    """Where the last row stands in the order of creation."""
    last = rows[-1]
    assert last.created_at is not None
    return f"{last.created_at.isoformat()}|{last.id}"
