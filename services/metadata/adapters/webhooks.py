"""Webhooks and the outbox in Postgres: named SQL run by raw psycopg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from psycopg.types.json import Jsonb

from services.metadata.adapters.ledger.statements import Row, Statements
from services.metadata.adapters.storable import storable
from services.metadata.model.jobs import FINAL_STATES, JobState
from services.metadata.model.page import Page
from services.metadata.model.webhooks import Backlog, Delivery, DeliveryEnd, Webhook, WebhookStatus
from services.metadata.sql import statements

_SQL = statements("webhooks.sql")

_COUNTED = 1000


class WebhookQueries(Statements):
    """The webhooks' part of a transaction."""

    async def add_webhook(self, webhook: Webhook, *, most: int) -> bool:
        """Makes a webhook; False where the team has as many as it may."""
        await self._fetch(_SQL["lock_webhooks"], {"team": webhook.team})
        made = await self._fetch(
            _SQL["insert_webhook"],
            {
                "team": webhook.team,
                "id": webhook.id,
                "url": webhook.url,
                "states": [state.value for state in webhook.states],
                "secret": webhook.secret,
                "most": most,
            },
        )
        if made:
            await self._fetch(_SQL["raise_flags"], {"changes": not FINAL_STATES.issuperset(webhook.states)})
        return bool(made)

    async def get_webhook(self, team: str, webhook: str) -> Webhook | None:
        """A webhook."""
        rows = await self._fetch(_SQL["get_webhook"], {"team": team, "id": webhook})
        return _webhook(rows[0]) if rows else None

    async def list_webhooks(self, team: str, page: Page) -> list[Webhook]:
        """A team's webhooks, oldest first, with what waits for each and was given up, up to 1000."""
        parameters = {"team": team, "after": page.after, "limit": page.size, "counted": _COUNTED}
        return [_webhook(row) for row in await self._fetch(_SQL["list_webhooks"], parameters)]

    async def delete_webhook(self, team: str, webhook: str) -> bool:
        """Deletes a webhook; False where there is none. Its deliveries are claimed no more."""
        return bool(await self._fetch(_SQL["delete_webhook"], {"team": team, "id": webhook}))

    async def arm_webhooks(self) -> None:
        """Raises the flags that make jobs write deliveries, where a copied database has lost them."""
        await self._fetch(_SQL["arm_webhooks"], {})

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
        """Deliveries that are due, at most ``slots``; due again after the lease."""
        parameters = {
            "slots": slots,
            "per_webhook": per_webhook,
            "per_team": per_team,
            "webhooks": list(busy_webhooks),
            "in_webhooks": list(busy_webhooks.values()),
            "teams": list(busy_teams),
            "in_teams": list(busy_teams.values()),
            "lease_s": lease_s,
        }
        await self._fetch(_SQL["plan_by_indexes"], {})
        return [_delivery(row) for row in await self._fetch(_SQL["claim_deliveries"], parameters)]

    async def end_deliveries(self, ends: Sequence[DeliveryEnd]) -> int:
        """Writes what became of deliveries; returns of how many."""
        data = [
            {
                "id": end.delivery.id,
                "webhook_id": end.delivery.webhook_id,
                "claims": end.delivery.claims,
                "outcome": end.outcome,
                "status": end.answer.status,
                "error": storable(end.answer.detail),
                "delay_s": end.delay_s,
                "arrived": end.answer.arrived,
                "gone": end.answer.gone,
            }
            for end in ends
        ]
        (row,) = await self._fetch(_SQL["end_deliveries"], {"ends": Jsonb(data)})
        return int(row["ended"])

    async def give_up_deliveries(self, give_up_s: float, limit: int) -> int:
        """Ends deliveries of failing webhooks that are older than that; returns how many."""
        parameters = {"give_up_s": give_up_s, "limit": limit}
        return len(await self._fetch(_SQL["give_up_deliveries"], parameters))

    async def drop_deliveries(self, keep_s: float, limit: int) -> int:
        """Deletes ended ones after a while, and those of deleted and disabled webhooks; returns how many."""
        parameters: dict[str, Any] = {"keep_s": keep_s, "limit": limit}
        ended = await self._fetch(_SQL["drop_ended"], parameters)
        return len(ended) + len(await self._fetch(_SQL["drop_orphans"], parameters))

    async def backlog(self) -> Backlog:
        """What is open, counted up to 100,000."""
        (row,) = await self._fetch(_SQL["backlog"], {})
        return Backlog(row["count"], row["oldest_s"])


def _webhook(row: Row) -> Webhook:
    return Webhook(
        team=row["team"],
        id=row["id"],
        url=row["url"],
        states=tuple(JobState(state) for state in row["states"]),
        secret=row["secret"],
        created_at=row["created_at"],
        status=WebhookStatus(
            pending=row.get("pending", 0),
            given_up=row.get("given_up", 0),
            failures=row["failures"],
            last_error=row["last_error"],
            last_error_at=row["last_error_at"],
            rest_until=row["paused_until"],
            disabled_at=row["disabled_at"],
        ),
    )


def _delivery(row: Row) -> Delivery:
    return Delivery(
        id=row["id"],
        team=row["team"],
        webhook_id=row["webhook_id"],
        url=row["url"],
        secret=row["secret"],
        state=JobState(row["state"]),
        job=row["job"],
        created_at=row["created_at"],
        attempts=row["attempts"],
        claims=row["claims"],
        age_s=row["age_s"],
    )
