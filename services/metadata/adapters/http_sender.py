"""Reaches receivers of webhooks over HTTP (aiohttp), and nothing that they could trick us into reaching.

An address is judged when the socket to it is made, after the name was looked up: whatever the name led to
before, and however it is written. Redirects, proxies of the environment and cookies are not heeded, and a
connection serves one delivery.
"""

from __future__ import annotations

import asyncio
import errno
import functools
import socket
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from services.metadata.model.webhooks import Answer, address_allowed

# Some times the deliveries that are ever in flight: a look-up that nobody waits for any more holds its thread
# until the system's resolver gives up. Threads are made as they are needed.
_LOOKUP_THREADS = 256
_DETAIL = 300


class AddressRefusedError(OSError):
    """A name led to an address that a webhook may not be on."""


class HttpSender:
    """Sends deliveries; belongs to the event loop it was made in.

    Args:
        allow_private: whether receivers may be on private and loopback addresses.
    """

    def __init__(self, *, allow_private: bool) -> None:
        self._allow_private = allow_private
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(
                resolver=_Resolver(),
                use_dns_cache=False,
                socket_factory=self._open,
                force_close=True,
                limit=0,
            ),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers={"user-agent": "Voxfleet-Webhooks/1"},
            # Its caller bounds the whole.
            timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
            trust_env=False,
            max_line_size=8190,
            max_field_size=8190,
        )

    async def close(self) -> None:
        """Closes what is open."""
        await self._session.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """POSTs once and reads the head of the answer; its body is left unread."""
        try:
            async with self._session.post(
                URL(url, encoded=True), data=body, headers=headers, allow_redirects=False
            ) as response:
                response.close()
                return Answer(
                    response.status,
                    "redirects are not followed" if 300 <= response.status < 400 else "",
                    _seconds(response.headers.get("retry-after", "")),
                )
        except (aiohttp.ClientError, OSError, ValueError) as error:
            return Answer(0, f"{type(error).__name__}: {error}"[:_DETAIL])

    def _open(self, found: tuple[Any, ...]) -> socket.socket:
        family, kind, protocol, _, address = found
        if not address_allowed(str(address[0]), private=self._allow_private):
            raise AddressRefusedError(errno.EACCES, f"{address[0]} is not public")
        return socket.socket(family, kind, protocol)


class _Resolver(AbstractResolver):
    """Looks names up in threads of its own: names whose servers never answer hold up nothing else."""

    def __init__(self) -> None:
        self._threads = ThreadPoolExecutor(_LOOKUP_THREADS, thread_name_prefix="webhook-lookup")

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        look_up = functools.partial(socket.getaddrinfo, host, port, family=family, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._threads, look_up)
        return [
            ResolveResult(
                hostname=host,
                host=str(address[0]),
                port=port,
                family=of_family,
                proto=protocol,
                flags=socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            )
            for of_family, _, protocol, _, address in found
        ]

    async def close(self) -> None:
        self._threads.shutdown(wait=False, cancel_futures=True)


def _seconds(text: str) -> float:
    """``Retry-After`` in seconds; 0 for a date or anything else."""
    return float(text) if text.isascii() and text.isdecimal() and len(text) < 9 else 0.0
