"""What a receiver of webhooks may be, and may do, over real HTTP on loopback."""

import asyncio
import contextlib
import socket
import time

import pytest

from services.common.errors import Reason, VoxfleetError
from services.metadata.adapters.http_sender import HttpSender
from services.metadata.app.webhooks import Webhooks, WebhookSettings
from tests.plugins.receiver import receiving


@pytest.fixture
def receiver():
    with receiving() as found:
        yield found


@pytest.fixture
async def strict():
    found = HttpSender(allow_private=False)
    yield found
    await found.close()


@pytest.fixture
async def lenient():
    found = HttpSender(allow_private=True)
    yield found
    await found.close()


@pytest.mark.parametrize("allowed", [False, True])
async def test_the_address_that_a_name_leads_to_is_what_counts(
    receiver, strict, lenient, monkeypatch, allowed
):
    """A public name whose owner has it lead inwards, at the time of a delivery."""
    asked = []

    def look_up(host, port, *rest, **more):
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    port = receiver.url.rpartition(":")[2]
    answer = await (lenient if allowed else strict).post(f"http://rebound.example:{port}/", {}, b"{}")
    assert asked == ["rebound.example"]
    assert (answer.status, len(receiver.received)) == ((204, 1) if allowed else (0, 0))
    assert allowed or "127.0.0.1 is not public" in answer.detail


async def test_hostile_urls_are_refused_when_a_webhook_is_made_and_when_it_is_sent(receiver, strict):
    port = receiver.url.rpartition(":")[2]
    hosts = ["127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "localhost", "2130706433", "0x7f.1", "0.0.0.0"]
    for host in hosts:
        answer = await strict.post(f"http://{host}:{port}/", {}, b"{}")
        assert answer.status == 0, host
    assert receiver.received == []
    webhooks = Webhooks(None, WebhookSettings())  # it never comes to the store
    for host in [*hosts, "169.254.169.254", "10.0.0.1", "user:pw@example.com"]:
        with pytest.raises(VoxfleetError) as caught:
            await webhooks.create("alpha", f"http://{host}/", [], request_id="", fingerprint="")
        assert caught.value.reason is Reason.INVALID_ARGUMENT


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirects_are_not_followed_and_count_as_failures(receiver, lenient, status):
    with receiving() as inside:
        receiver.answers.append(status)
        receiver.answer_headers["location"] = f"{inside.url}/inside"
        answer = await lenient.post(receiver.url, {}, b"{}")
        assert (answer.status, answer.arrived, answer.detail) == (status, False, "redirects are not followed")
        assert (len(receiver.received), inside.received) == (1, [])


async def test_a_receivers_wish_to_wait_is_heard(receiver, lenient):
    receiver.answers.extend([503, 429])
    receiver.answer_headers["retry-after"] = "120"
    assert (await lenient.post(receiver.url, {}, b"{}")).retry_after_s == 120.0
    receiver.answer_headers["retry-after"] = "Fri, 31 Dec 1999 23:59:59 GMT"
    assert (await lenient.post(receiver.url, {}, b"{}")).retry_after_s == 0.0


@contextlib.asynccontextmanager
async def listening(handler):
    """The address of a server that does nothing but what its handler does."""

    async def handle(reader, writer):
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            await handler(writer)
        writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/"
    finally:
        server.close()


async def test_a_body_without_end_is_not_read(lenient):
    written = 0

    async def pour(writer):
        nonlocal written
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 999999999999\r\n\r\n")
        while True:
            writer.write(b"x" * 65_536)
            await writer.drain()
            written += 65_536

    async with listening(pour) as url, asyncio.timeout(20):
        assert (await lenient.post(url, {}, b"{}")).status == 200
    assert written < 64 * 2**20, "what the sockets hold, no more"


async def test_a_head_without_end_is_not_read(lenient):
    async def pour(writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x-more: " + b"x" * 4000 + b"\r\n")
            await writer.drain()

    async with listening(pour) as url, asyncio.timeout(20):
        answer = await lenient.post(url, {}, b"{}")
    assert (answer.status, answer.arrived) == (0, False)
    assert len(answer.detail) <= 300


async def test_a_head_that_drips_is_waited_for_no_longer_than_the_caller_says(lenient):
    async def drip(writer):
        while True:
            writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            await writer.drain()
            await asyncio.sleep(0.01)

    began = time.monotonic()
    async with listening(drip) as url:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.3):
                await lenient.post(url, {}, b"{}")
    assert time.monotonic() - began < 20


async def test_nobody_there_is_an_answer_too(lenient):
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))  # and does not listen
        answer = await lenient.post(f"http://127.0.0.1:{bound.getsockname()[1]}/", {}, b"{}")
    assert answer.status == 0
    assert "ClientConnectorError" in answer.detail
