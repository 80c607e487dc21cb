# Generated from voxfleet/client/aio by scripts/generate_sync_client.py: edit that, not this.
"""The synchronous client."""

from __future__ import annotations

from pathlib import Path
from types import TracebackType
from typing import Self

from voxfleet.client import port_sync
from voxfleet.client.config import ClientConfig, find_config
from voxfleet.client.retry import RetryPolicy
from voxfleet.client.sync.audio import AudioGroup
from voxfleet.client.sync.calls import Calls
from voxfleet.client.sync.fleet import FleetGroup
from voxfleet.client.sync.jobs import JobGroup
from voxfleet.client.sync.lexicons import LexiconGroup
from voxfleet.client.sync.synthesis import SynthesisGroup
from voxfleet.client.sync.trust import TrustGroup
from voxfleet.client.sync.voices import VoiceGroup
from voxfleet.client.sync.webhooks import WebhookGroup


class Client:
    """A connection to Voxfleet; use it as a context manager, or close it.

    What is not given is looked up as ``voxfleet.client.config`` says. Names may be given in full or as bare
    ids of the client's team. Every call may raise ``voxfleet.client.errors.VoxfleetError``.

    Args:
        endpoint: ``host:port``, ``http://…`` or ``https://…``.
        token: an API key's token.
        team: the id of the team that bare names are of.
        timeout_s: deadline of a unary call, repeats included, where the call names none.
        tls: encrypts or not; by the endpoint's scheme where None.
        ca_file: certificates to trust, in PEM, in place of the usual ones.
        retry: how often what is safe is repeated.
        config: found already; then ``endpoint``, ``token``, ``team`` and ``tls`` are not looked at.

    Attributes:
        audio: uploads, measures, downloads.
        voices: makes, trains, lists voices.
        synthesis: speaks, converts, brings weights in.
        lexicons: how the team wants words said.
        jobs: follows jobs and steers them.
        fleet: nodes, queues, quotas, usage.
        trust: teams and keys.
        webhooks: who is told of jobs.

    Raises:
        ConfigurationError: no endpoint is configured.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        token: str | None = None,
        team: str | None = None,
        *,
        timeout_s: float = 30.0,
        tls: bool | None = None,
        ca_file: str | Path | None = None,
        retry: RetryPolicy | None = None,
        config: ClientConfig | None = None,
    ) -> None:
        self.config = config or find_config(endpoint, token, team, tls=tls)
        self._channel = port_sync.open_channel(self.config, ca_file)
        calls = Calls(self._channel, self.config, retry or RetryPolicy(), timeout_s)
        self.audio = AudioGroup(calls)
        self.voices = VoiceGroup(calls)
        self.synthesis = SynthesisGroup(calls)
        self.lexicons = LexiconGroup(calls)
        self.jobs = JobGroup(calls)
        self.fleet = FleetGroup(calls)
        self.trust = TrustGroup(calls)
        self.webhooks = WebhookGroup(calls)

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
