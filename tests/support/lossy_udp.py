"""A UDP relay on loopback that loses packets by a seed, for tests with real peer programs.

It lives in the reactor of the test; each client address gets a socket of its own towards the server, as through a NAT.
"""

from __future__ import annotations

import random
import socket
from typing import Any

from twisted.internet.protocol import DatagramProtocol

_SOCKET_BUFFER = 4 << 20


class LossyUdpRelay(DatagramProtocol):
    """Relays between clients of its own port and one server.

    :ivar dropped: packets lost so far; :ivar passed: packets relayed.
    """

    def __init__(self, reactor: Any, server_port: int, loss: float, seed: int = 1) -> None:
        self._reactor = reactor
        self._server = ("127.0.0.1", server_port)
        self._loss = loss
        self._random = random.Random(seed)
        self._behind: dict[tuple[str, int], Any] = {}
        self.dropped = 0
        self.passed = 0
        self._port = reactor.listenUDP(0, self, interface="127.0.0.1", maxPacketSize=65536)
        _widen(self._port)

    @property
    def port(self) -> int:
        """The port that clients use instead of the server's."""
        return int(self._port.getHost().port)

    def lost(self) -> bool:
        """Draw whether the next packet is lost."""
        if self._random.random() < self._loss:
            self.dropped += 1
            return True
        self.passed += 1
        return False

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """From a client."""
        behind = self._behind.get(addr)
        if behind is None:
            behind = self._behind[addr] = self._reactor.listenUDP(0, _Behind(self, addr), interface="127.0.0.1")
            _widen(behind)
        if not self.lost():
            behind.write(datagram, self._server)

    def send_back(self, datagram: bytes, addr: tuple[str, int]) -> None:
        """From the server to a client."""
        if not self.lost() and self.transport is not None:
            self.transport.write(datagram, addr)

    def close(self) -> None:
        """Close all sockets."""
        for port in [self._port, *self._behind.values()]:
            port.stopListening()


class _Behind(DatagramProtocol):
    def __init__(self, relay: LossyUdpRelay, client: tuple[str, int]) -> None:
        self._relay = relay
        self._client = client

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """From the server."""
        self._relay.send_back(datagram, self._client)


def _widen(port: Any) -> None:
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        port.socket.setsockopt(socket.SOL_SOCKET, option, _SOCKET_BUFFER)
