"""A NitroSocks server and client in memory, with TLS that changes nothing and a wire that the test can cut and bend."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from functools import partial
from typing import Any

from OpenSSL import SSL
from twisted.internet import error
from twisted.internet.defer import Deferred, fail, succeed
from twisted.internet.interfaces import IProtocol
from twisted.internet.protocol import Factory
from twisted.internet.task import Clock
from twisted.python.failure import Failure

from mikanet.address import Address
from mikanet.filters.base import FilterFactory
from mikanet.guard.targets import Place, TargetLimits, Targets
from mikanet.nitrosocks.client import NitroTunnel, Server
from mikanet.nitrosocks.client_protocol import NitroClientConfig
from mikanet.nitrosocks.keys import decrypt_challenge, encrypt_challenge, length_key
from mikanet.nitrosocks.protocol import NitroServerConfig, NitroServerFactory, RealmConfig
from mikanet.nitrosocks.realm import Realm
from mikanet.nitrosocks.tls import TlsFilter
from mikanet.nitrosocks.wire import MAX_BODY, SALT, Direction, HeaderMask, Packet, PacketReader
from mikanet.relay import RelayEnd
from tests.nitrosocks.golden import K0, PRIVATE, PUBLIC, TOKEN
from tests.support.transports import DONE, LOST, MemoryTransport

REFUSAL_TIME = 75.0


class PlainConnection:
    """What pyOpenSSL's connection does, without any TLS: bytes stay as they are, and a shutdown sends nothing."""

    def __init__(self, name: bytes | None) -> None:
        self._name = name
        self._inbox = bytearray()
        self._outbox = bytearray()

    def do_handshake(self) -> None:
        """Done at once."""

    def get_servername(self) -> bytes | None:
        """As the client asked for."""
        return self._name

    def export_keying_material(self, label: bytes, size: int) -> bytes:
        """The same at both ends."""
        return hashlib.sha256(label).digest()[:size]

    def bio_write(self, data: bytes) -> None:
        """Bytes from below."""
        self._inbox += data

    def recv(self, size: int) -> bytes:
        """Bytes for above."""
        return self._take(self._inbox, size)

    def sendall(self, data: bytes) -> None:
        """Bytes from above."""
        self._outbox += data

    def bio_read(self, size: int) -> bytes:
        """Bytes for below."""
        return self._take(self._outbox, size)

    def shutdown(self) -> bool:
        """Nothing."""
        return True

    @staticmethod
    def _take(box: bytearray, size: int) -> bytes:
        if not box:
            raise SSL.WantReadError
        data = bytes(box[:size])
        del box[:size]
        return data


class PlainSide:
    """A TlsSide without TLS."""

    def __init__(self, name: bytes | None = b"localhost") -> None:
        self.name = name

    def connection(self) -> Any:
        """A connection."""
        return PlainConnection(self.name)

    def verify(self, connection: Any) -> None:
        """Everything is fine."""


class Way:
    """One direction of a wire: cuts what passes into packets, so that a test can name them.

    :ivar seen: packets that passed, header and body as they travelled.
    """

    def __init__(self, direction: Direction, k0: bytes) -> None:
        self._direction = direction
        self._k0 = k0
        self._reader = PacketReader(MAX_BODY)
        self._buffer = bytearray()
        self.seen: list[bytes] = []
        self.packets: list[Packet] = []

    def feed(self, data: bytes) -> list[bytes]:
        """The salt or packets that ``data`` completes, each as its bytes."""
        pieces = []
        self._buffer += data
        self._reader.feed(data)
        while True:
            if self._reader.mask is None:
                packet = self._reader.next()
                if self._reader.salt is None:
                    return pieces
                self._reader.mask = HeaderMask(length_key(self._k0, self._reader.salt, self._direction))
                pieces.append(self._pop(SALT))
                continue
            packet = self._reader.next()
            if packet is None:
                return pieces
            self.packets.append(packet)
            pieces.append(self._pop(3 + len(packet.body)))

    def _pop(self, size: int) -> bytes:
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data


class Wire:
    """One connection. What is written at one end arrives at the other when :meth:`carry` is called, piece by piece.

    :ivar joined: whether pieces that are there together arrive as one. :ivar bend: called with the way (0 up, 1 down), the number of the piece on this wire and the piece; gives the pieces
        that arrive instead, or None to cut the connection there.
    """

    def __init__(
        self, client: Any, server: Any, k0: bytes, bend: Callable[[int, int, bytes], list[bytes] | None]
    ) -> None:
        self.ends = (MemoryTransport("192.0.2.99"), MemoryTransport("192.0.2.1"))
        self.bend = bend
        self.ways = (Way(Direction.CLIENT, k0), Way(Direction.SERVER, k0))
        self.count = 0
        self.dead = False
        self.joined = False
        self._taken = [0, 0]
        self.ends[0].connect(client)
        self.ends[1].connect(server)

    def carry(self) -> bool:
        """Carry what there is in both directions, once; whether anything happened."""
        return any([self._one(0), self._one(1)])

    def _one(self, way: int) -> bool:
        source, target = self.ends[way], self.ends[1 - way]
        if self.dead:
            return False
        fresh = source.written[self._taken[way] :]
        self._taken[way] += len(fresh)
        arriving = []
        for piece in self.ways[way].feed(b"".join(fresh)):
            bent = self.bend(way, self.count, piece)
            self.count += 1
            if bent is None:
                for each in arriving:
                    target.receive(each)
                self.cut()
                return True
            arriving += bent
        for each in [b"".join(arriving)] if self.joined and arriving else arriving:
            if not target.gone and not target.aborted:
                target.receive(each)
        if source.aborted or source.closed:
            self.dead = True
            source.settle()
            if target.aborted or target.closed:
                target.settle()
            else:
                target.lose(LOST if source.aborted else DONE)
            return True
        return bool(fresh)

    def cut(self) -> None:
        """The network breaks."""
        self.dead = True
        for end in self.ends:
            end.lose(LOST)


class MemoryEgress:
    """Connects to targets in memory.

    :ivar targets: those that were connected, with what they got.
    """

    def __init__(self) -> None:
        self.targets: list[MemoryTransport] = []
        self.destinations: list[Address] = []
        self.fails: Exception | None = None
        self.holds = False
        self.held: list[tuple[Deferred[IProtocol], Factory]] = []

    def connect(self, destination: Address, factory: Any, user: Any = None) -> Deferred[IProtocol]:
        """As :meth:`Egress.connect`."""
        self.destinations.append(destination)
        if self.fails is not None:
            return fail(self.fails)
        if self.holds:
            done: Deferred[IProtocol] = Deferred()
            self.held.append((done, factory))
            return done
        return succeed(self._make(factory))

    def find(self, destination: Address, user: Any = None) -> Deferred[Any]:
        """As :meth:`Egress.find`, by a resolver that never answers."""
        self.destinations.append(destination)
        return Deferred()

    def take(self, user: object, files: int = 1) -> Place | None:
        """There is always room."""
        return Targets(TargetLimits(files, files)).take(None, files)

    def _make(self, factory: Any) -> Any:
        transport = MemoryTransport()
        self.targets.append(transport)
        return transport.connect(factory.buildProtocol(None))

    def release(self) -> None:
        """Connect what was held."""
        for done, factory in self.held:
            done.callback(self._make(factory))
        self.held.clear()


class App(RelayEnd):
    """An application's end of a stream: collects, or holds."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.reason: Failure | None = None

    def dataReceived(self, data: bytes) -> None:
        """Collect."""
        self.got += data

    def readConnectionLost(self) -> None:
        """Note it."""
        self._read_ended = True

    def connectionLost(self, reason: Any = None) -> None:
        """Note it."""
        self.reason = reason
        super().connectionLost(reason)

    @property
    def ended(self) -> bool:
        """Whether the other side ended its direction."""
        return self._read_ended


class World:
    """A server, a client, their clock and all wires between them.

    :ivar bend: for wires that are made from now on, called with the wire's number before the other arguments.
    """

    def __init__(
        self, seed: int = 1, server: dict[str, Any] | None = None, client: dict[str, Any] | None = None
    ) -> None:
        self.clock = Clock()
        self.rng = random.Random(seed)
        self.egress = MemoryEgress()
        self.wires: list[Wire] = []
        self.reachable = True
        self.joined = False
        self.reports: list[str] = []
        self.bend: Callable[[int, int, int, bytes], list[bytes] | None] = lambda wire, way, count, piece: [piece]
        self.realm = Realm("", [TOKEN], lambda: 1.7e9 + self.clock.seconds())
        realm_config = RealmConfig(self.realm, K0, partial(encrypt_challenge, PUBLIC))
        values: dict[str, Any] = {
            "realms": {"": realm_config},
            "egress": self.egress,
            "refusal_time": REFUSAL_TIME,
            "random_bytes": self.rng.randbytes,
            **(server or {}),
        }
        self.server = NitroServerFactory(self.clock, NitroServerConfig(**values))
        self.server_side = PlainSide()
        values = {
            "tls": PlainSide(),
            "k0": K0,
            "decrypt": partial(decrypt_challenge, PRIVATE),
            "token": TOKEN.secret,
            "random_bytes": self.rng.randbytes,
            "wall_clock": lambda: 1.7e9 + self.clock.seconds(),
            **(client or {}),
        }
        config = NitroClientConfig(**values)
        self.tunnel = NitroTunnel(self.clock, [Server("memory", self)], config, self.reports.append)

    def connect(self, factory: Any) -> Deferred[IProtocol]:
        """As an endpoint: a new wire."""
        if not self.reachable:
            return fail(error.ConnectionRefusedError())
        number = len(self.wires)
        accept = FilterFactory(self.server, lambda upper: TlsFilter(upper, self.server_side))
        client = factory.buildProtocol(None)
        server = accept.buildProtocol(MemoryTransport("192.0.2.1").peer)
        wire = Wire(client, server, K0, lambda *args: self.bend(number, *args))
        wire.joined = self.joined
        self.wires.append(wire)
        return succeed(client)

    def raw(self) -> MemoryTransport:
        """A connection to the server whose client is the test."""
        accept = FilterFactory(self.server, lambda upper: TlsFilter(upper, self.server_side))
        transport = MemoryTransport("192.0.2.1")
        transport.connect(accept.buildProtocol(transport.peer))
        return transport

    def settle(self, seconds: float = 0.0, step: float = 0.25) -> None:
        """Carry until nothing moves; with ``seconds``, let so much time pass meanwhile."""
        self.carry()
        passed = 0.0
        while passed < seconds:
            self.clock.advance(step)
            passed += step
            self.carry()
        if not seconds:
            self.clock.advance(0)
            self.carry()

    def carry(self) -> None:
        """Carry all bytes."""
        moved = True
        while moved:
            moved = any(wire.carry() for wire in list(self.wires))

    def open(self, datagrams: bool = False) -> tuple[App, list[Any]]:
        """Open a stream: its application, and how that went: the protocol or a failure."""
        app = App()
        factory = Factory.forProtocol(lambda: app)  # type: ignore[arg-type]  # a callable is enough
        factory.noisy = False
        outcome: list[Any] = []
        destination = Address("192.0.2.80", 80)
        make = self.tunnel.datagram_endpoint if datagrams else self.tunnel.stream_endpoint
        make(destination).connect(factory).addBoth(outcome.append)
        return app, outcome
