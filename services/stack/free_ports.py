"""Free loopback ports that stay the same across restarts.

Ports are drawn from below the kernel's ephemeral range: an outgoing connection can then not take
one between the moment it is chosen and the moment its server binds it.
"""

from __future__ import annotations

import json
import secrets
import socket
from pathlib import Path

from services.common.errors import Reason, unavailable

LOWEST_PORT = 10_000
HIGHEST_PORT = 32_000
SEAWEED_GRPC_OFFSET = 10_000
"""``weed`` opens the gRPC port of each component at its HTTP port plus this."""


def is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nothing listens on ``host:port`` now (a socket in TIME_WAIT does not count)."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


class PortBook:
    """The ports of one stack by name, kept in a JSON file so that a restart finds the same ones.

    Args:
        path: the JSON file; read now, rewritten at each new choice.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._ports: dict[str, int] = {}
        if path.exists():
            self._ports = {str(name): int(port) for name, port in json.loads(path.read_text()).items()}

    def port(self, name: str, *, wanted: int | None = None, offset: int | None = None) -> int:
        """The port kept for ``name`` if it is free still, or a fresh one.

        Args:
            name: what listens there.
            wanted: this very port, or an error when something else holds it.
            offset: ``port + offset`` must be free too.
        """
        if wanted is not None:
            if not is_free(wanted):
                raise unavailable(Reason.SERVICE_UNAVAILABLE, f"port {wanted} ({name}) is taken", port=wanted)
            return self._keep(name, wanted)
        kept = self._ports.get(name)
        if kept is not None and self._usable(name, kept, offset):
            return kept
        for _ in range(1000):
            candidate = LOWEST_PORT + secrets.randbelow(HIGHEST_PORT - (offset or 0) - LOWEST_PORT)
            if self._usable(name, candidate, offset):
                return self._keep(name, candidate)
        raise unavailable(Reason.SERVICE_UNAVAILABLE, "no free loopback port was found", name=name)

    def _usable(self, name: str, port: int, offset: int | None) -> bool:
        wanted = {port} if offset is None else {port, port + offset}
        taken = {other for key, other in self._ports.items() if key != name}
        taken |= {other + SEAWEED_GRPC_OFFSET for other in taken}
        return not (wanted & taken) and all(is_free(each) for each in wanted)

    def _keep(self, name: str, port: int) -> int:
        self._ports[name] = port
        self._path.write_text(json.dumps(self._ports, indent=2, sort_keys=True))
        return port
