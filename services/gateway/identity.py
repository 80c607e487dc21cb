"""Who calls: the bearer token, asked of metadata once and kept for a short while."""

from __future__ import annotations

import hashlib
import time
from collections import OrderedDict

import grpc

from services.common.errors import Kind, Reason, VoxfleetError
from services.common.names import new_id
from services.common.rpc.caller import REQUEST_ID_HEADER, Caller, set_caller
from voxfleet.internal.v1 import identity_pb2, identity_pb2_grpc

MAX_CACHED = 10_000


class BearerAuthenticator:
    """Turns ``authorization: Bearer …`` into a caller. Errors: UNAUTHENTICATED."""

    def __init__(self, metadata_channel: grpc.aio.Channel) -> None:
        self._stub = identity_pb2_grpc.IdentityServiceStub(metadata_channel)
        self._known: OrderedDict[str, tuple[float, identity_pb2.AuthenticateResponse]] = OrderedDict()

    async def __call__(self, metadata: dict[str, str]) -> Caller:
        """The caller behind a call's metadata. Errors: UNAUTHENTICATED."""
        scheme, _, token = metadata.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" or not token:
            raise VoxfleetError(
                Reason.UNAUTHENTICATED,
                "send `authorization: Bearer TOKEN` in the call's metadata",
                kind=Kind.UNAUTHENTICATED,
                user_message="You are not signed in.",
            )
        found = await self._principal(hashlib.sha256(token.strip().encode()).hexdigest())
        request_id = metadata.get(REQUEST_ID_HEADER, "")[:64] or new_id()
        return Caller(found.team, found.key, found.operator, request_id)

    async def _principal(self, token_sha256: str) -> identity_pb2.AuthenticateResponse:
        until, found = self._known.get(token_sha256, (0.0, None))
        if found is not None and time.monotonic() < until:
            return found
        self._known.pop(token_sha256, None)
        set_caller(Caller())
        request = identity_pb2.AuthenticateRequest(token_sha256=token_sha256)
        found = await self._stub.Authenticate(request, timeout=10)
        self._known[token_sha256] = (time.monotonic() + found.cache_s, found)
        while len(self._known) > MAX_CACHED:
            self._known.popitem(last=False)
        return found
