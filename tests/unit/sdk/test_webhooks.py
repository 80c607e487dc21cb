"""Webhooks in the client and the command: what is asked, what is shown, what a receiver may trust."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from typing import Any

import pytest
from google.protobuf import empty_pb2
from typer.testing import CliRunner

from services.common.errors import Reason, not_found
from tests.unit.sdk.conftest import Face
from tests.unit.sdk.server import TEAM, Double
from voxfleet.cli.main import app
from voxfleet.client.errors import NotFound, VoxfleetError
from voxfleet.client.webhooks import WebhookRefused, verify
from voxfleet.v1 import job_pb2

SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


class HookDouble(Double):
    """A gateway that has webhooks."""

    def CreateWebhook(self, request: Any, context: Any) -> job_pb2.Webhook:
        self.note("CreateWebhook", request, context)
        made = job_pb2.Webhook(name=f"{request.parent}/webhooks/w-1", secret=SECRET)
        made.MergeFrom(request.webhook)
        return made

    def ListWebhooks(self, request: Any, context: Any) -> job_pb2.ListWebhooksResponse:
        self.note("ListWebhooks", request, context)
        page = int(request.page_token or 0)
        status = job_pb2.WebhookStatus(pending=7, given_up=2, last_error="HTTP 500")
        hook = job_pb2.Webhook(
            name=f"{request.parent}/webhooks/w-{page}", url="https://example.com/", status=status
        )
        return job_pb2.ListWebhooksResponse(webhooks=[hook], next_page_token="1" if page == 0 else "")

    def DeleteWebhook(self, request: Any, context: Any) -> empty_pb2.Empty:
        self.note("DeleteWebhook", request, context)
        return empty_pb2.Empty()


@pytest.fixture
def double() -> Double:
    return HookDouble()


@pytest.fixture
def run(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("VOXFLEET_ENDPOINT", endpoint)
    monkeypatch.setenv("VOXFLEET_TOKEN", "vf-test")
    monkeypatch.setenv("VOXFLEET_TEAM", "acme")
    runner = CliRunner()
    return lambda *words, **more: runner.invoke(app, list(words), catch_exceptions=False, **more)


async def test_made_listed_deleted(face: Face, double: Double) -> None:
    made = await face.call(face.client.webhooks.create, "https://example.com/", states=["failed", "running"])
    assert (made.name, made.secret) == (f"{TEAM}/webhooks/w-1", SECRET)
    (asked,) = double.asked("CreateWebhook")
    assert (asked.parent, asked.webhook.url) == (TEAM, "https://example.com/")
    assert list(asked.webhook.states) == [job_pb2.JOB_STATE_FAILED, job_pb2.JOB_STATE_RUNNING]
    assert asked.request_id
    found = await face.collect(face.client.webhooks.list)
    assert [each.name for each in found] == [f"{TEAM}/webhooks/w-0", f"{TEAM}/webhooks/w-1"]
    await face.call(face.client.webhooks.delete, "w-1")
    assert double.asked("DeleteWebhook")[0].name == f"{TEAM}/webhooks/w-1"


async def test_a_create_is_repeated_under_one_request_id_and_a_delete_is_not(
    face: Face, double: Double
) -> None:
    import grpc

    double.failures["CreateWebhook"].append(grpc.StatusCode.UNAVAILABLE)
    await face.call(face.client.webhooks.create, "https://example.com/")
    assert len({request.request_id for request in double.asked("CreateWebhook")}) == 1
    assert len(double.asked("CreateWebhook")) == 2
    double.failures["DeleteWebhook"].append(grpc.StatusCode.UNAVAILABLE)
    with pytest.raises(VoxfleetError):
        await face.call(face.client.webhooks.delete, "w-1")
    double.failures["DeleteWebhook"].append(not_found(Reason.WEBHOOK_NOT_FOUND, f"{TEAM}/webhooks/w-1"))
    with pytest.raises(NotFound) as caught:
        await face.call(face.client.webhooks.delete, "w-1")
    assert caught.value.reason == "WEBHOOK_NOT_FOUND"


async def test_a_state_that_is_none_is_named(face: Face, double: Double) -> None:
    with pytest.raises(VoxfleetError, match="cancelled"):
        await face.call(face.client.webhooks.create, "https://example.com/", states=["finished"])
    assert double.asked("CreateWebhook") == []


@pytest.mark.parametrize("group", ["webhook", "webhooks"])
def test_the_command_makes_lists_and_deletes(run: Any, double: Double, group: str) -> None:
    made = run(group, "create", "https://example.com/", "--state", "failed", "--state", "cancelled")
    assert made.exit_code == 0
    assert f"secret: {SECRET}" in made.stdout
    assert "not shown again" in made.stderr
    assert list(double.asked("CreateWebhook")[0].webhook.states) == [
        job_pb2.JOB_STATE_FAILED,
        job_pb2.JOB_STATE_CANCELLED,
    ]
    shown = json.loads(run(group, "create", "https://example.com/", "--json").stdout)
    assert (shown["secret"], shown["states"]) == (SECRET, [])
    heading, first, second = (line.split("\t") for line in run(group, "list").stdout.splitlines())
    assert heading == ["ID", "URL", "STATES", "PENDING", "GIVEN UP", "LAST ERROR"]
    assert first[3:] == ["7", "2", "HTTP 500"]
    assert (first[0], second[0], first[2]) == ("w-0", "w-1", "final")
    listed = json.loads(run(group, "list", "--json").stdout)["webhooks"]
    assert [each["secret"] for each in listed] == ["", ""]
    assert json.loads(run(group, "delete", "w-1", "--json").stdout) == {"deleted": "w-1"}
    double.failures["DeleteWebhook"].append(not_found(Reason.WEBHOOK_NOT_FOUND, f"{TEAM}/webhooks/w-1"))
    gone = run(group, "delete", "w-1", "--json")
    assert (gone.exit_code, json.loads(gone.stderr)["error"]["reason"]) == (3, "WEBHOOK_NOT_FOUND")


@pytest.mark.parametrize("words", ["create", "list", "delete", "verify"])
def test_every_command_has_help_and_json(run: Any, words: str) -> None:
    shown = run("webhook", words, "--help")
    assert shown.exit_code == 0
    assert "--json" in shown.stdout


def signed(body: bytes, stamp: int, secret: str = SECRET, message_id: str = "d-1") -> dict[str, str]:
    """Headers as any sender of Standard Webhooks would make them, by hand."""
    key = base64.b64decode(secret.removeprefix("whsec_"))
    mac = hmac.new(key, f"{message_id}.{stamp}.".encode() + body, hashlib.sha256).digest()
    return {
        "Webhook-Id": message_id,
        "Webhook-Timestamp": str(stamp),
        "Webhook-Signature": f"v1,{base64.b64encode(mac).decode()}",
    }


def test_verify_refuses_a_replay_and_whatever_is_not_signed() -> None:
    body, now = b'{"id":"d-1"}', int(time.time())
    assert verify(SECRET, signed(body, now), body) == verify(SECRET, signed(body, now), body.decode())
    for stamp in (now - 301, now + 310):
        with pytest.raises(WebhookRefused, match="replay"):
            verify(SECRET, signed(body, stamp), body)
    fresh = {**signed(body, now - 3600), "Webhook-Timestamp": str(now)}
    with pytest.raises(WebhookRefused, match="signature"):
        verify(SECRET, fresh, body)
    for odd in (b"not json", b"[1]"):
        with pytest.raises(WebhookRefused, match="JSON"):
            verify(SECRET, signed(odd, now), odd)
    for stamp in ("", "1e9", "-5", "\u0661"):
        with pytest.raises(WebhookRefused):
            verify(SECRET, {**signed(body, now), "Webhook-Timestamp": stamp}, body)


def test_the_command_checks_a_message_and_calls_nobody(run: Any, double: Double, monkeypatch: Any) -> None:
    body = b'{"id":"d-1","type":"job.failed"}'
    headers = signed(body, int(time.time()))
    words = ["webhook", "verify", "--id", "d-1", "--timestamp", headers["Webhook-Timestamp"]]
    words += ["--signature", headers["Webhook-Signature"]]
    monkeypatch.setenv("VOXFLEET_WEBHOOK_SECRET", SECRET)
    assert run(*words, input=body).stdout == "good: job.failed d-1\n"
    assert json.loads(run(*words, "--json", input=body).stdout)["type"] == "job.failed"
    bad = run(*words, "--json", input=body + b" ")
    assert (bad.exit_code, json.loads(bad.stderr)["error"]["reason"]) == (4, "WEBHOOK_REFUSED")
    assert run(*words, "--secret", "whsec_", input=body).exit_code == 2
    assert double.calls == []
