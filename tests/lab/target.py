"""The target behind a tunnel, and what an application does with it. asyncio, one process for both.

A connection to the target begins with one line: ``echo`` sends everything back; ``down SIZE SEED`` sends that many
bytes of a seeded stream and ends; ``up SIZE SEED`` takes and checks them and answers one byte, ``1`` if all were right;
``hold`` keeps silent. The seeded streams are the same on both sides, so that every byte is checked where it arrives.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import socket
import struct
from collections.abc import AsyncIterator

_BLOCK = random.Random(0).randbytes(1_000_003)


def content(seed: int, offset: int, size: int) -> bytes:
    """``size`` bytes of a seeded endless stream."""
    at = (offset + seed * 7919) % len(_BLOCK)
    out = _BLOCK[at : at + size]
    while len(out) < size:
        out += _BLOCK[: size - len(out)]
    return out


class Target:
    """A listening target on loopback.

    :ivar opened: connections so far. :ivar received: what each brought, if ``keep`` is true.
    :ivar short_ends: how uploads ended that did not bring all they promised: ``fin`` or ``reset``.
    """

    def __init__(self, keep: bool = False) -> None:
        self.opened = 0
        self.received: list[bytearray] = []
        self.short_ends: list[str] = []
        self.port = 0
        self._keep = keep
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Target]:
        """Listen as long as the context lasts."""
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=4096)
        self.port = self._server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            self._server.close()
            for task in self._tasks:
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.opened += 1
        try:
            await self._serve(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass
        finally:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._keep:
            kept = bytearray()
            self.received.append(kept)
            while data := await reader.read(65536):
                kept += data
            return
        words = (await reader.readline()).split()
        if words == [b"echo"]:
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        elif words[:1] == [b"down"]:
            await send(writer, int(words[1]), int(words[2]))
        elif words[:1] == [b"up"]:
            try:
                right = await receive(reader, int(words[1]), int(words[2]))
            except ConnectionError:
                self.short_ends.append("reset")
                raise
            if not right:
                self.short_ends.append("fin")
            writer.write(b"1" if right else b"0")
            await writer.drain()
        else:
            await reader.read()


async def send(writer: asyncio.StreamWriter, size: int, seed: int, rng: random.Random | None = None) -> None:
    """Write a seeded stream, in pieces of 64 KiB or, with ``rng``, of random sizes up to 1 MiB."""
    sent = 0
    while sent < size:
        piece = min(size - sent, 65536 if rng is None else _random_size(rng))
        writer.write(content(seed, sent, piece))
        await writer.drain()
        sent += piece


def _random_size(rng: random.Random) -> int:
    """Mostly small, now and then large: 1 byte to 1 MiB, evenly over the powers of two."""
    return rng.randint(1, 1 << rng.randint(0, 20))


async def receive(reader: asyncio.StreamReader, size: int, seed: int) -> bool:
    """Read a seeded stream to its last byte; whether every byte was right."""
    got = 0
    while got < size:
        data = await reader.read(min(262144, size - got))
        if not data or data != content(seed, got, len(data)):
            return False
        got += len(data)
    return True


class SocksError(ConnectionError):
    """A SOCKS server said no."""


async def connect(
    socks_port: int, port: int, host: str = "127.0.0.1"
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A connection to ``host:port`` through a SOCKS5 door on loopback; host is a name or an IPv4 address.

    :raises ConnectionError: if the door is closed, or refuses.
    """
    reader, writer = await asyncio.open_connection("127.0.0.1", socks_port, limit=262144)
    try:
        try:
            address = b"\x01" + socket.inet_aton(host)
        except OSError:
            address = b"\x03" + bytes([len(host)]) + host.encode()
        writer.write(b"\x05\x01\x00")
        if await reader.readexactly(2) != b"\x05\x00":
            raise SocksError("the door wants credentials")
        writer.write(b"\x05\x01\x00" + address + struct.pack("!H", port))
        reply = await reader.readexactly(4)
        if reply[1]:
            raise SocksError(f"reply {reply[1]}")
        await reader.readexactly({1: 4, 4: 16}[reply[3]] + 2)
    except asyncio.IncompleteReadError as error:
        writer.close()
        raise SocksError("the door closed early") from error
    except BaseException:
        writer.close()
        raise
    return reader, writer


def abort(writer: asyncio.StreamWriter) -> None:
    """Let go of a connection with a reset."""
    writer.transport.abort()
