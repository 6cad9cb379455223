"""The lab's figures of Mika in short: the same checks as ``python -m tests.lab mika``, with smaller numbers.

``MIKANET_SOAK_SECONDS`` sets the length of the soak: 20 if it is not set, 120 in continuous integration.
"""

from __future__ import annotations

import asyncio
import os

from twisted.trial.unittest import SynchronousTestCase

from tests.lab import mika, progress
from tests.lab.load import Result
from tests.lab.mika_command import FIGURES
from tests.lab.soak import soak
from tests.lab.target import Target
from tests.lab.tunnels import MikaTunnel


def short(name: str, seed: int = 1) -> Result:
    """One figure, short."""

    async def run() -> Result:
        return await FIGURES[name][1](seed)

    return asyncio.run(run())


class FigureTestCase(SynchronousTestCase):
    """Runs instruments inside the test."""

    def setUp(self) -> None:
        """Without their progress."""
        self.patch(progress, "enabled", False)


class SecrecyTests(FigureTestCase):
    """What a stranger can find out, and do."""

    def test_recorded_first_flights(self) -> None:
        """Of first flights that were accepted none is accepted again, at once, later, or over a restart (M3, X2)."""
        result = short("replay")
        self.assertEqual((result.faults, result.figures["accepted"]), ([], 0))
        self.assertGreater(result.figures["replayed"], 100)

    def test_probes(self) -> None:
        """Every class of probes gets no byte, a FIN, and a close at times of one distribution (X2)."""
        result = short("probe")
        self.assertEqual(result.faults, [])
        self.assertEqual(result.figures["FIN"], result.figures["probes"])
        self.assertEqual((result.figures["bytes back"], result.figures["targets opened"]), (0, 0))

    def test_flipped_bits(self) -> None:
        """No flipped bit of the first 4 KiB delivers a wrong byte upstream; downstream exactly the documented ones (M4)."""
        result = short("flips")
        self.assertEqual((result.faults, result.figures["up: wrong"]), ([], 0))
        self.assertEqual(result.figures["down: documented exceptions"], mika.FLIPPED_BYTES * 8)

    def test_flipped_bits_on_a_running_server(self) -> None:
        """The same upstream against a running server and target, for some of the bits: never a wrong byte, always a FIN."""
        result = short("flips-live")
        self.assertEqual((result.faults, result.figures["wrong at the target"]), ([], 0))
        self.assertGreater(result.figures["a right beginning at the target"], 0)


class EnduranceTests(FigureTestCase):
    """What a tunnel bears."""

    def test_a_killed_server(self) -> None:
        """Applications see a reset, never a clean end, when the server is killed; a restart heals within 5 s (X6)."""
        result = short("kill")
        self.assertEqual((result.faults, result.figures["clean ends"]), ([], 0))
        self.assertLess(result.figures["recovery s"], 5)

    def test_a_server_killed_while_it_dials(self) -> None:
        """A kill before the target stands is a reset for the application, too (X6)."""
        self.assertEqual(short("kill-dialling").faults, [])

    def test_cuts_between_client_and_server(self) -> None:
        """A cut is a reset for whoever waits, but for a forged FIN downstream, which the protocol cannot tell (M5, X6)."""
        self.assertEqual(short("cuts").faults, [])

    def test_a_clock_that_jumps(self) -> None:
        """A jump of the wall clock by an hour, either way, loses none of 100 open tunnels (X8)."""
        self.assertEqual(short("clock").faults, [])

    def test_transfers_are_exact(self) -> None:
        """Bytes are exact both ways with writes of random sizes, on one connection and on many at once."""
        for name in ("transfer", "echo"):
            self.assertEqual(short(name).faults, [], name)

    def test_idle_tunnels(self) -> None:
        """An idle tunnel costs the server at most 40 KB, and its files are free afterwards."""
        result = short("idle")
        self.assertEqual(result.faults, [])
        self.assertLess(result.figures["server KB per tunnel"], 40)

    def test_slow_and_silent_strangers(self) -> None:
        """Strangers that trickle, say nothing or come again and again do not keep a good client from its requests."""
        for name in ("slow-writers", "half-open", "flood"):
            result = short(name)
            self.assertEqual(result.faults, [], name)
            self.assertLess(result.figures["good p95 s"], 2, name)

    def test_applications_that_do_not_read(self) -> None:
        """What a tunnel keeps for an application that does not read is bounded (X5)."""
        result = short("slow-readers")
        self.assertEqual(result.faults, [])
        self.assertLess(result.figures["server KB per reader"], 2000)

    def test_soak(self) -> None:
        """Mixed traffic with kills: nothing wrong, nothing cleanly cut, no files left, no memory slope, quiet logs."""
        seconds = float(os.environ.get("MIKANET_SOAK_SECONDS", "20"))

        async def run() -> Result:
            with MikaTunnel() as tunnel:
                async with Target().running() as target:
                    return await soak(tunnel, target, seconds, kill_every=min(30, seconds / 8), seed=1)

        result = asyncio.run(run())
        self.assertEqual(result.faults, [])
        self.assertGreater(result.figures["kills"], 1)
