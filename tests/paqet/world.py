"""A paqet server and clients in memory: the lab's link between them, targets at one end, a tunnel at the other."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

from twisted.internet.defer import Deferred, succeed
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.python.failure import Failure
from zope.interface import implementer

from mikanet.address import Address
from mikanet.guard.deadlines import Deadlines
from mikanet.kcp.link import LinkSettings
from mikanet.kcp.settings import MODES
from mikanet.paqet.client import PaqetTunnel
from mikanet.paqet.config import AUTO_DIALECTS
from mikanet.paqet.connection import PaqetClientConfig
from mikanet.paqet.ports import IClientPort, OpenPort, Received
from mikanet.paqet.server import MESSAGE_TIME, PaqetServerConfig, PaqetServerFactory
from mikanet.smux.forward import LAST_WORDS_TIME
from mikanet.smux.frame import MAX_FRAME
from mikanet.smux.session import SmuxSettings
from tests.kcp.net import Net
from tests.support.egress import FakeEgress

CLIENT_LINK = LinkSettings("aes", bytes(range(32)), MODES["fast2"], snd_wnd=128, rcv_wnd=512)
SERVER_LINK = replace(CLIENT_LINK, snd_wnd=1024, rcv_wnd=1024, require_proof=True)
SMUX = SmuxSettings(2, MAX_FRAME, keepalive_interval=2.0, keepalive_timeout=8.0)
TARGET = Address("example.com", 443)


class _Receiver:
    """What the net knows as a client."""

    def __init__(self, received: Received) -> None:
        self.packets_received = received


@implementer(IClientPort)
class MemoryClientPort:
    """A port on the net, with a name of its own for each session unless it is fixed."""

    def __init__(self, net: Net, name: tuple[str, int] | None = None) -> None:
        self._net = net
        self._name = name
        self.opened = self.looks = 0
        self.moved = False
        self.started = self.stopped = False

    def start(self) -> None:
        """Note it."""
        self.started = True

    def open(self, received: Received) -> Deferred[OpenPort]:
        """A session's port."""
        self.opened += 1
        name = self._name or ("client", 5000 + len(self._net.clients))
        self._net.clients[name] = _Receiver(received)  # type: ignore[assignment]  # all that the net asks of it
        return succeed(OpenPort(self._net.client_port, name, lambda: None))

    def look_again(self, silent: bool) -> Deferred[bool]:
        """Whether the network has moved, as the test says."""
        self.looks += 1
        return succeed(self.moved)

    def stop(self) -> Deferred[None]:
        """Note it."""
        self.stopped = True
        return succeed(None)


class Application(Protocol):
    """What an application sees of a tunnel."""

    def __init__(self, say: bytes = b"") -> None:
        self.received: list[bytes] = []
        self.lost: Failure | None = None
        self._say = say

    def connectionMade(self) -> None:
        """Early bytes."""
        if self._say:
            assert self.transport is not None
            self.transport.write(self._say)

    def dataReceived(self, data: bytes) -> None:
        """Note it."""
        self.received.append(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Note it."""
        self.lost = reason


class FakeUdpPort:
    """A connected UDP socket."""

    def __init__(self, protocol: Any) -> None:
        self.protocol = protocol
        self.sent: list[bytes] = []
        self.peer: Any = None
        self.closed = False

    def connect(self, host: str, port: int) -> None:
        """Note it."""
        self.peer = (host, port)

    def write(self, data: bytes) -> None:
        """Note it."""
        self.sent.append(data)

    def stopListening(self) -> None:
        """Note it."""
        self.closed = True


class World:
    """One server, and tunnels to it.

    :ivar flags: what the server's port was told about flag lists.
    """

    def __init__(
        self,
        scenario: str = "delay=10ms",
        dialects: Any = AUTO_DIALECTS,
        link: LinkSettings = SERVER_LINK,
        smux: SmuxSettings = SMUX,
        **server: Any,
    ) -> None:
        self.egress = FakeEgress()
        self.sockets: list[FakeUdpPort] = []
        self.flags: list[tuple[Any, tuple[int, ...]]] = []
        self.said: list[str] = []
        self.tunnels: list[PaqetTunnel] = []
        self._make_factory(dialects, smux, server)
        self.net = Net(link, self.factory, scenario)
        self.clock = cast(Any, self.net.clock)
        self.clock.listenUDP = self._listen_udp  # the one thing of a reactor besides time that is asked for
        self.factory.reactor = self.clock
        self.factory.deadlines = Deadlines(self.clock, MESSAGE_TIME)
        self.factory.last_words = Deadlines(self.clock, LAST_WORDS_TIME)

    def _make_factory(self, dialects: Any, smux: SmuxSettings, server: dict[str, Any]) -> None:
        config = PaqetServerConfig(self.egress, smux, dialects, **server)  # type: ignore[arg-type]  # a fake
        self.factory = PaqetServerFactory(None, config)
        self.factory.set_flags = lambda client, flags: self.flags.append((client, flags))
        self.counters = config.counters

    def _listen_udp(self, _: int, protocol: Any, **more: Any) -> FakeUdpPort:
        self.sockets.append(FakeUdpPort(protocol))
        return self.sockets[-1]

    def tunnel(self, connections: int = 1, start: bool = True, fixed: Any = None, **changes: Any) -> PaqetTunnel:
        """A client's tunnel, started."""
        settings: dict[str, Any] = {"link": CLIENT_LINK, "smux": SMUX, "random_bytes": self.net.random.randbytes}
        config = PaqetClientConfig(**(settings | changes))
        ports = [MemoryClientPort(self.net, fixed) for _ in range(connections)]
        tunnel = PaqetTunnel(self.clock, ports, config, "server:9999", self.said.append)
        self.tunnels.append(tunnel)
        self.ports = ports
        if start:
            tunnel.start_ports()
            tunnel.start()
        return tunnel

    def live(self, **changes: Any) -> PaqetTunnel:
        """A tunnel whose sessions are all live."""
        tunnel = self.tunnel(**changes)
        self.clock.run(lambda: all(connection.live for connection in tunnel.connections), 60)
        return tunnel

    def connect(self, tunnel: PaqetTunnel, say: bytes = b"", udp: bool = False, to: Address = TARGET) -> Application:
        """An application's connection through the tunnel."""
        application = Application(say)
        endpoint = tunnel.datagram_endpoint(to) if udp else tunnel.stream_endpoint(to)
        self.failures: list[Failure] = []
        endpoint.connect(Factory.forProtocol(lambda: application)).addErrback(self.failures.append)
        return application

    def run(self, until: Any, most: float = 30.0) -> None:
        """Let time pass until something holds."""
        self.clock.run(until, most)
