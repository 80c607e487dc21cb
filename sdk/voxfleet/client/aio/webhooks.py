"""Who is told of jobs: ``client.webhooks``."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Final

from voxfleet.client import names
from voxfleet.client.aio.calls import Calls
from voxfleet.client.enums import enum_value
from voxfleet.v1 import job_pb2, job_pb2_grpc

JOB_STATES: Final = {
    name.removeprefix("JOB_STATE_").lower(): number for name, number in job_pb2.JobState.items() if number
}


class WebhookGroup:
    """Makes, lists and deletes webhooks. Receivers check messages with ``voxfleet.client.webhooks``."""

    def __init__(self, calls: Calls) -> None:
        self._calls = calls
        self._stub = job_pb2_grpc.JobServiceStub(calls.channel)

    async def create(self, url: str, *, states: Sequence[str] = (), request_id: str = "") -> job_pb2.Webhook:
        """Makes a webhook; ``secret`` is only in this answer.

        Args:
            url: POSTed to; http or https, public unless the server allows others.
            states: such as ``failed`` or ``running``; every final state where empty.
            request_id: makes a repeat return the first answer; made once for this call where empty.
        """
        numbers = [job_pb2.JobState.ValueType(enum_value(JOB_STATES, state, "states")) for state in states]
        request = job_pb2.CreateWebhookRequest(
            parent=self._calls.team,
            webhook=job_pb2.Webhook(url=url, states=numbers),
            request_id=request_id or names.new_request_id(),
        )
        return await self._calls.unary(self._stub.CreateWebhook, request, safe=True)

    async def list(self, *, page_size: int = 0) -> AsyncIterator[job_pb2.Webhook]:
        """The team's webhooks, oldest first, without their secrets; ``status`` says how each fares."""
        request = job_pb2.ListWebhooksRequest(parent=self._calls.team, page_size=page_size)
        async for page in self._calls.pages(self._stub.ListWebhooks, request):
            for webhook in page.webhooks:
                yield webhook

    async def delete(self, name: str) -> None:
        """Deletes a webhook; what waits for it is not sent any more."""
        request = job_pb2.DeleteWebhookRequest(name=self._calls.name("webhooks", name))
        await self._calls.unary(self._stub.DeleteWebhook, request, safe=False)
