"""Finding the sender's shard counts."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from mikanet.fec.autotune import MEMORY, AutoTune


class AutoTuneTests(SynchronousTestCase):
    """From samples in any order."""

    @given(st.integers(1, 20), st.integers(1, 10), st.integers(0, 1000), st.integers())
    def test_finds(self, ds: int, ps: int, start: int, seed: int) -> None:
        """Three groups' worth of packets without a gap tell the counts, whatever order they came in."""
        tune = AutoTune()
        seqids = list(range(start, start + 3 * (ds + ps)))
        random.Random(seed).shuffle(seqids)
        for seqid in seqids:
            tune.sample(seqid, seqid % (ds + ps) < ds)
        self.assertEqual(tune.shard_counts(), (ds, ps))

    def test_no_answer(self) -> None:
        """Too little, or a gap before the answer, gives none."""
        tune = AutoTune()
        self.assertIsNone(tune.shard_counts())
        for seqid in range(40):
            if seqid != 3:
                tune.sample(seqid, seqid % 5 < 3)
        self.assertIsNone(tune.shard_counts())

    def test_memory(self) -> None:
        """Only the last packets are remembered."""
        tune = AutoTune()
        for seqid in range(10_000):
            tune.sample(seqid, True)
        self.assertEqual(len(tune._samples), MEMORY)
