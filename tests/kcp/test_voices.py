"""What both ends of a KCP link say when their keys may differ."""

from __future__ import annotations

from dataclasses import replace

from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.logger import capturedLogs
from twisted.trial.unittest import SynchronousTestCase

from mikanet.kcp.voices import LINE_TIME, MAX_SOURCES, REMIND_TIME, SILENCE_TIME, SOURCE_TIME, ClientVoice, ServerVoice
from tests.kcp.net import Net
from tests.paqet.world import CLIENT_LINK, SERVER_LINK


class ServerVoiceTests(SynchronousTestCase):
    """The server's log."""

    def setUp(self) -> None:
        """A voice."""
        self.clock = Clock()
        self.clock.advance(1)
        self.said: list[str] = []
        self.voice = ServerVoice(self.clock, self.said.append)

    def test_once_for_each(self) -> None:
        """A few packets say nothing; more do, with the address, once an hour."""
        self.voice.failed(7, "192.0.2.7", 2)
        self.assertEqual(self.said, [])
        for _ in range(1000):
            self.voice.failed(7, "192.0.2.7", 1)
            self.clock.advance(1)
        self.assertEqual(len(self.said), 1)
        self.assertIn("packets from 192.0.2.7 do not open", self.said[0])
        self.clock.advance(SOURCE_TIME)
        self.voice.failed(7, "192.0.2.7", 1)
        self.assertEqual(len(self.said), 2)

    def test_good_ones_between(self) -> None:
        """Who sends good packets too is not named for a few that fail."""
        for _ in range(100):
            self.voice.failed(7, "192.0.2.7", 2)
            self.voice.opened(7)
        self.assertEqual(self.said, [])

    def test_flood(self) -> None:
        """A flood of sources leaves a line in ten seconds with their number, and bounded memory."""
        for number in range(5 * MAX_SOURCES):
            self.voice.failed(number, "192.0.2.7", 3)
        self.assertEqual(len(self.said), 1)
        self.clock.advance(LINE_TIME)
        self.voice.failed("another", "192.0.2.9", 3)
        self.assertIn(f"and from {5 * MAX_SOURCES - 1} other addresses", self.said[1])
        self.assertLessEqual(max(len(self.voice._failing), len(self.voice._said)), MAX_SOURCES)

    def test_wrong_key(self) -> None:
        """A server whose client has another key says so; one with the right key hears no such thing."""
        for key, lines in ((bytes(32), 1), (CLIENT_LINK.key, 0)):
            net = Net(SERVER_LINK, Factory.forProtocol(Protocol), "delay=10ms")
            with capturedLogs() as events:
                session = net.client(Protocol(), replace(CLIENT_LINK, key=key))
                session.kcp.write(b"hello")
                net.clock.sleep(4)
            texts = [event["text"] for event in events if "do not open" in str(event.get("text", ""))]
            self.assertEqual(len(texts), lines, texts)


class _Session:
    def __init__(self, opened: int = 0, refused: int = 0) -> None:
        self.opened, self.refused = opened, refused


class ClientVoiceTests(SynchronousTestCase):
    """The client's log."""

    def setUp(self) -> None:
        """A voice."""
        self.clock = Clock()
        self.clock.advance(1)
        self.said: list[str] = []
        self.voice = ClientVoice(self.clock, "example:29900", self.said.append)

    def test_silence(self) -> None:
        """After some seconds without anything, what to check; for all sessions of a minute one line."""
        for _ in range(50):
            self.voice.watch(_Session())
            self.clock.advance(1)
        self.assertEqual(len(self.said), 1)
        self.assertIn("nothing has come from example:29900", self.said[0])
        self.assertIn("key", self.said[0])
        self.clock.advance(REMIND_TIME)
        self.voice.watch(_Session())
        self.clock.advance(SILENCE_TIME)
        self.assertEqual(len(self.said), 2)

    def test_other_key(self) -> None:
        """Packets that come and do not open are told from silence."""
        self.voice.watch(_Session(refused=1))
        self.clock.advance(SILENCE_TIME)
        self.assertIn("do not open: key", self.said[0])

    def test_all_is_well(self) -> None:
        """A session that has brought something is no reason for words."""
        self.voice.watch(_Session(opened=1))
        self.clock.advance(SILENCE_TIME)
        self.assertEqual(self.said, [])
