"""For receivers of webhooks: is this message Voxfleet's, whole, and fresh?

Needs nothing but the standard library. Any library of Standard Webhooks (standardwebhooks.com) does the same.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Mapping
from typing import Any, Final

from voxfleet.client.errors import VoxfleetError

TOLERANCE_S: Final = 300.0
_PREFIX: Final = "whsec_"


class WebhookRefused(VoxfleetError):  # noqa: N818 - the hierarchy's names have no Error
    """A message that is not to be trusted: answer it with 400 and do nothing."""

    CODE = "INVALID_ARGUMENT"

    def __init__(self, message: str) -> None:
        super().__init__(message, reason="WEBHOOK_REFUSED")


def verify(
    secret: str,
    headers: Mapping[str, str],
    body: bytes | str,
    *,
    tolerance_s: float = TOLERANCE_S,
    now_s: float | None = None,
) -> dict[str, Any]:
    """The message, if it was signed with this secret and is fresh.

    Its ``id`` is the same at every attempt to deliver it: keep the ids of a day and drop what comes again.
    ``job`` is JSON of a ``voxfleet.v1.Job``.

    Args:
        secret: as CreateWebhook answered it, ``whsec_…``.
        headers: of the request; the case of their names does not matter.
        body: of the request, byte for byte as it came: do not parse and write it anew.
        tolerance_s: how far the sender's clock may be from this one's, in seconds.
        now_s: seconds since 1970; the clock's where None.

    Raises:
        WebhookRefused: a header is missing, the signature is not of this secret and body, or it is too old.
        ValueError: the secret is none.
    """
    raw = body.encode() if isinstance(body, str) else body
    given = {name.lower(): value for name, value in headers.items()}
    try:
        message_id, stamp, signatures = (
            given[f"webhook-{part}"] for part in ("id", "timestamp", "signature")
        )
    except KeyError as error:
        raise WebhookRefused(f"the header {error.args[0]} is missing") from None
    expected = _signature(secret, f"{message_id}.{stamp}.".encode() + raw)
    found = [
        value for version, _, value in (each.partition(",") for each in signatures.split()) if version == "v1"
    ]
    if not any(hmac.compare_digest(expected, value.encode()) for value in found):
        raise WebhookRefused("the signature is not of this secret, id, time and body")
    if not stamp.isascii() or not stamp.isdecimal():
        raise WebhookRefused("webhook-timestamp is not a number of seconds")
    age_s = (time.time() if now_s is None else now_s) - int(stamp)
    if abs(age_s) > tolerance_s:
        raise WebhookRefused(f"it was signed {abs(age_s):.0f} s {'ago' if age_s > 0 else 'ahead'}: a replay?")
    try:
        message = json.loads(raw)
    except ValueError:
        raise WebhookRefused("the body is not JSON") from None
    if not isinstance(message, dict):
        raise WebhookRefused("the body is not a JSON object")
    return message


def _signature(secret: str, signed: bytes) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("a webhook's secret is whsec_ and base64")
    return base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest())
