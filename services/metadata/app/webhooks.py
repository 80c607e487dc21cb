"""Webhooks: made, listed, forgotten; and the outbox, which brings what happened to those who asked."""

from __future__ import annotations

import asyncio
import collections
import datetime as dt
import ipaddress
import logging
import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final
from urllib.parse import urlsplit

from prometheus_client import Counter, Gauge

from services.common import names
from services.common.errors import Kind, Reason, VoxfleetError, invalid, not_found
from services.metadata.model.jobs import JobState
from services.metadata.model.page import Page
from services.metadata.model.webhooks import (
    Answer,
    Backlog,
    Delivery,
    DeliveryEnd,
    Webhook,
    address_allowed,
    body_of,
    headers_of,
    new_secret,
    retry_delay_s,
)
from services.metadata.ports.webhooks import Sender, WebhookStore, WebhookTransaction

log = logging.getLogger(__name__)

DELIVERIES = Counter(
    "voxfleet_webhook_deliveries_total",
    "Attempts at deliveries by what came of them: delivered, retried, dead, gone.",
    ["outcome"],
)
BACKLOG = Gauge(
    "voxfleet_webhook_backlog", "Deliveries neither arrived nor given up, of all processes, up to 100,000."
)
OLDEST = Gauge("voxfleet_webhook_oldest_seconds", "Age of the oldest of them.")

MAX_URL: Final = 2048
_URL = re.compile(r"https?://[A-Za-z0-9\[\]:/?@!$&'()*+,;=%._~-]+", re.IGNORECASE)
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,251}[A-Za-z0-9])?\.?")
# What resolvers read as a number: 127.1, 0x7f000001, 2130706433.
_NUMERIC = re.compile(r"(?:.*\.)?(?:[0-9]+|0[xX][0-9A-Fa-f]*)\.?")


@dataclass(frozen=True, slots=True)
class WebhookSettings:
    """How webhooks are run.

    Args:
        most: webhooks of one team.
        allow_private: whether a webhook may be on a private or loopback address.
        slots: deliveries in flight in this process.
        per_webhook: of them to one webhook; one where its last delivery failed.
        per_team: of them for one team.
        timeout_s: of one attempt, from the look-up of the name to the head of the answer.
        lease_s: beyond ``timeout_s``, after which a delivery that was claimed and not heard of is claimed
            again.
        land_s: how long a process that stops waits for answers to what it has sent.
        poll_s: between two looks where nothing was due.
        give_up_s: age after which a delivery is not tried again.
        sweep_s: between two sweeps.
        keep_s: how long the row of a delivery is kept after its end.
    """

    most: int = 20
    allow_private: bool = False
    slots: int = 64
    per_webhook: int = 4
    per_team: int = 16
    timeout_s: float = 10.0
    lease_s: float = 20.0
    land_s: float = 2.0
    poll_s: float = 1.0
    give_up_s: float = 86_400.0
    sweep_s: float = 60.0
    keep_s: float = 3 * 86_400.0


class Webhooks:
    """The use cases of those who own webhooks."""

    def __init__(self, store: WebhookStore, settings: WebhookSettings) -> None:
        self._store = store
        self._settings = settings

    async def create(
        self, team: str, url: str, states: Sequence[JobState], *, request_id: str, fingerprint: str
    ) -> Webhook:
        """Makes a webhook; a repeat returns it with its secret, as the first answer did.

        Errors: INVALID_ARGUMENT, QUOTA_EXCEEDED, REQUEST_ID_REUSED, WEBHOOK_NOT_FOUND (a repeat of one that
        was deleted since).
        """
        check_url(url, private=self._settings.allow_private)
        webhook = Webhook(team, names.new_id(), url, tuple(dict.fromkeys(states)), new_secret())
        async with self._store.tenant(team) as tx:
            first = await tx.remember_request(team, request_id, "CreateWebhook", fingerprint, webhook.name)
            if first == webhook.name and not await tx.add_webhook(webhook, most=self._settings.most):
                raise VoxfleetError(
                    Reason.QUOTA_EXCEEDED,
                    f"a team has at most {self._settings.most} webhooks: delete one first",
                    kind=Kind.EXHAUSTED,
                    metadata={"quota": "webhooks", "max_webhooks": self._settings.most},
                )
            found = await tx.get_webhook(team, names.parse(first, "webhooks").id)
        if found is None:
            raise not_found(Reason.WEBHOOK_NOT_FOUND, first)
        return found

    async def page(self, team: str, page: Page) -> list[Webhook]:
        """A team's webhooks, oldest first."""
        async with self._store.tenant(team) as tx:
            return await tx.list_webhooks(team, page)

    async def delete(self, team: str, webhook_id: str) -> None:
        """Forgets a webhook; what waits for it is not sent any more. Errors: WEBHOOK_NOT_FOUND."""
        async with self._store.tenant(team) as tx:
            if not await tx.delete_webhook(team, webhook_id):
                raise not_found(Reason.WEBHOOK_NOT_FOUND, f"teams/{team}/webhooks/{webhook_id}")


class Outbox:
    """Delivers what jobs put into the outbox, at least once each, in no promised order.

    Several processes may do so beside one another. One that dies loses nothing: what it had claimed is due
    again after its lease.

    Args:
        store: the database.
        sender: reaches receivers.
        settings: how many at once, and how long.
        clock: the time that is signed.
        chance: spreads retries.
    """

    def __init__(
        self,
        store: WebhookStore,
        sender: Sender,
        settings: WebhookSettings,
        *,
        clock: Callable[[], dt.datetime] = lambda: dt.datetime.now(dt.UTC),
        chance: random.Random | None = None,
    ) -> None:
        self._store = store
        self._sender = sender
        self._settings = settings
        self._clock = clock
        self._chance = chance or random.Random()  # noqa: S311 - jitter
        self._flying: dict[asyncio.Task[DeliveryEnd], Delivery] = {}

    async def run(self) -> None:
        """Delivers and sweeps until cancelled.

        Then it waits a little for what is in flight, so that a restart sends little twice; what has no answer
        by then is sent again after its lease.
        """
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._deliver())
                group.create_task(self._sweep())
        finally:
            await self._land()

    async def turn(self) -> int:
        """Writes down what has come of deliveries, and begins those that are due; returns how many began."""
        over = [task for task in self._flying if task.done()]
        ends = [task.result() for task in over]
        flying = [delivery for task, delivery in self._flying.items() if task not in over]
        async with self._store.service() as tx:
            if ends:
                await tx.end_deliveries(ends)
            claimed = await self._claim(tx, flying)
        # Only now that it is committed: after a failure the next turn writes the same ends.
        for task, end in zip(over, ends, strict=True):
            del self._flying[task]
            _note(end)
        for delivery in claimed:
            self._flying[asyncio.create_task(self._send(delivery))] = delivery
        return len(claimed)

    async def drain(self) -> int:
        """Delivers until nothing is due or in flight; returns how many attempts that took."""
        attempts = 0
        while (begun := await self.turn()) or self._flying:
            attempts += begun
            if self._flying:
                await asyncio.wait(self._flying, return_when=asyncio.FIRST_COMPLETED)
        return attempts

    async def sweep(self, *, limit: int = 1000) -> Backlog:
        """Gives up what is too old, deletes what has ended, in small transactions; measures what is left."""
        keep_s, give_up_s = self._settings.keep_s, self._settings.give_up_s
        full = True
        while full:
            async with self._store.service() as tx:
                dead = await tx.give_up_deliveries(give_up_s, limit)
            DELIVERIES.labels("dead").inc(dead)
            full = dead == limit
        full = True
        while full:
            async with self._store.service() as tx:
                full = await tx.drop_deliveries(keep_s, limit) >= limit
        async with self._store.service() as tx:
            backlog = await tx.backlog()
        BACKLOG.set(backlog.count)
        OLDEST.set(backlog.oldest_s)
        return backlog

    async def _deliver(self) -> None:
        while True:
            try:
                begun = await self.turn()
            except VoxfleetError as error:
                log.warning("webhooks: %s", error.message)
                await asyncio.sleep(self._settings.poll_s)
                continue
            except Exception:
                log.exception("webhooks: a turn failed")
                await asyncio.sleep(self._settings.poll_s)
                continue
            if begun and len(self._flying) < self._settings.slots:
                # More may be due by now; an empty turn ends the chase.
                await asyncio.sleep(0)
            elif self._flying:
                await asyncio.wait(
                    self._flying, timeout=self._settings.poll_s, return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(self._settings.poll_s)

    async def _land(self) -> None:
        if not self._flying:
            return
        over, late = await asyncio.wait(self._flying, timeout=self._settings.land_s)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
        try:
            async with self._store.service() as tx:
                await tx.end_deliveries([task.result() for task in over])
        except VoxfleetError as error:
            log.warning("webhooks: %s", error.message)

    async def _sweep(self) -> None:
        armed = False
        while True:
            try:
                if not armed:
                    async with self._store.service() as tx:
                        await tx.arm_webhooks()
                    armed = True
                await self.sweep()
            except VoxfleetError as error:
                log.warning("webhooks: %s", error.message)
            except Exception:
                log.exception("webhooks: a sweep failed")
            await asyncio.sleep(self._settings.sweep_s)

    async def _claim(self, tx: WebhookTransaction, flying: Sequence[Delivery]) -> list[Delivery]:
        slots = self._settings.slots - len(flying)
        if slots <= 0:
            return []
        return await tx.claim_deliveries(
            slots,
            per_webhook=self._settings.per_webhook,
            per_team=self._settings.per_team,
            busy_webhooks=collections.Counter(delivery.webhook_id for delivery in flying),
            busy_teams=collections.Counter(delivery.team for delivery in flying),
            lease_s=self._settings.timeout_s + self._settings.lease_s,
        )

    async def _send(self, delivery: Delivery) -> DeliveryEnd:
        answer = await self._post(delivery)
        if answer.arrived:
            return DeliveryEnd(delivery, answer, "DELIVERED")
        delay_s = retry_delay_s(delivery.attempts + 1, answer.retry_after_s, self._chance.random())
        if answer.gone or delivery.age_s + delay_s > self._settings.give_up_s:
            return DeliveryEnd(delivery, answer, "DEAD")
        return DeliveryEnd(delivery, answer, "", delay_s)

    async def _post(self, delivery: Delivery) -> Answer:
        try:
            body = body_of(delivery)
            async with asyncio.timeout(self._settings.timeout_s):
                return await self._sender.post(delivery.url, headers_of(delivery, body, self._clock()), body)
        except TimeoutError:
            return Answer(0, f"no answer within {self._settings.timeout_s:g} s")
        except Exception:
            # A defect of ours must not stop the others' deliveries; it is tried again as any other.
            log.exception("%s: delivery %s failed", delivery.webhook, delivery.id)
            return Answer(0, "a defect of Voxfleet's: see its log")


def check_url(url: str, *, private: bool, field: str = "webhook.url") -> None:
    """Judges an address by its words alone; where its name leads to is judged at each delivery.

    Errors: INVALID_ARGUMENT.
    """
    wrong = _wrong_with(url, private=private)
    if wrong:
        raise invalid(Reason.INVALID_ARGUMENT, f"the address of a webhook {wrong}", field=field)


def _wrong_with(url: str, *, private: bool) -> str:
    if len(url) > MAX_URL:
        return f"has at most {MAX_URL} characters"
    if not _URL.fullmatch(url):
        return "begins with http:// or https:// and holds only what RFC 3986 lets stand in it, no fragment"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "has a host, and a port from 1 to 65535 if any"
    if "@" in parts.netloc:
        return "holds no user name and no password: deliveries are signed"
    if port == 0:
        return "has a port from 1 to 65535 if any"
    try:
        address = str(ipaddress.ip_address(host))
    except ValueError:
        if not _HOST.fullmatch(host) or ".." in host or _NUMERIC.fullmatch(host):
            return "has a host name (international ones as xn--…), or an IP address in its usual form"
        local = host.rstrip(".") == "localhost" or host.rstrip(".").endswith(".localhost")
        return _PRIVATE if local and not private else ""
    return "" if address_allowed(address, private=private) else _PRIVATE


_PRIVATE = (
    "is public: private, loopback and link-local ones are refused (an operator may allow private ones with "
    "VOXFLEET_WEBHOOK_ALLOW_PRIVATE)"
)


def _note(end: DeliveryEnd) -> None:
    delivery, answer = end.delivery, end.answer
    said = answer.detail or f"HTTP {answer.status}"
    if end.outcome == "DELIVERED":
        DELIVERIES.labels("delivered").inc()
    elif answer.gone:
        DELIVERIES.labels("gone").inc()
        log.warning("%s answered 410 and is disabled", delivery.webhook)
    elif end.outcome:
        DELIVERIES.labels("dead").inc()
        log.warning("%s: delivery %s is given up: %s", delivery.webhook, delivery.id, said)
    else:
        DELIVERIES.labels("retried").inc()
        log.info(
            "%s: attempt %d at delivery %s failed, next in %.0f s: %s",
            delivery.webhook,
            delivery.attempts + 1,
            delivery.id,
            end.delay_s,
            said,
        )
