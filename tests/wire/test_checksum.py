"""The internet checksum."""

from __future__ import annotations

import struct
from collections.abc import Callable

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.wire import checksum as module
from mikanet.wire.checksum import plain_checksum
from tests.support.peers import missing


class PlainChecksumTests(SynchronousTestCase):
    """In plain Python; the class below runs the same with the C extension."""

    checksum: Callable[..., int] = staticmethod(plain_checksum)

    def test_rfc_1071(self) -> None:
        """The numbers of RFC 1071, section 3."""
        self.assertEqual(self.checksum(bytes.fromhex("0001f203f4f5f6f7")), ~0xDDF2 & 0xFFFF)

    def test_edges(self) -> None:
        """Nothing and zeros sum to 0; words that sum to all ones stay all ones."""
        self.assertEqual(self.checksum(b""), 0xFFFF)
        self.assertEqual(self.checksum(bytes(9)), 0xFFFF)
        self.assertEqual(self.checksum(b"\xff\xff"), 0)
        self.assertEqual(self.checksum(b"", 0xFFFF), 0)
        self.assertEqual(self.checksum(b"\x01"), 0xFEFF)

    @settings(suppress_health_check=[HealthCheck.differing_executors])  # the same examples for C
    @given(st.binary(max_size=100), st.integers(0, 0xFFFFF))
    def test_word_by_word(self, data: bytes, initial: int) -> None:
        """Any data and any first sum: as adding word by word with the carry brought round."""
        total = initial
        for (word,) in struct.iter_unpack("!H", data + b"\0" * (len(data) & 1)):
            total += word
        while total >> 16:
            total = (total & 0xFFFF) + (total >> 16)
        self.assertEqual(self.checksum(data, initial), ~total & 0xFFFF)


class SpeedupChecksumTests(PlainChecksumTests):
    """The same in C, where the extension is built."""

    checksum: Callable[..., int] = staticmethod(module.checksum)

    def setUp(self) -> None:
        """Nothing to test if it is not there."""
        if module.checksum is plain_checksum:
            raise missing("the C extension mikanet._speedups (setup.py build_ext --inplace)")
