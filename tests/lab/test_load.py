"""Tests of :mod:`tests.lab.load`, :mod:`tests.lab.soak` and :mod:`tests.lab.target`: bad tunnels are found."""

from __future__ import annotations

import asyncio
import contextlib
import os
import struct
from collections.abc import AsyncIterator, Awaitable, Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.lab import load
from tests.lab.load import Result
from tests.lab.soak import _Soak
from tests.lab.target import Target, connect, content, receive
from tests.lab.tunnels import Tunnel
from tests.support.processes import fds, rss


class FakeTunnel(Tunnel):
    """A SOCKS server in this process, with a fault of choice: ``""``, ``wrong``, ``short`` or ``leak``."""

    def __init__(self, fault: str = "") -> None:
        self.fault = fault
        self.leaked: list[object] = []
        self.socks_port = self.server_port = 0
        self._past_logs = []
        self.server = self.client = None

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[FakeTunnel]:
        """Serve as long as the context lasts."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.socks_port = self.server_port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()

    server_pid = client_pid = os.getpid()

    def usage(self) -> dict[str, float]:
        """Of this process, for both."""
        return {f"{side} {what}": value for side in ("server", "client") for what, value in self._figures().items()}

    def _figures(self) -> dict[str, float]:
        return {"rss": rss(os.getpid()), "fds": fds(os.getpid()), "cpu": 0.0}

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readexactly(3)
            writer.write(b"\x05\x00")
            head = await reader.readexactly(10)
            port = struct.unpack("!H", head[8:])[0]
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"\x05\x00\x00\x01" + bytes(6))
            if self.fault == "leak":
                self.leaked.append(open(os.devnull))  # noqa: SIM115
            await asyncio.gather(self._pump(reader, far_writer), self._pump(far_reader, writer, self.fault))
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            writer.close()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, fault: str = "") -> None:
        passed = 0
        with contextlib.suppress(ConnectionError):
            while data := await reader.read(4096):
                passed += len(data)
                if fault == "wrong" and passed > 500:
                    data = data[:-1] + bytes([data[-1] ^ 1])
                if fault == "short" and passed > 500:
                    break
                writer.write(data)
                await writer.drain()
        writer.close()


def run(fault: str, use: Callable[[Tunnel, Target], Awaitable[Result]]) -> Result:
    """Use a fake tunnel with a target."""

    async def main() -> Result:
        async with Target().running() as target, FakeTunnel(fault).running() as tunnel:
            return await use(tunnel, target)

    return asyncio.run(main())


class TargetTests(SynchronousTestCase):
    """Both sides know every byte."""

    def test_content_is_one_stream(self) -> None:
        """Any cut of a seeded stream is a cut of the same stream, and seeds differ."""
        whole = content(3, 0, 3_000_000)
        self.assertEqual(whole[1_234_567:1_334_567], content(3, 1_234_567, 100_000))
        self.assertNotEqual(content(3, 0, 100), content(4, 0, 100))

    def test_through_a_good_tunnel(self) -> None:
        """The target's commands work through SOCKS."""

        async def use(tunnel: Tunnel, target: Target) -> Result:
            reader, writer = await connect(tunnel.socks_port, target.port)
            writer.write(b"down 100000 9\n")
            self.assertTrue(await receive(reader, 100_000, 9))
            self.assertEqual(await reader.read(), b"")
            writer.close()
            self.assertEqual(target.opened, 1)
            return Result("")

        run("", use)

    def test_a_refusal_is_an_error(self) -> None:
        """A port where nobody listens behind the door is a ConnectionError."""

        async def use(tunnel: Tunnel, target: Target) -> Result:
            with self.assertRaises(ConnectionError):
                await connect(tunnel.socks_port, 1)
            return Result("")

        run("", use)


class LoadTests(SynchronousTestCase):
    """Good tunnels pass and bad ones are found."""

    def test_a_good_tunnel_has_no_faults(self) -> None:
        """Echo, transfer, idle, slow readers and soak work on a plain SOCKS server."""
        for use in (
            lambda t, g: load.echo(t, g, 5, 100_000),
            lambda t, g: load.transfer(t, g, 300_000),
            lambda t, g: load.idle(t, g, 20, 0.1),
            lambda t, g: load.slow_readers(t, g, 3, 0.5),
        ):
            self.assertEqual(run("", use).faults, [])

    def test_wrong_bytes_are_found(self) -> None:
        """One wrong bit is a fault of every load that moves bytes."""
        for use in (lambda t, g: load.echo(t, g, 2, 10_000), lambda t, g: load.transfer(t, g, 10_000)):
            self.assertTrue(any("wrong" in fault for fault in run("wrong", use).faults))

    def test_a_clean_end_too_early_is_found(self) -> None:
        """A stream that ends cleanly before its last byte is a fault of the soak, even while something is killed."""

        async def use(tunnel: Tunnel, target: Target) -> Result:
            soak = _Soak(tunnel, target, 1, 0, 1)
            soak.down = True
            reader, writer = await connect(tunnel.socks_port, target.port)
            writer.write(b"down 50000 1\n")
            await soak.expect(reader, 50_000, 1, "down")
            writer.close()
            return soak.result

        self.assertIn("a clean end too early", str(run("short", use).faults))

    def test_a_leak_of_files_is_found(self) -> None:
        """Files that stay open after their tunnels are a fault."""

        async def use(tunnel: Tunnel, target: Target) -> Result:
            result = Result("")
            before = tunnel.usage()
            for _ in range(5):
                await load.one_request(tunnel, target)
            await load._files_are_free(tunnel, before, result, 1.0)
            return result

        self.assertTrue(any("open files" in fault for fault in run("leak", use).faults))

    def test_unhandled_errors_are_found_in_logs(self) -> None:
        """A line of any past log that speaks of an unhandled error is found; others are not."""
        tunnel = FakeTunnel()
        tunnel._past_logs = ["good\nUnhandled error in Deferred:\n", "Traceback (most recent call last):\n x\n"]
        self.assertEqual(len(tunnel.unhandled()), 2)

    def test_slopes_and_percentiles(self) -> None:
        """The least squares of points on a line are the line; percentiles are values of the sample."""
        self.assertAlmostEqual(load.slope([(x, 3 * x + 1) for x in range(10)]), 3.0)
        self.assertEqual(load.percentile(range(100), 0.95), 95)
