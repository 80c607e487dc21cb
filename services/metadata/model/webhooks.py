"""Webhooks and their deliveries, as plain data; how a delivery is signed, timed, and where it may go."""

from __future__ import annotations

import base64
import datetime as dt
import hashlib
import hmac
import ipaddress
import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from services.metadata.model.jobs import JobState

SECRET_PREFIX: Final = "whsec_"  # noqa: S105 - what every secret begins with
SECRET_BYTES: Final = 32

RETRY_AFTER_S: Final = (5.0, 30.0, 120.0, 600.0, 1800.0, 3600.0, 7200.0, 14_400.0, 21_600.0, 28_800.0)
"""Seconds after the first failed attempt, the second, and so on: eleven attempts within a day."""

MAX_BODY_BYTES: Final = 65_536
"""Of what is POSTed. What a worker or a caller made long is left out first: receivers ask for the job."""

_JITTER: Final = 0.2
_LONGEST_WISH_S: Final = 3600.0


@dataclass(frozen=True, slots=True)
class WebhookStatus:
    """How a webhook's deliveries fare: ``failures`` counts attempts since the last that arrived."""

    pending: int = 0
    given_up: int = 0
    failures: int = 0
    last_error: str = ""
    last_error_at: dt.datetime | None = None
    rest_until: dt.datetime | None = None
    disabled_at: dt.datetime | None = None


@dataclass(frozen=True, slots=True)
class Webhook:
    """An address that is told of a team's jobs: of every final state where ``states`` is empty."""

    team: str
    id: str
    url: str
    states: tuple[JobState, ...]
    secret: str
    created_at: dt.datetime | None = None
    status: WebhookStatus = WebhookStatus()

    @property
    def name(self) -> str:
        """``teams/{team}/webhooks/{id}``."""
        return f"teams/{self.team}/webhooks/{self.id}"


@dataclass(frozen=True, slots=True)
class Delivery:
    """One message to one webhook, claimed. ``job`` is the job as it was when ``state`` began.

    ``claims`` is the fence: how often it was claimed, this time included. ``age_s`` is how many seconds
    before the claim it was written.
    """

    id: str
    team: str
    webhook_id: str
    url: str
    secret: str
    state: JobState
    job: Mapping[str, Any]
    created_at: dt.datetime
    attempts: int
    claims: int
    age_s: float

    @property
    def webhook(self) -> str:
        """``teams/{team}/webhooks/{id}``."""
        return f"teams/{self.team}/webhooks/{self.webhook_id}"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a receiver said. ``status`` is HTTP's, or 0 where none came and ``detail`` says why."""

    status: int
    detail: str = ""
    retry_after_s: float = 0.0

    @property
    def arrived(self) -> bool:
        """Whether the receiver has it."""
        return 200 <= self.status < 300

    @property
    def gone(self) -> bool:
        """Whether the receiver wants no more, ever."""
        return self.status == 410


@dataclass(frozen=True, slots=True)
class DeliveryEnd:
    """What became of a claimed delivery: ``outcome`` is DELIVERED or DEAD, or empty to try again."""

    delivery: Delivery
    answer: Answer
    outcome: str
    delay_s: float = 0.0


@dataclass(frozen=True, slots=True)
class Backlog:
    """Deliveries that have neither arrived nor been given up, counted up to a bound; and the oldest's age."""

    count: int
    oldest_s: float


def new_secret() -> str:
    """A fresh signing secret: ``whsec_`` and 32 random bytes in base64."""
    return SECRET_PREFIX + base64.b64encode(secrets.token_bytes(SECRET_BYTES)).decode()


def sign(secret: str, message_id: str, timestamp_s: int, body: bytes) -> str:
    """``v1,`` and the HMAC-SHA256 of ``id.timestamp.body`` in base64 (Standard Webhooks 1.0)."""
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    signed = b".".join((message_id.encode(), str(timestamp_s).encode(), body))
    return "v1," + base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()


def headers_of(delivery: Delivery, body: bytes, now: dt.datetime) -> dict[str, str]:
    """The headers of an attempt made now: the id is the same each time, time and signature are not."""
    timestamp_s = int(now.timestamp())
    return {
        "content-type": "application/json",
        "webhook-id": delivery.id,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": sign(delivery.secret, delivery.id, timestamp_s, body),
    }


def body_of(delivery: Delivery) -> bytes:
    """What is POSTed, the same at every attempt, at most ``MAX_BODY_BYTES``.

    ``job`` is JSON of a ``voxfleet.v1.Job``. What would make it longer than that is left out of the job, part
    by part, and ``left_out`` names the parts.
    """
    job = _job(delivery)
    message: dict[str, Any] = {
        "id": delivery.id,
        "type": f"job.{delivery.state.lower()}",
        "time": _rfc3339(delivery.created_at),
        "job": job,
    }
    body = _json(message)
    for part in _LEFT_OUT_FIRST:
        if len(body) <= MAX_BODY_BYTES:
            break
        if job.pop(part, None):
            message["left_out"] = [*message.get("left_out", ()), part]
            body = _json(message)
    return body


def retry_delay_s(failed: int, wished_s: float, chance: float) -> float:
    """Seconds to wait after so many failed attempts.

    Args:
        failed: attempts that failed, the last one included.
        wished_s: what the receiver asked for (``Retry-After``), heeded up to an hour; 0 for nothing.
        chance: from 0 to 1: where in a fifth about the planned delay it lies.
    """
    planned_s = RETRY_AFTER_S[min(failed, len(RETRY_AFTER_S)) - 1]
    return max(planned_s * (1 - _JITTER + 2 * _JITTER * chance), min(wished_s, _LONGEST_WISH_S))


def address_allowed(address: str, *, private: bool) -> bool:
    """Whether a delivery may go to an IP address, in any way of writing it.

    Public ones may. Private and loopback ones may where ``private``. Link-local, multicast, unspecified and
    reserved ones, and those where clouds serve their instances' credentials, never may. After the registries
    of RFC 6890 and IANA's list of IPv6 unicast; Python's ``is_global`` differs between releases.
    """
    try:
        ip = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            ip = ip.ipv4_mapped
        elif ip in _NAT64:
            ip = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
    if any(ip in network for network in _NEVER):
        return False
    if any(ip in network for network in _PRIVATE):
        return private
    return ip.version == 4 or ip in _GLOBAL_UNICAST


def _networks(text: str) -> tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, ...]:
    return tuple(ipaddress.ip_network(each) for each in text.split())


_NAT64 = ipaddress.IPv6Network("64:ff9b::/96")
_GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")
_PRIVATE = _networks("10.0.0.0/8 100.64.0.0/10 127.0.0.0/8 172.16.0.0/12 192.168.0.0/16 ::1/128 fc00::/7")
_NEVER = (
    *_networks("0.0.0.0/8 169.254.0.0/16 192.0.0.0/24 192.0.2.0/24 192.88.99.0/24 198.18.0.0/15"),
    *_networks("198.51.100.0/24 203.0.113.0/24 224.0.0.0/4 240.0.0.0/4"),
    *_networks("2001::/23 2001:db8::/32 2002::/16 3fff::/20"),
    # Metadata services that do not live on a link-local address: Alibaba's, Azure's, Amazon's.
    *_networks("100.100.100.200/32 168.63.129.16/32 fd00:ec2::/32"),
)


# Whatever is left is made by us, and short.
_LEFT_OUT_FIRST = ("result", "labels", "error", "display_name")


def _json(data: Mapping[str, Any]) -> bytes:
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode()


def _job(delivery: Delivery) -> dict[str, Any]:
    job = delivery.job
    found: dict[str, Any] = {
        "name": f"teams/{delivery.team}/jobs/{job['id']}",
        "kind": job["kind"],
        "state": f"JOB_STATE_{delivery.state.value}",
        "display_name": job["display_name"],
        "labels": job["labels"],
        "attempt": job["attempt"],
        "create_time": _rfc3339(job["created_at"]),
    }
    for key, stored in (("start_time", "started_at"), ("end_time", "ended_at")):
        if job[stored]:
            found[key] = _rfc3339(job[stored])
    parts = job["traceparent"].split("-")
    if len(parts) == 4:
        found["trace_id"] = parts[1]
    if job["kind"] == "batch":
        found["batch_counts"] = {
            "total": job["items"],
            "succeeded": job["succeeded"],
            "failed": job["failed"],
            "cancelled": job["cancelled"],
        }
    if job["error"] and delivery.state is not JobState.SUCCEEDED:
        error = job["error"]
        found["error"] = {
            key: str(error[key])
            for key in ("reason", "message", "user_message", "trace_id")
            if error.get(key)
        }
        if error.get("metadata"):
            found["error"]["metadata"] = {key: str(value) for key, value in error["metadata"].items()}
    if job["result"] and delivery.state is JobState.SUCCEEDED:
        found["result"] = job["result"]
    return found


def _rfc3339(moment: dt.datetime | str) -> str:
    """A time in UTC, as protobuf's JSON writes it."""
    if isinstance(moment, str):
        moment = dt.datetime.fromisoformat(moment)
    return moment.astimezone(dt.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
