"""Worker processes, with a reactor that starts nothing."""

from __future__ import annotations

import os
from typing import Any

from twisted.internet.error import ProcessExitedAlready, ProcessTerminated
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from mikanet.megaki.arcangelo import parse_worker
from mikanet.megaki.stable import LAST_LINES_TIME, PIPE_SIZE, WorkerProcess


class FakeReactor:
    """Notes what it is asked to watch, and gives the worker's ends of its pipes to the test."""

    def __init__(self, fails: bool = False) -> None:
        self.readers: set[Any] = set()
        self.writers: set[Any] = set()
        self.fails = fails
        self.signals: list[str] = []
        self.pid = 2**22 + 7  # above any process id there is
        self.clock = Clock()
        self.callLater = self.clock.callLater
        self.lost = 0

    def addReader(self, reader: Any) -> None:
        self.readers.add(reader)

    def addWriter(self, writer: Any) -> None:
        self.writers.add(writer)

    def removeReader(self, reader: Any) -> None:
        self.readers.discard(reader)

    def removeWriter(self, writer: Any) -> None:
        self.writers.discard(writer)

    def spawnProcess(self, protocol: Any, executable: str, args: list[str], **options: Any) -> Any:
        """Take the worker's place."""
        if self.fails:
            raise OSError("no more processes")
        self.options = options
        children = options["childFDs"]
        numbers = (3, 4) if 3 in children else (0, 1)
        self.requests, self.answers = (os.dup(children[number]) for number in numbers)
        protocol.makeConnection(self)
        return self

    def loseConnection(self) -> None:
        """Note it."""
        self.lost += 1

    def signalProcess(self, name: str) -> None:
        """Note it."""
        self.signals.append(name)
        if len(self.signals) > 1:
            raise ProcessExitedAlready


class Listener:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    def data_received(self, data: bytes) -> None:
        self.heard.append(data)

    def exited(self, how: str, last_words: bytes = b"") -> None:
        self.heard.append((how, last_words) if last_words else how)


class WorkerTests(SynchronousTestCase):
    """One worker."""

    def setUp(self) -> None:
        """A worker behind exec:."""
        self.reactor, self.listener = FakeReactor(), Listener()
        self.worker = WorkerProcess(self.reactor, parse_worker("exec:/bin/cat"), self.listener)
        os.set_blocking(self.reactor.requests, False)
        self.addCleanup(self.end)

    def end(self) -> None:
        """Close everything."""
        self.worker.processExited(Failure(ProcessTerminated(signal=9)))
        for descriptor in (self.reactor.requests, self.reactor.answers):
            os.close(descriptor)

    def test_last_words(self) -> None:
        """What a worker said before it ended is handed on with its end."""
        os.write(self.reactor.answers, b"answer")
        self.worker.processExited(Failure(ProcessTerminated(status=0)))
        self.assertEqual([last_words for _, last_words in self.listener.heard], [b"answer"])

    def test_both_ways(self) -> None:
        """What is written arrives at once; what comes back is handed on."""
        self.worker.write(b"request")
        self.assertEqual(os.read(self.reactor.requests, 100), b"request")
        (reader,) = self.reactor.readers
        os.write(self.reactor.answers, b"answer")
        reader.doRead()
        reader.doRead()  # nothing is there
        self.assertEqual(self.listener.heard, [b"answer"])

    def test_full_pipe(self) -> None:
        """What does not fit goes when there is room, in order and whole."""
        data = os.urandom(3 * PIPE_SIZE)
        self.worker.write(data[:-4])
        self.worker.write(data[-4:])
        got = b""
        while self.reactor.writers:
            got += os.read(self.reactor.requests, PIPE_SIZE)
            for writer in list(self.reactor.writers):
                writer.doWrite()
        while len(got) < len(data):
            got += os.read(self.reactor.requests, PIPE_SIZE)
        self.assertEqual(got, data)

    def test_retire(self) -> None:
        """A retired worker sees the end of its input."""
        self.worker.retire()
        self.assertEqual(os.read(self.reactor.requests, 1), b"")
        self.worker.write(b"late")

    def test_kill(self) -> None:
        """SIGKILL, as often as one likes, but not any more when it is gone."""
        self.worker.kill()
        self.worker.kill()
        self.assertEqual(self.reactor.signals, ["KILL", "KILL"])
        self.worker.processExited(Failure(ProcessTerminated(signal=9)))
        self.worker.kill()
        self.assertEqual(len(self.reactor.signals), 2)
        self.assertEqual(self.listener.heard, ["signal 9"])
        self.assertEqual(self.reactor.readers, set())

    def test_hung_up(self) -> None:
        """A worker that closes its answers is killed."""
        (reader,) = self.reactor.readers
        os.close(self.reactor.answers)
        self.reactor.answers = os.open(os.devnull, os.O_RDONLY)
        reader.doRead()
        self.assertEqual(self.reactor.signals, ["KILL"])

    def test_output(self) -> None:
        """What a worker prints goes into the log; after its end it has a moment for its last lines, and no more."""
        said: list[str] = []
        self.worker._output._say = said.append
        self.worker.childDataReceived(2, b"one\ntwo")
        self.worker.processExited(Failure(ProcessTerminated(signal=9)))
        self.assertEqual(self.reactor.lost, 0)
        self.reactor.clock.advance(LAST_LINES_TIME)
        self.assertEqual(self.reactor.lost, 1)
        self.worker.processEnded(Failure(ProcessTerminated(signal=9)))
        self.assertEqual(said, ["one", "two"])
