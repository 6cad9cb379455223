"""paqet live: raw TCP packets between two network namespaces, and UDP on loopback, everything in this process."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet import error, reactor
from twisted.internet.task import deferLater
from twisted.trial.unittest import TestCase

from mikanet.crypto.packet_keys import BLOCKS
from tests.interop.paqet_ends import Capture, Ends, TcpFrame, make_pair, run, until

#: Ciphers in plain Python carry less.
SLOW = frozenset({"salsa20", "twofish", "tea", "xtea"})


class UdpTests(TestCase):
    """The same without root."""

    timeout = 60.0

    def test_both_ways(self) -> Any:
        """Megabytes both ways over UDP, on two connections, and datagrams."""

        async def work() -> None:
            ends = Ends(self, None)
            ends.server()
            tunnel = ends.tunnel(connections=2, more="conn: 2")
            for _ in range(2):
                await ends.transfer(tunnel, 1_000_000, 1_000_000)
            flow = await ends.datagrams(tunnel)
            for size in (1, 1400, 4096):
                flow.transport.write(bytes(size))  # type: ignore[union-attr]
            await until(lambda: [len(each) for each in flow.got] == [1, 1400, 4096], "the echoes")
            self.assertEqual(len(ends.seen), 2)

        return run(work())

    def test_server_that_restarts(self) -> Any:
        """A download whose server is restarted ends in a reset; the next one goes through the new server by itself."""

        async def work() -> None:
            ends = Ends(self, None)
            first = ends.server()
            tunnel = ends.tunnel("smuxkalive: 1\nsmuxktimeout: 1")
            cut = ends.begin(tunnel, 0, 300_000_000)
            await until(lambda: cut.got > 1_000_000, "the download")
            await ends.stop_server(first)
            ends.server()
            with self.assertRaises((error.ConnectionLost, error.TimeoutError)):
                await cut.done
            assert cut.lost is not None
            self.assertIsNot(cut.lost.type, error.ConnectionDone)
            await ends.transfer(tunnel, 1000, 1_000_000)

        return run(work())


class RawTests(TestCase):
    """Raw TCP packets."""

    timeout = 120.0

    def ends(self, ipv6: bool = False) -> Ends:
        """Two namespaces."""
        return Ends(self, make_pair(self), ipv6)

    def test_every_cipher(self) -> Any:
        """Every block there is carries bytes both ways, one after the other on the same port."""

        async def work() -> None:
            ends = self.ends()
            for block in BLOCKS:
                size = 30_000 if block in SLOW else 300_000
                kcp = f"block: {block}\nmode: fast3"
                server = ends.server(kcp)
                tunnel = ends.tunnel(kcp)
                await ends.transfer(tunnel, size, size)
                await tunnel.stop()
                await ends.stop_server(server)

        return run(work())

    def test_fec(self) -> Any:
        """FEC at both ends, at one end only, and with unlike shards."""

        async def work() -> None:
            ends = self.ends()
            for ours, theirs in (
                ("dshard: 10\npshard: 3", "dshard: 10\npshard: 3"),
                ("dshard: 10\npshard: 3", ""),
                ("", "dshard: 4\npshard: 2"),
                ("dshard: 4\npshard: 2", "dshard: 10\npshard: 3"),
            ):
                server = ends.server(theirs)
                tunnel = ends.tunnel(ours)
                await ends.transfer(tunnel, 200_000, 500_000)
                await tunnel.stop()
                await ends.stop_server(server)

        return run(work())

    def test_ipv6(self) -> Any:
        """IPv6, and what the files leave out is found: addresses, stations, interface."""

        async def work() -> None:
            ends = self.ends(ipv6=True)
            ends.server("block: aes-128-gcm")
            await ends.transfer(ends.tunnel("block: aes-128-gcm"), 500_000, 1_000_000)

        return run(work())

    def test_several_connections_and_datagrams(self) -> Any:
        """Three connections take streams in turn; datagrams of every size up to 4096 come back whole, in order."""

        async def work() -> None:
            ends = self.ends()
            server = ends.server()
            tunnel = ends.tunnel(connections=3, more="conn: 3")
            await until(lambda: all(each.live for each in tunnel.connections), "three live connections")
            for _ in range(6):
                await ends.transfer(tunnel, 100_000, 200_000)
            self.assertEqual(server.counters["kcp.server.opened"], 3)
            flow = await ends.datagrams(tunnel)
            sizes = [1, 2, 1305, 1306, 1307, 4095, 4096]
            for size in [*sizes, 4097]:
                flow.transport.write(os.urandom(size))  # type: ignore[union-attr]
            await until(lambda: len(flow.got) == len(sizes), "the echoes")
            self.assertEqual([len(each) for each in flow.got], sizes)

        return run(work())

    def test_flag_lists(self) -> Any:
        """The server answers with the flags that the client asked for, each side in turn through its list."""

        async def work() -> None:
            ends = self.ends()
            ends.server(network='tcp: {local_flag: ["PA"]}')
            tunnel = ends.tunnel(network='tcp: {local_flag: ["S", "PA"], remote_flag: ["A", "FA"]}')
            with Capture(ends, first=True) as capture:
                await ends.transfer(tunnel, 20_000, 20_000)
                frames = capture.frames()
            to_client = {frame.flags for frame in frames if frame.source_port == ends.port}
            to_server = {frame.flags for frame in frames if frame.source_port != ends.port and frame.payload}
            self.assertEqual(to_server, {0x02, 0x18})
            self.assertTrue({0x10, 0x11} <= to_client <= {0x10, 0x11, 0x18}, to_client)

        return run(work())

    def test_no_kernel_resets(self) -> Any:
        """Neither kernel says a word: there is no RST on the wire during transfers, both ways."""

        async def work() -> None:
            ends = self.ends()
            ends.server()
            tunnel = ends.tunnel()
            with Capture(ends, first=True) as capture:
                await ends.transfer(tunnel, 300_000, 300_000)
                resets = [frame for frame in capture.frames() if frame.flags & 4]
            self.assertEqual(resets, [])

        return run(work())

    def test_interface_down_and_up(self) -> Any:
        """A download lives through an interface that goes down for two seconds, at either end."""

        async def work() -> None:
            ends = self.ends()
            assert ends.pair is not None
            ends.server()
            tunnel = ends.tunnel()
            transfer = ends.begin(tunnel, 0, 30_000_000)
            at = 1_000_000
            for space in (ends.pair.first, ends.pair.second):
                await until(lambda at=at: transfer.got > at, "the download")
                space.run(["ip", "link", "set", space.interface, "down"])
                await deferLater(reactor, 2.0)  # type: ignore[arg-type]
                space.run(["ip", "link", "set", space.interface, "up"])
                at = transfer.got + 1_000_000
            self.assertTrue(await transfer.done)

        return run(work())

    def test_server_restart(self) -> Any:
        """A download whose server is restarted is reset in time, and the next one works on the same raw port."""

        async def work() -> None:
            ends = self.ends()
            first = ends.server()
            tunnel = ends.tunnel("smuxkalive: 1\nsmuxktimeout: 1")
            cut = ends.begin(tunnel, 0, 300_000_000)
            await until(lambda: cut.got > 1_000_000, "the download")
            await ends.stop_server(first)
            ends.server()
            with self.assertRaises((error.ConnectionLost, error.TimeoutError)):
                await cut.done
            await ends.transfer(tunnel, 1000, 1_000_000)

        return run(work())

    def test_wrong_key_and_wrong_dialect(self) -> Any:
        """A client with another key, or another dialect, opens nothing and is told what is wrong."""

        async def work() -> None:
            ends = self.ends()
            server = ends.server(ours="dialect: a21")
            stranger = ends.tunnel('key: "another key of good length"\nsmuxktimeout: 2')
            await until(lambda: ends.said, "a word")
            self.assertIn(
                "answers nothing; trying again: check that it runs, that key and block are its own", ends.said[0]
            )
            self.assertEqual(server.counters["kcp.server.opened"], 0)
            await stranger.stop()
            ends.said.clear()
            ends.tunnel(ours="dialect: gob")
            await until(lambda: ends.said, "a word")
            self.assertIn("speaks dialect a21 and not gob: write dialect: a21 under mikanet:", ends.said[0])
            self.assertEqual(ends.seen, [])

        return run(work())


class AttackTests(TestCase):
    """Who can send packets and has no key: recordings, reflections, forged sources."""

    timeout = 60.0

    async def recorded(self, ends: Ends) -> list[TcpFrame]:
        """A session that opened a target, as its packets."""
        with Capture(ends, first=True) as capture:
            tunnel = ends.tunnel()
            await ends.transfer(tunnel, 10_000, 10_000)
            await tunnel.stop()
            return [frame for frame in capture.frames() if frame.payload]

    def test_replayed_session(self) -> Any:
        """A recorded session, sent to a server that has forgotten everything, opens nothing and gets next to nothing."""

        async def work() -> None:
            ends = Ends(self, make_pair(self))
            first = ends.server()
            recorded = [frame for frame in await self.recorded(ends) if frame.destination_port == ends.port]
            await ends.stop_server(first)
            server = ends.server()
            targets = len(ends.seen)
            with Capture(ends, first=True) as wire:
                for frame in recorded:
                    wire.send(frame.frame)
                await until(lambda: server.counters["kcp.server.opened"] == 1, "the replayed session")
                await deferLater(reactor, 6.0)  # type: ignore[arg-type]
                answers = [frame for frame in wire.frames() if frame.source_port == ends.port and frame.payload]
            self.assertEqual(len(ends.seen), targets)
            self.assertEqual([name for name in server.counters.snapshot() if name.startswith("paqet.server")], [])
            sent = sum(len(frame.payload) for frame in recorded)
            self.assertLessEqual(sum(len(frame.payload) for frame in answers), 3 * sent)
            await ends.transfer(ends.tunnel(), 1000, 1000)

        return run(work())

    def test_reflected_packets(self) -> Any:
        """Packets that come back to whoever sent them, in the middle of a transfer, change nothing at either end."""

        async def work() -> None:
            ends = Ends(self, make_pair(self))
            server = ends.server()
            tunnel = ends.tunnel()
            await ends.transfer(tunnel, 1000, 1000)
            with Capture(ends, first=True) as at_client, Capture(ends, first=False) as at_server:
                transfer = ends.begin(tunnel, 100_000, 100_000)
                await until(lambda: transfer.got > 10_000, "the transfer")
                of_client = [f for f in at_client.frames() if f.payload and f.destination_port == ends.port]
                of_server = [f for f in at_server.frames() if f.payload and f.source_port == ends.port]
                for frame in of_client:
                    at_server.send(frame.turned_round())  # leaves the server's machine, arrives at the client's
                for frame in of_server:
                    at_client.send(frame.turned_round())
                self.assertTrue(await transfer.done)
                await until(lambda: tunnel.sealer.repeated >= len(of_client), "the reflected packets at the client")
                await until(
                    lambda: server.counters["kcp.server.dropped.repeated"] >= len(of_server), "those at the server"
                )
            self.assertGreater(len(of_client), 20)
            self.assertEqual(len(ends.seen), 2)
            await ends.transfer(tunnel, 1000, 1000)

        return run(work())

    def test_spoofed_packets(self) -> Any:
        """A session survives packets with its own address that try to replace it or to have it blocked."""

        async def work() -> None:
            ends = Ends(self, make_pair(self))
            first = ends.server()
            recorded = [frame for frame in await self.recorded(ends) if frame.destination_port == ends.port]
            await ends.stop_server(first)
            server = ends.server()  # knows none of the recording
            tunnel = ends.tunnel(network=f"ipv4: {{addr: ':{recorded[0].source_port}'}}")
            await ends.transfer(tunnel, 1000, 1000)
            targets = len(ends.seen)
            with Capture(ends, first=True) as wire:
                transfer = ends.begin(tunnel, 0, 3_000_000)
                await until(lambda: transfer.got > 10_000, "the transfer")
                for frame in recorded:
                    wire.send(frame.frame)  # a session of another conv, from the live one's address
                for number in range(1, 2000):
                    wire.send(recorded[number % len(recorded)].garbled(number))
                    if number % 100 == 0:
                        await deferLater(reactor, 0.01)  # type: ignore[arg-type]
                self.assertTrue(await transfer.done)
            await until(lambda: server.counters["kcp.server.opened"] >= 2, "the session on trial")
            await ends.transfer(tunnel, 1000, 1000)
            self.assertEqual(server.counters["kcp.server.replaced"], 0)
            self.assertEqual(len(ends.seen), targets + 2)
            self.assertGreater(server.counters["kcp.server.dropped.check"], 1000)

        return run(work())
