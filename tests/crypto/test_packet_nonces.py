"""Nonces that are known again."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.crypto.packet_nonces import BlockNonces, OwnNonces, WideNonces


class OwnNoncesTests(SynchronousTestCase):
    """Both lengths."""

    def sources(self, seed: int = 1) -> list[OwnNonces]:
        """One of each."""
        return [kind(random.Random(seed).randbytes) for kind in (BlockNonces, WideNonces)]

    def nonces(self, source: OwnNonces, count: int) -> list[bytes]:
        """So many, taken in batches of all sizes."""
        rng, taken = random.Random(2), b""
        while len(taken) < count * source.length:
            taken += source.take(source.length * rng.choice((1, 2, 50, 300)))
        return [taken[at : at + source.length] for at in range(0, count * source.length, source.length)]

    def test_never_twice(self) -> None:
        """A hundred thousand nonces are as many different ones."""
        for source in self.sources():
            self.assertEqual(len(set(self.nonces(source, 100_000))), 100_000)

    def test_own_are_known_for_ever(self) -> None:
        """The first nonce is known after a hundred thousand others, and nothing grew with them."""
        for source in self.sources():
            first = source.take(source.length) + b"rest of the packet"
            last = self.nonces(source, 100_000)[-1]
            self.assertEqual(source.own([first, last, first]), [True] * 3)
            for value in vars(source).values():
                if isinstance(value, (bytes, list, dict, set)):
                    self.assertLess(len(value), 16_000)

    @settings(deadline=None, max_examples=30)
    @given(st.lists(st.booleans(), min_size=1, max_size=60))
    def test_others_are_not(self, mine: list[bool]) -> None:
        """In any mixture, those of another process and random bytes are told from our own."""
        for source, other in zip(self.sources(1), self.sources(2), strict=True):
            rng = random.Random(3)
            ours, theirs = self.nonces(source, 60), self.nonces(other, 60)
            batch = [
                (ours[n] if own else rng.choice((theirs[n], rng.randbytes(source.length)))) + b"body"
                for n, own in enumerate(mine)
            ]
            self.assertEqual(source.own(batch), mine)

    def test_nonces_that_were_not_given_out_yet(self) -> None:
        """The mark behind a number that was not used yet is not our own."""
        for source in self.sources():
            given = source.take(source.length)
            self.assertEqual(source.own([given]), [True])
            source._next = 0  # type: ignore[attr-defined]
            self.assertEqual(source.own([given]), [False])

    def test_they_look_random(self) -> None:
        """Over 40,000 nonces each byte of each place takes each value about as often, and neighbours differ in half of
        their bits."""
        for source in self.sources():
            nonces = self.nonces(source, 40_000)
            for place in range(source.length):
                counts = Counter(nonce[place] for nonce in nonces)
                # Chi-square with 255 degrees of freedom: 400 is beyond six standard deviations.
                self.assertLess(sum((counts[value] - 156.25) ** 2 / 156.25 for value in range(256)), 400)
            numbers = [int.from_bytes(nonce, "big") for nonce in nonces]
            bits = 8 * source.length
            distance = sum((a ^ b).bit_count() for a, b in pairwise(numbers)) / 39_999
            self.assertLess(abs(distance - bits / 2), 0.5)
