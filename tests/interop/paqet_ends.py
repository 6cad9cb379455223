"""A paqet server and client in the test's own reactor, with their raw ports in two network namespaces, or over UDP.

Only the ports live in the namespaces. Targets are on this machine's loopback, where the server's egress finds them, and
applications use the client's tunnel directly; so one cipher more costs no process more.
"""

from __future__ import annotations

import hashlib
import socket
import struct
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

from twisted.internet import defer, reactor
from twisted.internet.protocol import DatagramProtocol, Factory, Protocol, connectionDone
from twisted.internet.task import deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase

from mikanet.address import Address
from mikanet.counters import Counters
from mikanet.egress import EgressPolicy, parse_rule
from mikanet.kcp import link
from mikanet.paqet.client import PaqetTunnel
from mikanet.paqet.options import PaqetSetup, load_setup
from mikanet.paqet.service import PaqetServer, PaqetServerSettings, client_config, client_ports
from mikanet.relay import MemoryBudget
from tests.lab.veth import VethPair
from tests.support.processes import free_port

#: Not in Python: SO_RCVBUF beyond the limit, for root.
_RCVBUFFORCE = 33

KEY = "a key for tests of good length"


def indented(lines: str, depth: int) -> str:
    """Lines of a section."""
    return "".join(f"{' ' * depth}{line}\n" for line in lines.splitlines())


def write_file(folder: Path, name: str, text: str) -> str:
    """A configuration file; its path."""
    path = folder / name
    path.touch(0o600)
    path.write_text(text)
    return str(path)


def file_text(role: str, where: str, network: str, kcp: str = "", ours: str = "carrier: raw", more: str = "") -> str:
    """A configuration file's text: ``where`` is the server's address, ``network`` and ``kcp`` are lines of sections."""
    text = f'role: "{role}"\n'
    text += f'listen: {{addr: "{where}"}}\n' if role == "server" else f'server: {{addr: "{where}"}}\n'
    if network:
        text += "network:\n" + indented(network, 2)
    keyed = kcp if "key:" in kcp else f'key: "{KEY}"\n{kcp}'
    text += f"transport:\n  protocol: kcp\n{indented(more, 2)}  kcp:\n" + indented(keyed, 4)
    return text + "mikanet:\n" + indented(ours, 2)


class Target(Protocol):
    """Takes ``up``, then gives ``down`` bytes (the first 16 bytes say how many), and says the hash of what came first."""

    def __init__(self, seen: list[Target]) -> None:
        self._seen = seen
        self._head = b""
        self._left = -1
        self._down = 0
        self._hash = hashlib.sha256()

    def connectionMade(self) -> None:
        """Count."""
        self._seen.append(self)

    def dataReceived(self, data: bytes) -> None:
        """Head, then bytes."""
        if self._left < 0:
            self._head += data
            if len(self._head) < 16:
                return
            self._left, self._down = (int.from_bytes(self._head[a : a + 8], "big") for a in (0, 8))
            data = self._head[16:]
        self._hash.update(data)
        self._left -= len(data)
        if self._left <= 0 and self._down >= 0:
            assert self.transport is not None
            self.transport.write(self._hash.digest())
            self.transport.write(pattern(self._down))
            self._down = -1


def pattern(size: int) -> bytes:
    """Bytes that differ from place to place."""
    block = b"".join(hashlib.sha256(bytes((i & 255, i >> 8))).digest() for i in range(512))
    return (block * (size // len(block) + 1))[:size]


class Transfer(Protocol):
    """An application: sends, then takes what it asked for. ``done`` fires with whether all was right."""

    def __init__(self, up: int, down: int) -> None:
        self.done: defer.Deferred[bool] = defer.Deferred()
        self.got = 0
        self.lost: Failure | None = None
        self._up, self._down = up, down
        self._pieces: list[bytes] = []

    def connectionMade(self) -> None:
        """Ask."""
        assert self.transport is not None
        self.transport.write(self._up.to_bytes(8, "big") + self._down.to_bytes(8, "big") + pattern(self._up))

    def dataReceived(self, data: bytes) -> None:
        """Collect."""
        self._pieces.append(data)
        self.got += len(data)
        if self.got >= 32 + self._down and not self.done.called:
            received = b"".join(self._pieces)
            right = received == hashlib.sha256(pattern(self._up)).digest() + pattern(self._down)
            self.done.callback(right)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Too early, unless all is there."""
        self.lost = reason
        if not self.done.called:
            self.done.errback(reason)


class UdpEcho(DatagramProtocol):
    """Sends datagrams back."""

    noisy = False

    def datagramReceived(self, datagram: bytes, addr: Any) -> None:
        """Back."""
        assert self.transport is not None
        self.transport.write(datagram, addr)


class Datagrams(Protocol):
    """An application's datagrams."""

    def __init__(self) -> None:
        self.got: list[bytes] = []

    def dataReceived(self, data: bytes) -> None:
        """One."""
        self.got.append(data)


class Ends:
    """One server, and tunnels to it.

    :param kcp: lines of ``transport.kcp`` for both. :param pair: namespaces; without, UDP on loopback is the carrier.
    :ivar seen: the target's connections.
    """

    def __init__(self, case: TestCase, pair: VethPair | None, ipv6: bool = False) -> None:
        self.case = case
        self.pair = pair
        self.ipv6 = ipv6
        self.port = free_port()
        self.folder = Path(tempfile.mkdtemp(prefix="mikanet-paqet-"))
        self.seen: list[Target] = []
        self.servers: list[PaqetServer] = []
        self.said: list[str] = []
        running: Any = reactor
        target = running.listenTCP(0, _factory(lambda: Target(self.seen)), interface="127.0.0.1")
        udp = running.listenUDP(0, UdpEcho(), interface="127.0.0.1", maxPacketSize=65536)
        self.target = Address("127.0.0.1", target.getHost().port)
        self.udp_target = Address("127.0.0.1", udp.getHost().port)
        for listening in (target, udp):
            case.addCleanup(listening.stopListening)

    @property
    def address(self) -> str:
        """Where the server is."""
        if self.pair is None:
            return f"127.0.0.1:{self.port}"
        space = self.pair.second
        return f"[{space.address6}]:{self.port}" if self.ipv6 else f"{space.address}:{self.port}"

    def _inside(self, first: bool) -> Any:
        if self.pair is None:
            return nullcontext()
        return (self.pair.first if first else self.pair.second).entered()

    def setup(self, role: str, kcp: str = "", ours: str = "", more: str = "", network: str | None = None) -> PaqetSetup:
        """A file, read."""
        carrier = "carrier: udp\n" if self.pair is None else ""
        if network is None:
            network = f"ipv4: {{addr: '{self.address}'}}" if self.pair is None and role == "server" else ""
            if self.ipv6 and role == "server":
                network = f"ipv6: {{addr: ':{self.port}'}}"
        if self.pair is not None and "interface" not in network:
            space = self.pair.second if role == "server" else self.pair.first
            network += f"\ninterface: {space.interface}"
        where = f":{self.port}" if role == "server" else self.address
        text = file_text(role, where, network, kcp, carrier + ours + "\n", more)
        return load_setup(write_file(self.folder, f"{role}.yaml", text), insecure_ok=True)

    def server(
        self, kcp: str = "", firewall: bool = True, limits: dict[str, Any] | None = None, **sections: Any
    ) -> PaqetServer:
        """Start a server that knows nothing of those before it, as one of another process."""
        link._sealers.clear()
        setup = self.setup("server", kcp, **sections)
        policy = EgressPolicy((parse_rule("127.0.0.0/8"),))
        settings = PaqetServerSettings(
            setup, replace(setup.link, **(limits or {})), policy, firewall, 10_000, 1024, MemoryBudget(1 << 29), 0
        )
        made = PaqetServer(reactor, settings)
        with self._inside(first=False):
            made.privilegedStartService()
        made.startService()
        self.servers.append(made)
        self.case.addCleanup(self.stop_server, made)
        return made

    def stop_server(self, server: PaqetServer) -> Any:
        """Stop a server, once."""
        if server in self.servers:
            self.servers.remove(server)
            return server.stopService()
        return None

    def tunnel(self, kcp: str = "", connections: int = 1, firewall: bool = True, **sections: Any) -> PaqetTunnel:
        """Start a client."""
        setup = self.setup("client", kcp, **sections)
        with self._inside(first=True):
            counters = Counters()
            ports = client_ports(reactor, setup, firewall, counters, connections)
            made = PaqetTunnel(reactor, ports, client_config(setup, counters), "the server", self.said.append)
            made.start_ports()
        made.start()
        self.case.addCleanup(made.stop)
        return made

    async def transfer(self, tunnel: PaqetTunnel, up: int = 0, down: int = 0) -> Transfer:
        """Send and fetch, and check what came."""
        transfer = self.begin(tunnel, up, down)
        self.case.assertTrue(await transfer.done)
        assert transfer.transport is not None
        transfer.transport.loseConnection()
        return transfer

    def begin(self, tunnel: PaqetTunnel, up: int = 0, down: int = 0) -> Transfer:
        """Begin a transfer."""
        transfer = Transfer(up, down)
        endpoint = tunnel.stream_endpoint(self.target)
        endpoint.connect(_factory(lambda: transfer)).addErrback(transfer.done.errback)
        return transfer

    async def datagrams(self, tunnel: PaqetTunnel) -> Datagrams:
        """A flow to the echo."""
        flow = Datagrams()
        await tunnel.datagram_endpoint(self.udp_target).connect(_factory(lambda: flow))
        return flow


def _factory(make: Callable[[], Any]) -> Factory:
    made = Factory.forProtocol(make)
    made.noisy = False
    return made


async def until(condition: Callable[[], object], what: str, most: float = 20.0) -> None:
    """Wait for something."""
    for _ in range(int(most / 0.02)):
        if condition():
            return
        await deferLater(reactor, 0.02)  # type: ignore[arg-type]
    raise AssertionError(f"{what} did not come within {most} s")


def run(work: Coroutine[Any, Any, None]) -> Any:
    """A test of a coroutine."""
    return defer.ensureDeferred(work)


def make_pair(case: TestCase) -> VethPair:
    """Namespaces for a test, or a skip."""
    stack = ExitStack()
    pair = stack.enter_context(VethPair())
    case.addCleanup(stack.close)
    return pair


class Capture:
    """Every frame that crosses the client's (or the server's) interface, as a context manager; drain it often."""

    def __init__(self, ends: Ends, first: bool) -> None:
        assert ends.pair is not None
        space = ends.pair.first if first else ends.pair.second
        with space.entered():
            self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
        self._socket.setsockopt(socket.SOL_SOCKET, _RCVBUFFORCE, 64 << 20)
        self._socket.bind((space.interface, 3))
        self._socket.setblocking(False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def frames(self) -> list[TcpFrame]:
        """The TCP frames of IPv4 that came since the last call."""
        found = []
        with suppress(BlockingIOError):
            while True:
                frame = self._socket.recv(65536)
                if frame[12:14] == b"\x08\x00" and frame[23] == 6:
                    found.append(TcpFrame(frame))
        return found

    def send(self, frame: bytes) -> None:
        """Put a frame on the wire."""
        self._socket.send(frame)


class TcpFrame:
    """An Ethernet frame with a TCP segment over IPv4."""

    def __init__(self, frame: bytes) -> None:
        self.frame = frame
        ip_length = (frame[14] & 15) * 4
        self._tcp = 14 + ip_length
        self.source_port, self.destination_port = struct.unpack_from("!HH", frame, self._tcp)
        self.flags = int.from_bytes(frame[self._tcp + 12 : self._tcp + 14], "big") & 0x1FF
        end = 14 + int.from_bytes(frame[16:18], "big")
        self.payload = frame[self._tcp + (frame[self._tcp + 12] >> 4) * 4 : end]

    def garbled(self, number: int) -> bytes:
        """Another payload under the same checksum, which does not care in what order words come."""
        payload = bytearray(self.payload)
        count = len(payload) // 2
        a, b = (2 * ((number * step) % count) for step in (7, 11))
        payload[a : a + 2], payload[b : b + 2] = payload[b : b + 2], payload[a : a + 2]
        start = self.frame.index(self.payload)
        return self.frame[:start] + bytes(payload) + self.frame[start + len(payload) :]

    def turned_round(self) -> bytes:
        """The same segment from its receiver to its sender, which leaves every checksum right."""
        frame, tcp = self.frame, self._tcp
        return (
            frame[6:12]
            + frame[0:6]
            + frame[12:26]
            + frame[30:34]
            + frame[26:30]
            + frame[34:tcp]
            + frame[tcp + 2 : tcp + 4]
            + frame[tcp : tcp + 2]
            + frame[tcp + 4 :]
        )
