"""Webhooks through the whole stack: made by a user, told by the ledger, checked by the receiver."""

import json

import pytest
from google.protobuf import json_format

from tests.e2e.test_operations import voxfleet
from tests.plugins.receiver import receiving
from tests.polling import until
from voxfleet.client.errors import InvalidArgument, NotFound
from voxfleet.client.webhooks import WebhookRefused, verify
from voxfleet.v1 import job_pb2, synthesis_pb2


@pytest.fixture
def receiver():
    with receiving() as found:
        yield found


def test_a_team_is_told_of_its_jobs_once_each_and_can_tell_that_it_is_us(
    alpha, beta, clone, target, receiver
):
    own = alpha.client.webhooks.create(f"{receiver.url}/alpha")
    others = beta.client.webhooks.create(f"{receiver.url}/beta")
    try:
        receiver.answers.append(500)
        fast = synthesis_pb2.SynthesisParameters(preset="fast")
        lines = [("a", "First line."), ("b", "Second line.")]
        batch = alpha.client.synthesis.batch(lines, clone.name, parameters=fast)
        done = alpha.client.jobs.wait(batch.name, timeout_s=240)
        until(lambda: len(receiver.received) >= 2, timeout_s=60)
        training = alpha.client.voices.train([target.name], voice_id="told")
        alpha.client.jobs.cancel(training.name)
        until(lambda: len(receiver.received) >= 3, timeout_s=60)

        messages = [verify(own.secret, each.headers, each.body) for each in receiver.received]
        assert [each["type"] for each in messages] == ["job.succeeded", "job.succeeded", "job.cancelled"]
        assert messages[0] == messages[1], "refused with 500 at first, then sent again under the same id"
        assert messages[0]["id"] != messages[2]["id"]
        assert {each.path for each in receiver.received} == {"/alpha"}, "another team hears nothing of it"
        told = json_format.ParseDict(messages[1]["job"], job_pb2.Job())
        assert (told.name, told.state) == (batch.name, job_pb2.JOB_STATE_SUCCEEDED)
        assert (told.batch_counts.total, told.batch_counts.succeeded) == (2, 2)
        assert (told.create_time, told.end_time) == (done.create_time, done.end_time)
        assert json_format.ParseDict(messages[2]["job"], job_pb2.Job()).name == training.name

        (listed,) = alpha.client.webhooks.list()
        assert (listed.status.given_up, listed.status.last_error) == (0, "HTTP 500")
        got = receiver.received[1]
        with pytest.raises(WebhookRefused):
            verify(others.secret, got.headers, got.body)
        with pytest.raises(WebhookRefused):
            verify(own.secret, got.headers, got.body.replace(b"SUCCEEDED", b"FAILED"))
    finally:
        alpha.client.webhooks.delete(own.name)
        beta.client.webhooks.delete(others.name)


def test_webhooks_from_the_command_line(stack, alpha, target, receiver):
    made = voxfleet(stack, "webhooks", "create", receiver.url, "--state", "cancelled", "--json")
    assert made.returncode == 0, made.stderr
    webhook = json.loads(made.stdout)
    assert (webhook["url"], webhook["states"]) == (receiver.url, ["JOB_STATE_CANCELLED"])
    listed = json.loads(voxfleet(stack, "webhooks", "list", "--json").stdout)["webhooks"]
    assert [(each["name"], each["secret"]) for each in listed] == [(webhook["name"], "")], "shown once"

    training = alpha.client.voices.train([target.name], voice_id="told-too")
    alpha.client.jobs.cancel(training.name)
    until(lambda: len(receiver.received) == 1, timeout_s=60)
    (got,) = receiver.received
    assert verify(webhook["secret"], got.headers, got.body)["type"] == "job.cancelled"

    gone = voxfleet(stack, "webhooks", "delete", webhook["name"], "--json")
    assert gone.returncode == 0, gone.stderr
    assert json.loads(voxfleet(stack, "webhooks", "list", "--json").stdout) == {"webhooks": []}
    again = voxfleet(stack, "webhooks", "delete", webhook["name"], "--json")
    assert again.returncode == 3
    assert "WEBHOOK_NOT_FOUND" in again.stderr


def test_hostile_addresses_and_other_teams_webhooks(alpha, beta):
    for url in (
        "http://169.254.169.254/latest/meta-data/",
        "file:///etc/passwd",
        "http://user:pw@example.com/",
    ):
        with pytest.raises(InvalidArgument) as caught:
            alpha.client.webhooks.create(url)
        assert caught.value.violations[0].field == "webhook.url"
    mine = alpha.client.webhooks.create("https://example.com/hook")
    try:
        with pytest.raises(NotFound):
            beta.client.webhooks.delete(mine.name)
        assert list(beta.client.webhooks.list()) == []
    finally:
        alpha.client.webhooks.delete(mine.name)
