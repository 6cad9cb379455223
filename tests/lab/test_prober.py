"""Tests of :mod:`tests.lab.ks`, :mod:`tests.lab.probes` and :mod:`tests.lab.prober`."""

from __future__ import annotations

import asyncio
import random
import socket
import struct
from collections.abc import Awaitable, Callable

from twisted.trial.unittest import SynchronousTestCase

from tests.lab import ks, prober, probes
from tests.lab.prober import Reaction


class KolmogorovSmirnovTests(SynchronousTestCase):
    """The test finds differences and no others."""

    def test_the_tables_values(self) -> None:
        """The critical values of the literature: 1.224, 1.358 and 1.628 for 10, 5 and 1 per cent."""
        for value, chance in ((1.224, 0.10), (1.358, 0.05), (1.628, 0.01)):
            self.assertAlmostEqual(ks.survival(value), chance, 3)

    def test_distances(self) -> None:
        """The distance of samples counted by hand, with ties."""
        self.assertEqual(ks.distance([1, 2, 3, 4], [5, 6]), 1.0)
        self.assertEqual(ks.distance([1, 2, 3, 4], [1, 2, 3, 4]), 0.0)
        self.assertEqual(ks.distance([1, 2], [2, 3]), 0.5)
        self.assertEqual(ks.distance([1, 1, 1, 2], [1, 2, 2, 2]), 0.5)

    def test_it_is_right_about_equals(self) -> None:
        """For samples of one distribution p is below 5 per cent in about 5 per cent of the cases."""
        rng = random.Random(1)
        low = 0
        for _ in range(400):
            low += ks.p_value([rng.random() for _ in range(80)], [rng.random() for _ in range(60)]) < 0.05
        self.assertTrue(8 <= low <= 35, low)

    def test_it_finds_a_shift(self) -> None:
        """A shift by half a standard deviation shows in 200 samples."""
        rng = random.Random(2)
        p = ks.p_value([rng.gauss(0, 1) for _ in range(200)], [rng.gauss(0.5, 1) for _ in range(200)])
        self.assertLess(p, 0.001)

    def test_an_empty_sample_is_an_error(self) -> None:
        """There is no answer without samples."""
        self.assertRaises(ValueError, ks.p_value, [], [1.0])


class ProbeTests(SynchronousTestCase):
    """What is sent."""

    def test_every_length_is_probed(self) -> None:
        """Random probes have every length 0..221 and 256, 512, 1024, 16384, however few there are per class."""
        found = {probe.length for probe in probes.random_probes(5, 1) if not probe.gap}
        self.assertEqual(found, set(probes.LENGTHS))

    def test_flights_are_cut_and_changed_everywhere(self) -> None:
        """A recorded flight is cut at each offset, and changed at each offset in one byte."""
        flight = random.Random(3).randbytes(60)
        found = list(probes.altered_probes([flight], 10, 1))
        cuts = {probe.length for probe in found if probe.name == "flight cut"}
        self.assertEqual(cuts, set(range(60)))
        changed = set()
        for probe in found:
            if probe.name == "flight changed":
                (at,) = [n for n in range(60) if probe.data[n] != flight[n]]
                changed.add(at)
        self.assertEqual(changed, set(range(60)))

    def test_the_seed_decides(self) -> None:
        """The same seed gives the same probes in the same order."""
        first, again, other = (probes.shuffled(probes.random_probes(3, seed), seed) for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)


Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


def probe(serve: Serve, batch: list[probes.Probe], limit: float = 2.0) -> list[Reaction]:
    """Run a batch against a small server."""

    async def quiet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await serve(reader, writer)
        except (asyncio.CancelledError, ConnectionError):
            pass  # the end of the test, or the prober has left

    async def main() -> list[Reaction]:
        server = await asyncio.start_server(quiet, "127.0.0.1", 0)
        async with server:
            address = server.sockets[0].getsockname()
            return await prober.run(address, batch, limit=limit, per_second=2000)

    return asyncio.run(main())


async def _drain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float) -> None:
    """What a good server does: read everything, answer nothing, close at its time."""

    async def read() -> None:
        while await reader.read(65536):
            pass
        await asyncio.sleep(100)

    try:
        await asyncio.wait_for(read(), seconds)
    except TimeoutError:
        pass
    writer.close()


async def _good(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await _drain(reader, writer, 0.4)


async def _threshold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A bad server: closes at once when it has read fifty bytes, with unread bytes in its socket."""
    try:
        await asyncio.wait_for(reader.readexactly(50), 0.4)
        # A close with unread bytes, as a kernel does it.
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort()
    except (TimeoutError, asyncio.IncompleteReadError):
        writer.close()


async def _talker(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A bad server: says what it is."""
    writer.write(b"SSH-2.0\r\n")
    await _drain(reader, writer, 0.1)


async def _slow_at_long(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """A bad server: closes a little later when there was more to read."""
    data = await reader.read(65536)
    await _drain(reader, writer, 0.3 + 0.1 * (len(data) > 300))


class ProberTests(SynchronousTestCase):
    """What is seen, and what is made of it."""

    def test_a_silent_server_is_not_found(self) -> None:
        """A server that drains and closes everything at one time is told apart by nothing."""
        batch = probes.shuffled(probes.random_probes(60, 1, gap=0.002), 1)
        verdict = prober.compare(probe(_good, batch), 1e-5)  # a find by chance once in a hundred thousand runs
        self.assertEqual(verdict.faults, [])
        self.assertEqual({row[0] for row in verdict.table}, {p.name for p in batch})

    def test_a_threshold_is_found(self) -> None:
        """A server that closes at once from some length on is found, by kind and by time."""
        batch = probes.shuffled(probes.random_probes(60, 1, gap=0.001), 1)
        verdict = prober.compare(probe(_threshold, batch))
        self.assertTrue(any("rst" in fault for fault in verdict.faults), verdict.faults)
        self.assertTrue(any("times differ" in fault for fault in verdict.faults), verdict.faults)

    def test_a_talker_is_found(self) -> None:
        """Any byte back is a fault."""
        batch = list(probes.baseline_probes(5, 1))
        reactions = probe(_talker, batch)
        self.assertEqual({r.received for r in reactions}, {9})
        self.assertTrue(any("bytes back" in fault for fault in prober.compare(reactions).faults))

    def test_a_difference_in_time_is_found(self) -> None:
        """A class that is closed a tenth of a second later is found."""
        batch = probes.shuffled(probes.random_probes(60, 1, gap=0.001), 1)
        faults = prober.compare(probe(_slow_at_long, batch)).faults
        self.assertTrue(any("random 256..1024" in fault for fault in faults), faults)

    def test_a_close_that_never_comes_is_seen(self) -> None:
        """A connection that is still open at the limit is a fault of its own kind."""
        reactions = probe(_good, list(probes.baseline_probes(3, 1)), limit=0.1)
        self.assertEqual({r.close for r in reactions}, {"none"})

    def test_nobody_there(self) -> None:
        """A refused connection is a reaction, too."""
        reactions = asyncio.run(prober.run(("127.0.0.1", 1), list(probes.baseline_probes(2, 1)), limit=1))
        self.assertEqual({r.close for r in reactions}, {"refused"})
