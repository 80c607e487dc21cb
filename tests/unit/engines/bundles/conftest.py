from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from services.engines.bundles.catalogue import HUB_URL
from services.engines.bundles.manifest import BundleFile, Manifest


def manifest_of(contents: dict[str, bytes], *, stated: bool = True, **changes: object) -> Manifest:
    """A manifest whose files hold these bytes; without checksums where not ``stated``."""
    files = tuple(
        BundleFile(
            path,
            hashlib.sha256(data).hexdigest() if stated else None,
            len(data) if stated else None,
            f"{HUB_URL}/org/repo/resolve/rev1/{path}",
            "catalogue" if stated else "",
        )
        for path, data in contents.items()
    )
    facts: dict[str, object] = {
        "name": "test-bundle",
        "engine": "f5",
        "files": files,
        "licence": "MIT",
        "licence_url": "https://spdx.org/licenses/MIT.html",
        "requires_acceptance": False,
        "languages": ("en",),
        "trained": True,
        "source": "a test",
        "description": "For a test.",
    }
    return Manifest(**(facts | changes))  # type: ignore[arg-type]


@dataclass
class FakeHub:
    """A real HTTP server that answers as the hub does, with faults on demand.

    Large files are redirected to ``/cdn`` with their SHA-256 on the redirect; small ones are answered
    at once with git's SHA-1 as their ETag.
    """

    url: str = ""
    contents: dict[str, bytes] = field(default_factory=dict)
    large: set[str] = field(default_factory=set)
    cut_after: dict[str, list[int]] = field(default_factory=dict)
    statuses: list[int] = field(default_factory=list)
    ignore_ranges: bool = False
    requests: list[tuple[str, str, str | None]] = field(default_factory=list)
    sent_bytes: int = 0

    def ranges_of(self, path: str) -> list[str | None]:
        return [rng for method, at, rng in self.requests if method == "GET" and at.endswith(path)]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer(body=False)

    def do_GET(self) -> None:
        self._answer(body=True)

    def _answer(self, *, body: bool) -> None:
        hub = self.server.hub
        hub.requests.append((self.command, self.path, self.headers.get("Range")))
        if hub.statuses:
            self._end(hub.statuses.pop(0))
            return
        name = self.path.split("/rev1/", 1)[-1]
        data = hub.contents.get(name)
        if data is None:
            self._end(404)
        elif name in hub.large and not self.path.startswith("/cdn"):
            sha = hashlib.sha256(data).hexdigest()
            self._end(
                302,
                Location=f"/cdn/rev1/{name}",
                **{"X-Linked-ETag": f'"{sha}"', "X-Linked-Size": str(len(data))},
            )
        else:
            self._send(name, data, body=body)

    def _send(self, name: str, data: bytes, *, body: bool) -> None:
        hub = self.server.hub
        start = 0
        if (asked := self.headers.get("Range")) and not hub.ignore_ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(data):
                self._end(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        else:
            self.send_response(200)
        blob = hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
        self.send_header("ETag", f'"{blob}"')
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if not body:
            return
        cuts = hub.cut_after.get(name)
        part = data[start : start + cuts.pop(0)] if cuts else data[start:]
        hub.sent_bytes += len(part)
        self.wfile.write(part)
        if len(part) < len(data) - start:
            self.close_connection = True

    def _end(self, status: int, **headers: str) -> None:
        self.send_response(status)
        for key, value in headers.items():
            self.send_header(key, value)
        self.send_header("Content-Length", "0")
        self.end_headers()


class _Server(ThreadingHTTPServer):
    def __init__(self, hub: FakeHub) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.hub = hub


@pytest.fixture
def fake_hub() -> Iterator[FakeHub]:
    hub = FakeHub()
    server = _Server(hub)
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()
    thread.join()
