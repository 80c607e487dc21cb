"""Webhooks without a database: signatures, times, addresses, bodies."""

import base64
import datetime as dt
import itertools
import json
from pathlib import Path

import pytest
from google.protobuf import json_format

from services.common.errors import Reason, VoxfleetError
from services.metadata.app.webhooks import MAX_URL, WebhookSettings, check_url
from services.metadata.model.jobs import JobState
from services.metadata.model.webhooks import (
    MAX_BODY_BYTES,
    RETRY_AFTER_S,
    Delivery,
    address_allowed,
    body_of,
    headers_of,
    new_secret,
    retry_delay_s,
    sign,
)
from services.metadata.servicers import convert
from voxfleet.client.webhooks import WebhookRefused, verify
from voxfleet.v1 import job_pb2

NOW = dt.datetime(2026, 11, 21, 12, 0, 0, tzinfo=dt.UTC)
JOB = {
    "id": "j-0001",
    "kind": "rvc.train",
    "display_name": "Ánna",
    "labels": {"show": "pilot"},
    "attempt": 2,
    "error": None,
    "result": {
        "voice": "teams/alpha/voices/v-anna",
        "metrics": {"loss_mel_end": 1.5},
        "weights_trained": True,
    },
    "created_at": "2026-11-21T12:30:00+02:00",
    "started_at": "2026-11-21T10:31:00.25+00:00",
    "ended_at": "2026-11-21T11:00:00+00:00",
    "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    "items": 0,
    "succeeded": 0,
    "failed": 0,
    "cancelled": 0,
}


def delivery(state: JobState = JobState.SUCCEEDED, **job) -> Delivery:
    return Delivery(
        id="d-1",
        team="alpha",
        webhook_id="w-0001",
        url="https://example.com/hook",
        secret=new_secret(),
        state=state,
        job={**JOB, **job},
        created_at=NOW,
        attempts=0,
        claims=1,
        age_s=0.0,
    )


def test_the_published_vector_of_standard_webhooks():
    secret, body = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", b'{"test": 2432232314}'
    signature = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert sign(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, body) == signature
    headers = {
        "Webhook-Id": "msg_p5jXN8AQM9LWM0D4loKWxJek",
        "Webhook-Timestamp": "1614265330",
        "Webhook-Signature": f"v2,nonsense v1,bm9wZQ== {signature}",
    }
    assert verify(secret, headers, body, now_s=1614265330.0) == {"test": 2432232314}


def test_a_secret_is_32_random_bytes():
    secrets = {new_secret() for _ in range(10)}
    assert len(secrets) == 10
    assert {len(base64.b64decode(each.removeprefix("whsec_"))) for each in secrets} == {32}


def test_what_we_sign_the_sdk_verifies_and_nothing_else():
    sent = delivery()
    body = body_of(sent)
    headers = headers_of(sent, body, NOW)
    now_s = NOW.timestamp()
    assert verify(sent.secret, headers, body, now_s=now_s + 299)["id"] == "d-1"
    bad = [
        (new_secret(), headers, body, now_s),
        (sent.secret, headers, body + b" ", now_s),
        (sent.secret, {**headers, "webhook-id": "d-2"}, body, now_s),
        (sent.secret, {**headers, "webhook-timestamp": str(int(now_s) + 1)}, body, now_s),
        (sent.secret, {**headers, "webhook-signature": "v1,"}, body, now_s),
        (sent.secret, {**headers, "webhook-signature": headers["webhook-signature"][3:]}, body, now_s),
        (sent.secret, headers, body, now_s + 301),
        (sent.secret, headers, body, now_s - 301),
        *(
            (sent.secret, {key: value for key, value in headers.items() if key != name}, body, now_s)
            for name in ("webhook-id", "webhook-timestamp", "webhook-signature")
        ),
    ]
    for secret, given, content, moment_s in bad:
        with pytest.raises(WebhookRefused):
            verify(secret, given, content, now_s=moment_s)
    with pytest.raises(ValueError, match="whsec_"):
        verify("whsec_", headers, body)


def test_the_job_in_a_body_is_a_job_of_the_api():
    message = json.loads(body_of(delivery()))
    assert (message["id"], message["type"], message["time"]) == (
        "d-1",
        "job.succeeded",
        "2026-11-21T12:00:00.000000Z",
    )
    job = json_format.ParseDict(message["job"], job_pb2.Job())
    assert (job.name, job.state, job.attempt) == ("teams/alpha/jobs/j-0001", job_pb2.JOB_STATE_SUCCEEDED, 2)
    assert (job.display_name, dict(job.labels)) == ("Ánna", {"show": "pilot"})
    assert (job.result.voice, job.result.metrics["loss_mel_end"]) == ("teams/alpha/voices/v-anna", 1.5)
    assert job.create_time.ToDatetime(dt.UTC) == dt.datetime(2026, 11, 21, 10, 30, tzinfo=dt.UTC)
    assert job.start_time.ToDatetime(dt.UTC).microsecond == 250_000
    assert job.trace_id == "0af7651916cd43dd8448eb211c80319c"
    assert not job.HasField("batch_counts")


def test_a_failed_job_says_why_and_a_batch_its_counts():
    error = {
        "reason": "GPU_OUT_OF_MEMORY",
        "message": "m",
        "user_message": "u",
        "metadata": {"a": "b"},
        "kind": "exhausted",
        "violations": [],
        "failure": "resource",
    }
    failed = json.loads(body_of(delivery(JobState.FAILED, error=error)))
    job = json_format.ParseDict(failed["job"], job_pb2.Job())
    assert (failed["type"], job.error.reason, dict(job.error.metadata)) == (
        "job.failed",
        "GPU_OUT_OF_MEMORY",
        {"a": "b"},
    )
    assert not job.HasField("result"), "what an earlier attempt left is no result"
    batch = delivery(
        kind="batch", items=5, succeeded=3, failed=1, cancelled=1, started_at=None, traceparent=""
    )
    job = json_format.ParseDict(json.loads(body_of(batch))["job"], job_pb2.Job())
    counts = job.batch_counts
    assert (counts.total, counts.succeeded, counts.failed, counts.cancelled) == (5, 3, 1, 1)
    assert not job.HasField("start_time")


@pytest.mark.parametrize(
    ("long", "left_out"),
    [
        ({}, None),
        ({"result": {"metrics": {f"m{n}": 1.5 for n in range(10_000)}}}, ["result"]),
        ({"labels": {f"k{n}": "v" * 50 for n in range(2_000)}}, ["result", "labels"]),
        (
            {"state": JobState.FAILED, "error": {"reason": "INTERNAL", "message": "\u2620" * 40_000}},
            ["labels", "error"],
        ),
        ({"result": {}, "labels": {}, "display_name": "é" * 40_000}, ["display_name"]),
    ],
    ids=["short", "result", "labels", "error", "name"],
)
def test_a_body_is_bounded_and_says_what_it_leaves_out(long, left_out):
    body = body_of(delivery(**long))
    message = json.loads(body)
    assert len(body) <= MAX_BODY_BYTES
    assert message.get("left_out") == left_out
    job = json_format.ParseDict(message["job"], job_pb2.Job())
    assert job.name == "teams/alpha/jobs/j-0001"
    assert job.state in {job_pb2.JOB_STATE_SUCCEEDED, job_pb2.JOB_STATE_FAILED}


def test_an_errors_facts_are_text_as_in_the_api():
    error = {"reason": "QUALITY_TOO_LOW", "metadata": {"actual_snr_db": 9.5, "ok": True}, "trace_id": None}
    job = json.loads(body_of(delivery(JobState.FAILED, error=error)))["job"]
    told = json_format.ParseDict(job, job_pb2.Job()).error
    assert dict(told.metadata) == {"actual_snr_db": "9.5", "ok": "True"}
    assert told == convert.error_to_proto({**error, "trace_id": ""})


def test_retries_lie_about_their_plan_and_heed_the_receiver():
    for failed, planned_s in enumerate(RETRY_AFTER_S, start=1):
        assert retry_delay_s(failed, 0.0, 0.0) == pytest.approx(0.8 * planned_s)
        assert retry_delay_s(failed, 0.0, 1.0) == pytest.approx(1.2 * planned_s)
    assert retry_delay_s(99, 0.0, 0.5) == RETRY_AFTER_S[-1]
    assert sum(RETRY_AFTER_S) < 86_400, "all of the plan fits into the day"
    assert all(later > sooner for sooner, later in itertools.pairwise(RETRY_AFTER_S))
    assert retry_delay_s(1, 60.0, 0.5) == 60.0
    assert retry_delay_s(1, 1e7, 0.5) == 3600.0, "but not for ever"


@pytest.mark.parametrize(
    "address",
    ["8.8.8.8", "93.184.216.34", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"],
)
def test_public_addresses(address):
    assert address_allowed(address, private=False)
    assert address_allowed(address, private=True)


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1"),
        *("100.64.0.1", "::1", "fc00::1", "fd12:3456::1", "::ffff:127.0.0.1", "::ffff:10.1.2.3"),
        "64:ff9b::a00:1",
    ],
)
def test_private_addresses(address):
    assert not address_allowed(address, private=False)
    assert address_allowed(address, private=True)


@pytest.mark.parametrize(
    "address",
    [
        *("169.254.169.254", "169.254.0.1", "0.0.0.0", "0.1.2.3", "224.0.0.1", "255.255.255.255"),
        *("240.0.0.1", "192.0.0.192", "192.0.2.1", "198.18.0.1", "168.63.129.16", "100.100.100.200"),
        *("::", "fe80::1", "fe80::1%eth0", "ff02::1", "fd00:ec2::254", "2001:db8::1", "2002:a00:1::1"),
        *("2001:0:a00:1::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "64:ff9b:1::a00:1", "fec0::1"),
        *("::10.0.0.1", "localhost", "", "1.2.3"),
    ],
)
def test_addresses_that_never_are_receivers(address):
    assert not address_allowed(address, private=False)
    assert not address_allowed(address, private=True)


@pytest.mark.parametrize(
    "url",
    [
        *("https://example.com", "http://example.com:8080/a/b?c=d&e=%20", "HTTPS://Example.COM./x"),
        *("https://8.8.8.8/hook", "https://[2606:4700:4700::1111]:8443/", "https://xn--bcher-kva.example/"),
        *("https://a_b.example.com/", "https://example.com/@/x"),
    ],
)
def test_urls(url):
    check_url(url, private=False)


@pytest.mark.parametrize(
    "url",
    [
        *(
            "",
            "example.com",
            "ftp://example.com",
            "file:///etc/passwd",
            "http://",
            "http:///x",
            "https://:80/",
        ),
        *("https://user@example.com/", "https://user:pw@example.com/", "https://@example.com/"),
        *("https://example.com:0/", "https://example.com:65536/", "https://example.com:x/", "https://[::1"),
        *(
            "https://example.com/#part",
            "https://exa mple.com/",
            "https://example.com/\n",
            "https://bücher.de/",
        ),
        *(
            "https://example.com\\@evil.example/",
            "https://a..b/",
            "https://-a.example/",
            "https://a.example-/",
        ),
        *(
            "http://2130706433/",
            "http://0x7f000001/",
            "http://127.1/",
            "http://0177.0.0.1/",
            "http://1.2.3.4.5/",
        ),
        "https://example.com/" + "x" * MAX_URL,
    ],
)
def test_what_is_no_url(url):
    for private in (False, True):
        with pytest.raises(VoxfleetError) as caught:
            check_url(url, private=private)
        assert caught.value.reason is Reason.INVALID_ARGUMENT
        assert caught.value.violations[0].field == "webhook.url"


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:9/",
        "http://localhost/",
        "http://a.localhost./",
        "http://[::1]/",
        "http://10.0.0.8/x",
    ],
)
def test_private_urls_are_for_those_who_allow_them(url):
    check_url(url, private=True)
    with pytest.raises(VoxfleetError, match="VOXFLEET_WEBHOOK_ALLOW_PRIVATE"):
        check_url(url, private=False)


def test_metadata_services_are_refused_whatever_is_allowed():
    for url in (
        "http://169.254.169.254/latest/meta-data/",
        "http://[fd00:ec2::254]/",
        "http://168.63.129.16/",
    ):
        with pytest.raises(VoxfleetError):
            check_url(url, private=True)


def test_the_documented_schedule_is_the_one_that_is_kept():
    told = {"s": 1, "min": 60, "h": 3600}
    page = (Path(__file__).parents[3] / "docs/reference/webhooks.md").read_text()
    (line,) = (line for line in page.splitlines() if line.startswith("> 5 s"))
    steps = [part.split() for part in line.removeprefix(">").split(",")]
    assert tuple(float(number) * told[unit] for number, unit in steps) == RETRY_AFTER_S
    settings = WebhookSettings()
    assert f"**{settings.give_up_s / 3600:.0f} hours**" in page
    assert f"has at most {settings.most}." in page
    assert f"{MAX_BODY_BYTES // 1024} KiB" in page
    assert f"`VOXFLEET_WEBHOOK_SLOTS` | {settings.slots} |" in page
    assert f"`VOXFLEET_WEBHOOK_TIMEOUT_S` | {settings.timeout_s:g} |" in page
    assert f"gives up what it held after {settings.timeout_s + settings.lease_s:g} s" in page
