# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""Teams, their keys, and where audio came from: ``client.trust``."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from google.protobuf import field_mask_pb2

from voxfleet.client import names
from voxfleet.client.enums import ROLES, enum_value
from voxfleet.client.sync.calls import Calls
from voxfleet.v1 import trust_pb2, trust_pb2_grpc

_VERIFY_TIMEOUT_S = 120.0


class TrustGroup:
    """Makes, changes and lists teams and API keys; verifies where audio came from."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = trust_pb2_grpc.TrustServiceStub(calls.channel)

    def create_team(
        self,
        team_id: str,
        *,
        display_name: str = "",
        allowed_licences: Sequence[str] = (),
        request_id: str = "",
    ) -> trust_pb2.Team:
        """Makes a team. Operators only.

        Args:
            team_id: the last part of its name, 3 to 40 of [a-z0-9-].
            display_name: for people.
            allowed_licences: SPDX ids of the weights it may use; any where empty.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        request = trust_pb2.CreateTeamRequest(
            team_id=team_id,
            team=trust_pb2.Team(display_name=display_name, allowed_licences=allowed_licences),
            request_id=request_id or names.new_request_id(),
        )
        return self._calls.unary(self._stub.CreateTeam, request, safe=True)

    def update_team(
        self,
        team: str,
        *,
        display_name: str | None = None,
        allowed_licences: Sequence[str] | None = None,
    ) -> trust_pb2.Team:
        """Changes a team; what is None stays as it is. Operators only.

        Args:
            team: its id or name.
            display_name: for people.
            allowed_licences: SPDX ids of the weights it may use; any where empty.
        """
        paths = [
            path
            for path, value in (("display_name", display_name), ("allowed_licences", allowed_licences))
            if value is not None
        ]
        request = trust_pb2.UpdateTeamRequest(
            team=trust_pb2.Team(
                name=names.team_name(team),
                display_name=display_name or "",
                allowed_licences=allowed_licences or (),
            ),
            update_mask=field_mask_pb2.FieldMask(paths=paths),
        )
        return self._calls.unary(self._stub.UpdateTeam, request, safe=True)

    def verify_provenance(self, audio: str) -> trust_pb2.VerifyProvenanceResponse:
        """Says whether an audio was made by a machine, and what says so: record, tags, inaudible mark.

        Args:
            audio: its id or name. The whole of it is listened to: half an hour takes a few seconds.
        """
        request = trust_pb2.VerifyProvenanceRequest(audio=self._calls.name("audios", audio))
        return self._calls.unary(self._stub.VerifyProvenance, request, safe=True, timeout_s=_VERIFY_TIMEOUT_S)

    def teams(self) -> Iterator[trust_pb2.Team]:
        """The teams that this key may see."""
        request = trust_pb2.ListTeamsRequest()
        for page in self._calls.pages(self._stub.ListTeams, request):
            yield from page.teams

    def create_key(self, *, display_name: str = "", role: str = "member", team: str = "") -> trust_pb2.ApiKey:
        """Makes an API key; its token is only in this answer, so the call is never repeated.

        Args:
            display_name: for people.
            role: ``member`` or ``operator``.
            team: whose; this client's team where empty.
        """
        number = enum_value(ROLES, role, "role")
        request = trust_pb2.CreateApiKeyRequest(
            parent=names.team_name(team or self._calls.config.team),
            api_key=trust_pb2.ApiKey(display_name=display_name, role=trust_pb2.Role.ValueType(number)),
        )
        return self._calls.unary(self._stub.CreateApiKey, request, safe=False)

    def keys(self, team: str = "") -> Iterator[trust_pb2.ApiKey]:
        """A team's keys, without their tokens."""
        request = trust_pb2.ListApiKeysRequest(parent=names.team_name(team or self._calls.config.team))
        for page in self._calls.pages(self._stub.ListApiKeys, request):
            yield from page.api_keys

    def revoke_key(self, name: str) -> None:
        """Revokes a key."""
        request = trust_pb2.RevokeApiKeyRequest(name=self._calls.name("apiKeys", name))
        self._calls.unary(self._stub.RevokeApiKey, request, safe=True)
