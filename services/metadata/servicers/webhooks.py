"""The public methods on webhooks."""

from __future__ import annotations

from google.protobuf import empty_pb2

from services.common import names
from services.common.errors import Reason, invalid
from services.metadata.app.listing import next_token, page_of
from services.metadata.app.webhooks import Webhooks
from services.metadata.model.jobs import JobState
from services.metadata.model.webhooks import Webhook
from services.metadata.servicers import convert
from voxfleet.v1 import job_pb2


class WebhookServicer:
    """``voxfleet.v1.JobService``: its webhooks."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    async def CreateWebhook(self, request: job_pb2.CreateWebhookRequest, _: object) -> job_pb2.Webhook:
        """Registers a webhook; the only answer that holds its secret."""
        webhook = await self._webhooks.create(
            names.parse_team(request.parent),
            request.webhook.url,
            [_state(number, value) for number, value in enumerate(request.webhook.states)],
            request_id=request.request_id,
            fingerprint=convert.fingerprint(request),
        )
        return webhook_to_proto(webhook, secret=webhook.secret)

    async def ListWebhooks(
        self, request: job_pb2.ListWebhooksRequest, _: object
    ) -> job_pb2.ListWebhooksResponse:
        """A team's webhooks."""
        page = page_of(request.page_size, request.page_token)
        found = await self._webhooks.page(names.parse_team(request.parent), page)
        return job_pb2.ListWebhooksResponse(
            webhooks=[webhook_to_proto(webhook) for webhook in found],
            next_page_token=next_token(found[-1].id) if len(found) == page.size else "",
        )

    async def DeleteWebhook(self, request: job_pb2.DeleteWebhookRequest, _: object) -> empty_pb2.Empty:
        """Forgets a webhook."""
        name = names.parse(request.name, "webhooks")
        await self._webhooks.delete(name.team, name.id)
        return empty_pb2.Empty()


def webhook_to_proto(webhook: Webhook, *, secret: str = "") -> job_pb2.Webhook:
    """A webhook as the API shows it; the secret only where it was just made."""
    status = webhook.status
    return job_pb2.Webhook(
        name=webhook.name,
        url=webhook.url,
        states=[convert.job_state(state) for state in webhook.states],
        secret=secret,
        create_time=convert.stamp(webhook.created_at),
        status=job_pb2.WebhookStatus(
            pending=status.pending,
            given_up=status.given_up,
            failures=status.failures,
            last_error=status.last_error,
            last_error_time=convert.stamp(status.last_error_at),
            rest_until_time=convert.stamp(status.rest_until),
            disable_time=convert.stamp(status.disabled_at),
        ),
    )


def _state(number: int, value: int) -> JobState:
    """A state from the wire. Errors: INVALID_ARGUMENT."""
    try:
        return JobState(job_pb2.JobState.Name(job_pb2.JobState.ValueType(value)).removeprefix("JOB_STATE_"))
    except ValueError:
        field = f"webhook.states[{number}]"
        raise invalid(Reason.INVALID_ARGUMENT, f"{field} is not a state of a job", field=field) from None
