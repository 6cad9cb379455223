"""Tests of :mod:`tests.lab.fuzzer`, and every known fault of every codec.

The number of inputs for each codec is ``MIKANET_FUZZ_INPUTS``, 100,000 if that is not set.
"""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from twisted.trial.unittest import SynchronousTestCase

from mikanet.errors import RemoteProtocolError
from tests.lab.codecs import CODECS
from tests.lab.fuzzer import CORPUS, Codec, FaultError, check, fuzz, keep, shrink
from tests.support.processes import Process


def codec(parse: object, golden: Sequence[bytes] = (b"golden input",), stream: bool = True) -> Codec:
    """A codec for a test of the fuzzer."""
    return Codec("test", lambda: golden, parse, stream)  # type: ignore[arg-type]


def _good(pieces: Sequence[bytes]) -> bytes:
    data = b"".join(pieces)
    if data[:1] != b"g":
        raise RemoteProtocolError("no")
    return data


def _breaks_on_z(pieces: Sequence[bytes]) -> None:
    if b"Z" in b"".join(pieces):
        raise IndexError("Z")


def _counts_pieces(pieces: Sequence[bytes]) -> int:
    return len(pieces)


def _takes_memory(pieces: Sequence[bytes]) -> int:
    return len(bytearray(10_000_000))


def _takes_time(pieces: Sequence[bytes]) -> None:
    time.sleep(0.12)


class FuzzerTests(SynchronousTestCase):
    """The fuzzer sees every kind of fault."""

    def test_a_good_codec_has_no_faults(self) -> None:
        """Declared errors and answers are both fine, and both are counted."""
        outcome = fuzz(codec(_good), 2000, 1)
        self.assertEqual((outcome.faults, outcome.inputs), ([], 2001))
        self.assertEqual(set(outcome.verdicts), {"ok", "RemoteProtocolError"})

    def test_the_seed_decides(self) -> None:
        """The same seed gives the same inputs, another seed others."""
        first, again, other = (fuzz(codec(_good), 500, seed).verdicts for seed in (1, 1, 2))
        self.assertEqual(first, again)
        self.assertNotEqual(first, other)

    def test_any_other_exception_is_a_fault(self) -> None:
        """An exception that is not declared is found, and its input can be made small and kept."""
        broken = codec(_breaks_on_z, [b"XYZ of something", b"another one"])
        outcome = fuzz(broken, 1000, 1)
        self.assertIn("IndexError", outcome.faults[0][0])
        self.assertEqual(shrink(broken, outcome.faults[0][1]), b"Z")
        path = keep("test", b"Z", Path(self.mktemp()))
        self.assertEqual(path.read_bytes(), b"Z")

    def test_time_memory_and_cuts_are_checked(self) -> None:
        """Too slow, too large, and different in pieces: each is a fault."""
        for parse, text in ((_takes_time, "took 0."), (_takes_memory, "memory"), (_counts_pieces, "pieces")):
            error = self.assertRaises(FaultError, check, codec(parse), b"some input", random.Random(1))
            self.assertIn(text, str(error))
        check(codec(_counts_pieces, stream=False), b"some input", random.Random(1))


class CorpusTests(SynchronousTestCase):
    """What once was a fault is none now."""

    def test_every_known_input(self) -> None:
        """Each golden input and each input of the corpus is taken by its codec, whole and in pieces."""
        for name, known in CODECS.items():
            inputs = known.inputs()
            self.assertTrue(inputs, name)
            for data in inputs:
                check(known, data, random.Random(1))

    def test_the_corpus_belongs_to_codecs(self) -> None:
        """No folder of the corpus is without its codec."""
        folders = {path.name for path in CORPUS.iterdir() if path.is_dir() and not path.name.endswith(".seeds")}
        self.assertLessEqual(folders, set(CODECS))

    def test_golden_inputs_are_good(self) -> None:
        """A codec that refuses all of its golden inputs is fuzzed in vain: each takes at least one."""
        for name, known in CODECS.items():
            verdicts = {check(known, data) for data in known.golden()}
            self.assertIn("ok", verdicts, name)


class FuzzTests(SynchronousTestCase):
    """All codecs, by command."""

    def test_every_codec(self) -> None:
        """No mutation of a golden input makes any codec do anything but answer or refuse."""
        inputs = os.environ.get("MIKANET_FUZZ_INPUTS", "100000")
        run = Process([sys.executable, "-m", "tests.lab", "fuzz", "--inputs", inputs, "--no-keep"])
        status = run.wait(600)
        output = run.output
        run.stop()
        self.assertEqual(status, 0, output)
        for name in CODECS:
            self.assertIn(f"{name} ", output)
