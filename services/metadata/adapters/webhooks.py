"""Webhooks and the outbox in Postgres: named SQL run by raw psycopg."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from psycopg.types.json import Jsonb

from services.metadata.adapters.statements import Row, Statements
from services.metadata.adapters.storable import storable
from services.metadata.model.jobs import FINAL_STATES, JobState
from services.metadata.model.page import Page
from services.metadata.model.webhooks import Backlog, Delivery, DeliveryEnd, Webhook, WebhookStatus

_COUNTED = 1000


class WebhookQueries(Statements):
    """The webhooks' part of a transaction."""

    async def add_webhook(self, webhook: Webhook, *, most: int) -> bool:
        """Makes a webhook; False where the team has as many as it may."""
        await self._run("lock_webhooks", team=webhook.team)
        made = await self._rows(
            "insert_webhook",
            team=webhook.team,
            id=webhook.id,
            url=webhook.url,
            states=[state.value for state in webhook.states],
            secret=webhook.secret,
            most=most,
        )
        if made:
            await self._run("raise_flags", changes=not FINAL_STATES.issuperset(webhook.states))
        return bool(made)

    async def get_webhook(self, team: str, webhook: str) -> Webhook | None:
        """A webhook."""
        row = await self._row("get_webhook", team=team, id=webhook)
        return _webhook(row) if row else None

    async def list_webhooks(self, team: str, page: Page) -> list[Webhook]:
        """A team's webhooks, oldest first, with what waits for each and was given up, up to 1000."""
        rows = await self._rows(
            "list_webhooks", team=team, after=page.after, limit=page.size, counted=_COUNTED
        )
        return [_webhook(row) for row in rows]

    async def delete_webhook(self, team: str, webhook: str) -> bool:
        """Deletes a webhook; False where there is none. Its deliveries are claimed no more."""
        return bool(await self._rows("delete_webhook", team=team, id=webhook))

    async def arm_webhooks(self) -> None:
        """Raises the flags that make jobs write deliveries, where a copied database has lost them."""
        await self._run("arm_webhooks")

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
        await self._run("plan_by_indexes")
        rows = await self._rows(
            "claim_deliveries",
            slots=slots,
            per_webhook=per_webhook,
            per_team=per_team,
            webhooks=list(busy_webhooks),
            in_webhooks=list(busy_webhooks.values()),
            teams=list(busy_teams),
            in_teams=list(busy_teams.values()),
            lease_s=lease_s,
        )
        return [_delivery(row) for row in rows]

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
        (row,) = await self._rows("end_deliveries", ends=Jsonb(data))
        return int(row["ended"])

    async def give_up_deliveries(self, give_up_s: float, limit: int) -> int:
        """Ends deliveries of failing webhooks that are older than that; returns how many."""
        return len(await self._rows("give_up_deliveries", give_up_s=give_up_s, limit=limit))

    async def drop_deliveries(self, keep_s: float, limit: int) -> int:
        """Deletes ended ones after a while, and those of deleted and disabled webhooks; returns how many."""
        ended = await self._rows("drop_ended", keep_s=keep_s, limit=limit)
        return len(ended) + len(await self._rows("drop_orphans", limit=limit))

    async def backlog(self) -> Backlog:
        """What is open, counted up to 100,000."""
        (row,) = await self._rows("backlog")
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
