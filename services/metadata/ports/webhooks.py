"""What the use cases of webhooks need of a database, and of a way to reach receivers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from services.metadata.model.page import Page
from services.metadata.model.webhooks import Answer, Backlog, Delivery, DeliveryEnd, Webhook


class WebhookRows(Protocol):
    """Webhooks, as their owners see them."""

    async def remember_request(
        self, team: str, request_id: str, method: str, fingerprint: str, resource: str
    ) -> str:
        """The resource that this request id first made, this one included. Errors: REQUEST_ID_REUSED."""

    async def add_webhook(self, webhook: Webhook, *, most: int) -> bool:
        """Makes a webhook; False where the team has as many as it may."""

    async def get_webhook(self, team: str, webhook: str) -> Webhook | None: ...
    async def list_webhooks(self, team: str, page: Page) -> list[Webhook]: ...
    async def delete_webhook(self, team: str, webhook: str) -> bool: ...


class OutboxRows(Protocol):
    """Deliveries, as those who make them see them."""

    async def arm_webhooks(self) -> None:
        """Raises the flags that make jobs write deliveries, where a copied database has lost them."""

    async def claim_deliveries(
        self,
        slots: int,
        *,
        per_webhook: int,
        per_team: int,
        busy_webhooks: Mapping[str, int],
        busy_teams: Mapping[str, int],
        lease_s: float,
    ) -> list[Delivery]:
        """Deliveries that are due, at most ``slots``; another may claim them again after the lease.

        A webhook has at most ``per_webhook`` in flight, one where its last delivery failed; a team has at
        most ``per_team``. The teams and webhooks that have the least in flight come first.
        """

    async def end_deliveries(self, ends: Sequence[DeliveryEnd]) -> int:
        """Writes what became of deliveries; returns of how many. One that was claimed again is left alone.

        A webhook that answered 410 is disabled; one whose deliveries fail again and again rests for a while.
        """

    async def give_up_deliveries(self, give_up_s: float, limit: int) -> int:
        """Ends deliveries of failing webhooks that are older than that; returns how many."""

    async def drop_deliveries(self, keep_s: float, limit: int) -> int:
        """Deletes ended ones after a while, and those of deleted and disabled webhooks; returns how many."""

    async def backlog(self) -> Backlog: ...


class WebhookTransaction(WebhookRows, OutboxRows, Protocol):
    """One transaction over webhooks; commits when its context ends without an exception."""


class WebhookStore(Protocol):
    """The database. Every context may raise DATABASE_UNAVAILABLE."""

    def tenant(self, team: str) -> AbstractAsyncContextManager[WebhookTransaction]:
        """A transaction that sees one team only."""

    def service(self) -> AbstractAsyncContextManager[WebhookTransaction]:
        """A transaction that sees every team."""


class Sender(Protocol):
    """Reaches receivers."""

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POSTs once, follows nothing, and says what came of it; never raises for what a receiver does."""
