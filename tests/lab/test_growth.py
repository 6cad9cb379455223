"""Tests of :mod:`tests.lab.growth` and of what every load costs."""

from __future__ import annotations

from collections.abc import Sequence

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from tests.lab.codecs import CODECS
from tests.lab.fuzzer import FaultError
from tests.lab.growth import Load, check_growth
from tests.lab.loads import LOADS


def _same(count: int) -> list[bytes]:
    return [b"12345678"] * count


def _walks_ranges(pieces: Sequence[bytes]) -> None:
    """Ranges in a list that is walked for each piece: what fragments once cost."""
    have: list[tuple[int, int]] = []
    for index in range(len(pieces)):
        have = [each for each in have if each[1] < 2 * index or each[0] > 2 * index + 1]
        have.append((2 * index, 2 * index + 1))


def _takes_from_the_front(pieces: Sequence[bytes]) -> None:
    """A queue that is a list."""
    queue = [piece for piece in pieces for _ in range(8)]
    while queue:
        queue.pop(0)


def _joins_again(pieces: Sequence[bytes]) -> None:
    """An unfinished message that is copied with each piece."""
    message = b""
    for piece in pieces:
        message += bytes(100) + piece
        message = bytes(memoryview(message))


def _keeps_all(pieces: Sequence[bytes]) -> list[bytearray]:
    return [bytearray(4000) for _ in pieces]


def _refuses(pieces: Sequence[bytes]) -> None:
    raise RemoteProtocolError("at once")


def _is_slow(pieces: Sequence[bytes]) -> None:
    for _ in pieces:
        sum(range(50_000))


class InstrumentTests(SynchronousTestCase):
    """The instrument sees what grows."""

    def test_square_costs_are_found(self) -> None:
        """Ranges that are walked, a list as a queue, copies of all that came: each is a fault."""
        for run, most in ((_walks_ranges, 8192), (_takes_from_the_front, 65_536), (_joins_again, 32_768)):
            fault = self.assertRaises(FaultError, check_growth, Load("bad", _same, run, most=most))
            self.assertIn("times as much in more input", str(fault))

    def test_even_costs_pass(self) -> None:
        """What costs the same for each byte is no fault, nor what is refused at once."""
        check_growth(Load("good", _same, lambda pieces: b"".join(pieces).count(b"1")))
        check_growth(Load("refused", _same, _refuses))

    def test_high_costs_are_found(self) -> None:
        """A byte that costs too much time or memory is a fault however even that is."""
        fault = self.assertRaises(FaultError, check_growth, Load("slow", _same, _is_slow))
        self.assertIn("of CPU for each byte", str(fault))
        fault = self.assertRaises(FaultError, check_growth, Load("large", _same, _keeps_all))
        self.assertIn("bytes of memory", str(fault))


class CostTests(SynchronousTestCase):
    """What input costs, of every kind that we know."""

    def test_every_load(self) -> None:
        """No codec or state machine costs more for each byte when there are more of them, nor more than it may."""
        faults = []
        for load in LOADS.values():
            try:
                check_growth(load)
            except FaultError as fault:
                faults.append(str(fault))
        self.assertEqual(faults, [])

    def test_every_codec_has_a_load(self) -> None:
        """Whatever is fuzzed is measured, too."""
        measured = {name for load in LOADS.values() for name in load.codec}
        self.assertEqual(set(CODECS) - measured, {"mika-chunks-any-mac"})  # the same code as mika-chunks
