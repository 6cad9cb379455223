"""``python -m tests.lab.hostile_peers KIND FACTS SECONDS``: forty hostile peers of one kind, in a process of their own.

FACTS is JSON: what of a tunnel a peer may know, see :class:`Facts`. At the end the process prints how many things its
peers did. Each peer does them at a bounded rate, so that it is the server that is measured and not this machine.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import random
import socket
import ssl
import struct
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from mikanet.crypto import rsa_oaep
from mikanet.filters.packetizer import PacketReader, frame
from mikanet.kcp.segment import HEADER, PUSH
from mikanet.megaki.yami import ClientYami, Reply
from mikanet.pickaxe import wire as pickaxe
from tests.lab.target import SocksError, abort, connect

Line = tuple[asyncio.StreamReader, asyncio.StreamWriter]

#: Peers of one kind.
PEERS = 40
#: Datagrams that one peer sends at a time, and things that it does in a second.
BATCH, RATE = 25, 4.0


@dataclasses.dataclass
class Facts:
    """What the peers know.

    :ivar port: of the server. :ivar socks: the door of a client of their own, 0 if there is none. :ivar target: an echo of
        :mod:`tests.lab.target`. :ivar black_hole: a port of loopback whose SYNs stay unanswered.
    :ivar folder: with the keys that Megaki's clients have.
    """

    port: int
    socks: int = 0
    target: int = 0
    black_hole: int = 0
    folder: str = ""


class Peers:
    """Forty of them, until the time is over.

    :ivar done: things that were done.
    """

    def __init__(self, facts: Facts, seconds: float) -> None:
        self.facts = facts
        self.done = 0
        self._until = time.monotonic() + seconds

    async def run(self, peer: Callable[[Peers, int], Awaitable[None]]) -> None:
        """All peers, each again and again."""
        await asyncio.gather(*(self._one(peer, number) for number in range(PEERS)))

    async def _one(self, peer: Callable[[Peers, int], Awaitable[None]], number: int) -> None:
        await asyncio.sleep(number / PEERS / RATE)
        while (left := self._until - time.monotonic()) > 0:
            began = time.monotonic()
            with contextlib.suppress(OSError, TimeoutError, asyncio.IncompleteReadError, ssl.SSLError):
                await asyncio.wait_for(peer(self, number), left)
            await asyncio.sleep(max(0.01, 1 / RATE - (time.monotonic() - began)))

    @contextlib.asynccontextmanager
    async def line(self, number: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[Line]:
        """A connection to the server from an address of the peer's own: reader and writer; reset at the end."""
        source = (f"127.9.{number}.{random.randint(1, 250)}", 0)
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", self.facts.port, local_addr=source, ssl=tls, server_hostname="localhost" if tls else None
        )
        try:
            yield reader, writer
        finally:
            abort(writer)


# -- who is not authenticated


async def garbage(peers: Peers, number: int) -> None:
    """Random bytes, and a wait for what comes."""
    async with peers.line(number) as (reader, writer):
        writer.write(os.urandom(random.randint(1, 400)))
        peers.done += 1
        await asyncio.wait_for(reader.read(), 5)


async def crumbs(peers: Peers, number: int) -> None:
    """Random bytes one by one, slowly."""
    async with peers.line(number) as (_, writer):
        for _ in range(100):
            writer.write(os.urandom(1))
            peers.done += 1
            await writer.drain()
            await asyncio.sleep(0.02)


async def requests(peers: Peers, number: int) -> None:
    """HTTP requests to a server that has a carrier there, with odd bodies, and nothing read."""
    async with peers.line(number) as (_, writer):
        for _ in range(20):
            writer.write(b"POST /t HTTP/1.1\r\nHost: x\r\nContent-Length: 200\r\n\r\n" + os.urandom(200))
            peers.done += 1
            await writer.drain()
            await asyncio.sleep(0.02)


async def hellos(peers: Peers, number: int) -> None:
    """TLS handshakes as a browser makes them, with ALPN, and a request that is none of ours."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2", "http/1.1"])
    async with peers.line(number, context) as (reader, writer):
        writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        peers.done += 1
        await asyncio.wait_for(reader.read(), 1)


async def _login(peers: Peers, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, user: str) -> bytes:
    """Log in by name alone; the SID of the answer."""
    writer.write(frame([pickaxe.encode_login(pickaxe.Login(os.urandom(16), (1, 0), user))]))
    packets: list[bytes] = []
    split = PacketReader()
    while not packets:
        data = await asyncio.wait_for(reader.read(65536), 2)
        if not data:
            raise ConnectionError("the server closed")
        packets = split.feed(data)
    return pickaxe.decode_login_response(bytes(packets[0])).sid


async def fragments(peers: Peers, number: int) -> None:
    """After a login that proves nothing: fragments as small as they may be at every second place, and smaller ones."""
    size = pickaxe.MIN_FRAGMENT if number % 2 else 1
    step = 2 * size
    async with peers.line(number) as (reader, writer):
        sid = await _login(peers, reader, writer, "alice")
        for start in range(0, 60_000 - BATCH * step, BATCH * step):
            head = [
                struct.pack("<B4sHBHH", pickaxe.FRAGMENT, sid, 1, 0, 60_000, start + step * n) for n in range(BATCH)
            ]
            writer.write(frame([each + bytes(size) for each in head]))
            peers.done += BATCH
            await writer.drain()
            await asyncio.sleep(0.02)


async def logins(peers: Peers, number: int) -> None:
    """Logins under the honest user's name, of networks by the dozen."""
    async with peers.line(number) as (_, writer):
        for _ in range(10):
            writer.write(frame([pickaxe.encode_login(pickaxe.Login(os.urandom(16), (1, 0), "alice"))]))
            peers.done += 1
            await writer.drain()
            await asyncio.sleep(0.03)


async def proofs(peers: Peers, number: int) -> None:
    """A login, then a packet that the server must have the session's keys to refuse."""
    async with peers.line(number) as (reader, writer):
        sid = await _login(peers, reader, writer, "alice")
        writer.write(frame([pickaxe.header(pickaxe.DATA, sid, 1, os.urandom(8)) + bytes(64)]))
        peers.done += 1
        await asyncio.wait_for(reader.read(), 0.5)


def _datagrams(make: Callable[[int, int], bytes]) -> Callable[[Peers, int], Awaitable[None]]:
    async def peer(peers: Peers, number: int) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
            sock.bind((f"127.9.{number}.{random.randint(1, 250)}", 0))
            for at in range(4 * BATCH):
                with contextlib.suppress(BlockingIOError):
                    sock.sendto(make(number, at), socket.MSG_DONTWAIT, ("127.0.0.1", peers.facts.port))
                peers.done += 1
                if at % BATCH == BATCH - 1:
                    await asyncio.sleep(0.05)

    return peer


def _code(number: int, at: int) -> bytes:
    """Shards of ever other codes: data and parity in a pattern that changes with each."""
    parity = at % (2 + number) >= 1 + at // 20 % (1 + number)
    kind = 0xF2 if parity else 0xF1
    return struct.pack("<IHH", at, kind, 26) + HEADER.pack(number + 1, PUSH, 0, 128, at, at, 0, 0)


def _early(number: int, at: int) -> bytes:
    """Segments 1, 2, 3, ... and never 0, with 1,300 bytes each."""
    segment = HEADER.pack(random.getrandbits(32) if not at else number + 1, PUSH, 0, 128, at, at + 1, 0, 1300)
    return struct.pack("<IHH", at, 0xF1, 2 + len(segment) + 1300) + segment + bytes(1300)


def _forged(number: int, at: int) -> bytes:
    """A packet that fails its check."""
    return os.urandom(200)


# -- who is authenticated, and has a door of their own


async def _hold(peers: Peers, port: int, host: str = "127.0.0.1") -> None:
    peers.done += 1
    with contextlib.suppress(SocksError):
        _, writer = await connect(peers.facts.socks, port, host)
        try:
            await asyncio.sleep(30)
        finally:
            abort(writer)


async def silent_names(peers: Peers, number: int) -> None:
    """Connections to names whose name server never answers."""
    await _hold(peers, 80, f"silent{number}x{random.getrandbits(32)}.example")


async def black_hole(peers: Peers, number: int) -> None:
    """Twenty connections each to a target that never answers."""
    await asyncio.gather(*(_hold(peers, peers.facts.black_hole) for _ in range(20)))


async def unread(peers: Peers, number: int) -> None:
    """A download of 100 MB that is not read."""
    _, writer = await connect(peers.facts.socks, peers.facts.target)
    try:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"down 100000000 1\n")
        peers.done += 1
        await asyncio.sleep(30)
    finally:
        abort(writer)


async def abandoned(peers: Peers, number: int) -> None:
    """A request that is left before its answer has come."""
    _, writer = await connect(peers.facts.socks, peers.facts.target)
    writer.write(b"down 100000 1\n")
    peers.done += 1
    await asyncio.sleep(0.002)
    abort(writer)


async def tiny(peers: Peers, number: int) -> None:
    """Bytes one by one, as fast as they go into segments of their own."""
    _, writer = await connect(peers.facts.socks, peers.facts.target)
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    try:
        writer.write(b"hold\n")
        for _ in range(200):
            for _ in range(5):
                writer.write(b"x")
                await asyncio.sleep(0)
            peers.done += 5
            await writer.drain()
            await asyncio.sleep(0.05)
    finally:
        abort(writer)


# -- Megaki


def _yami(peers: Peers) -> tuple[ClientYami, rsa_oaep.PublicKey, rsa_oaep.PrivateKey]:
    folder = Path(peers.facts.folder)
    server = rsa_oaep.load_public((folder / "server.pub").read_bytes(), "server.pub")
    return ClientYami(os.urandom), server, rsa_oaep.load_private((folder / "client.key").read_bytes(), "client.key")


async def half_handshakes(peers: Peers, number: int) -> None:
    """The first packet of a handshake, and nothing after it."""
    async with peers.line(number) as (reader, writer):
        client, server, key = _yami(peers)
        writer.write(client.connect(server, key))
        peers.done += 1
        await asyncio.wait_for(reader.read(65536), 2)
        await asyncio.sleep(1)


async def _event(client: ClientYami, reader: asyncio.StreamReader) -> object:
    while (event := client.next_event()) is None:
        data = await asyncio.wait_for(reader.read(65536), 5)
        if not data:
            raise ConnectionError("the server closed")
        client.feed(data)
    return event


_saved: dict[int, object] = {}


async def resuming(peers: Peers, number: int) -> None:
    """Sessions that are resumed again and again from one address, each with a request."""
    source = ("127.9.0.1", 0)
    reader, writer = await asyncio.open_connection("127.0.0.1", peers.facts.port, local_addr=source)
    try:
        client, server, key = _yami(peers)
        if number in _saved:
            writer.write(client.resume(_saved.pop(number)))  # type: ignore[arg-type]  # as it was saved
            await _event(client, reader)
        else:
            writer.write(client.connect(server, key))
            while isinstance(event := await _event(client, reader), Reply):
                writer.write(event.reply)
        _saved[number] = client.saved
        writer.write(client.send_message(b"x" * 100))
        peers.done += 1
        await _event(client, reader)
    finally:
        abort(writer)


async def left_requests(peers: Peers, number: int) -> None:
    """Requests whose sessions end before the answer."""
    async with peers.line(number) as (reader, writer):
        client, server, key = _yami(peers)
        writer.write(client.connect(server, key))
        while isinstance(event := await _event(client, reader), Reply):
            writer.write(event.reply)
        writer.write(client.send_message(b"x" * 100))
        peers.done += 1
        await writer.drain()


#: Every kind, by its name.
KINDS: dict[str, Callable[[Peers, int], Awaitable[None]]] = {
    "garbage": garbage,
    "crumbs": crumbs,
    "requests": requests,
    "hellos": hellos,
    "fragments": fragments,
    "logins": logins,
    "proofs": proofs,
    "codes": _datagrams(_code),
    "early-segments": _datagrams(_early),
    "forged": _datagrams(_forged),
    "silent-names": silent_names,
    "black-hole": black_hole,
    "unread": unread,
    "abandoned": abandoned,
    "tiny": tiny,
    "half-handshakes": half_handshakes,
    "resuming": resuming,
    "left-requests": left_requests,
}


def main() -> None:
    """Run one kind."""
    kind, facts, seconds = sys.argv[1:]
    peers = Peers(Facts(**json.loads(facts)), float(seconds))
    asyncio.run(peers.run(KINDS[kind]))
    print(json.dumps({"done": peers.done}))


if __name__ == "__main__":
    main()
