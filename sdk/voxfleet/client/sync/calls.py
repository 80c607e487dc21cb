# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""How every call is made: key, trace, deadline, repeats where they are safe, errors decoded."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Generic, Protocol, TypeVar

import grpc

from voxfleet.client import names, port_sync
from voxfleet.client.config import ClientConfig
from voxfleet.client.decode import error_of
from voxfleet.client.errors import VoxfleetError
from voxfleet.client.retry import RetryPolicy
from voxfleet.client.tracing import trace_headers
from voxfleet.v1 import audio_pb2_grpc, job_pb2_grpc, synthesis_pb2_grpc


class PageRequest(Protocol):
    """Asks for a page."""

    page_token: str


class Page(Protocol):
    """Names the page after it."""

    next_page_token: str


_Q = TypeVar("_Q")
_R = TypeVar("_R")
_PageQ = TypeVar("_PageQ", bound=PageRequest)
_PageR = TypeVar("_PageR", bound=Page)


class Calls:
    """What the groups of methods share.

    Args:
        channel: to the gateway.
        config: where that is, and as whom to call.
        policy: when to repeat.
        timeout_s: deadline of a unary call, repeats included, where the caller names none.
    """

    def __init__(
        self, channel: grpc.Channel, config: ClientConfig, policy: RetryPolicy, timeout_s: float
    ) -> None:
        self.channel = channel
        # Made here for all: making one on a channel that another thread closes crashes gRPC.
        self.audio = audio_pb2_grpc.AudioServiceStub(channel)
        self.jobs = job_pb2_grpc.JobServiceStub(channel)
        self.synthesis = synthesis_pb2_grpc.SynthesisServiceStub(channel)
        self.config = config
        self.policy = policy
        self.timeout_s = timeout_s

    @property
    def team(self) -> str:
        """``teams/{team}``. Raises ConfigurationError where no team is set."""
        return names.team_name(self.config.team)

    def name(self, collection: str, name: str) -> str:
        """The full name of a bare id of this client's team."""
        return names.full_name(self.config.team, collection, name)

    def headers(self) -> tuple[tuple[str, str], ...]:
        """The metadata of a call."""
        bearer = (("authorization", f"Bearer {self.config.token}"),) if self.config.token else ()
        return (*bearer, *trace_headers())

    def error(self, failure: grpc.RpcError) -> VoxfleetError:
        """What a failed call says."""
        return error_of(failure, endpoint=self.config.endpoint)

    def unary(
        self,
        method: grpc.UnaryUnaryMultiCallable[_Q, _R],
        request: _Q,
        *,
        safe: bool,
        timeout_s: float | None = None,
    ) -> _R:
        """Makes a call, repeated while the server is unavailable if that is safe.

        Args:
            method: of a stub.
            request: sent the same each time, its ``request_id`` included.
            safe: whether a repeat of a call that may have been served does no harm.
            timeout_s: deadline of all tries together.
        """
        deadline = time.monotonic() + (self.timeout_s if timeout_s is None else timeout_s)
        failures = 0
        while True:
            try:
                return method(request, timeout=max(0.0, deadline - time.monotonic()), metadata=self.headers())
            except grpc.RpcError as failure:
                failures += 1
                error = self.error(failure)
                wait_s = self.policy.backoff_s(failures, error.retry_after_s)
                if not self.policy.repeats(error, failures, safe=safe):
                    raise error from failure
                if time.monotonic() + wait_s >= deadline:
                    raise error from failure
            port_sync.sleep(wait_s)

    def pages(
        self, method: grpc.UnaryUnaryMultiCallable[_PageQ, _PageR], request: _PageQ
    ) -> Iterator[_PageR]:
        """All pages of a list, each fetched when it is come to."""
        while True:
            page = self.unary(method, request, safe=True)
            yield page
            if not page.next_page_token:
                return
            request.page_token = page.next_page_token

    def send(
        self, method: grpc.StreamUnaryMultiCallable[_Q, _R], messages: Iterator[_Q], timeout_s: float
    ) -> _R:
        """Makes a call that sends a stream, once.

        What goes wrong in making the messages (a disk that fails) is raised as it is: gRPC would tell of a
        cancelled call.
        """
        sent = _Sent(messages)
        try:
            return method(sent.messages(), timeout=timeout_s, metadata=self.headers())
        except port_sync.CALL_FAILURES as failure:
            if sent.failure is not None:
                raise sent.failure from None
            if not isinstance(failure, grpc.RpcError):
                raise
            raise self.error(failure) from failure


class _Sent(Generic[_Q]):
    """Messages on their way, and what went wrong in making them."""

    def __init__(self, messages: Iterator[_Q]) -> None:
        self._messages = messages
        self.failure: Exception | None = None

    def messages(self) -> Iterator[_Q]:
        try:
            yield from self._messages
        except Exception as error:
            self.failure = error
            raise
