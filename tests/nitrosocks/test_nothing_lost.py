"""Whatever happens to the connections of a session, its streams carry every byte once, in order (N8, N9)."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable

from twisted.trial.unittest import SynchronousTestCase

from mikanet.nitrosocks.wire import Type
from tests.nitrosocks.memory import World

Bend = Callable[[int, int, int, bytes], list[bytes] | None]

#: Pieces of each direction, and the bytes after which a key is refreshed: several times in each run.
ROUNDS, REFRESH_BYTES = 90, 9000


def pieces(seed: int) -> list[bytes]:
    """What one side sends."""
    rng = random.Random(seed)
    return [rng.randbytes(rng.choice((1, 60, 300, 600))) for _ in range(ROUNDS)]


UP, DOWN = pieces(1), pieces(2)
SHA_UP, SHA_DOWN = (hashlib.sha256(b"".join(each)).hexdigest() for each in (UP, DOWN))


def play(bend: Bend | None = None, joined: bool = False) -> World:
    """One session with both transfers over wires that are bent; returns the world after checking both hashes."""
    world = World(server={"refresh_bytes": REFRESH_BYTES})
    world.joined = joined
    if bend is not None:
        world.bend = bend
    app, outcome = world.open()
    world.settle()
    if not outcome:
        world.settle(12.0, step=1.0)
    for up, down in zip(UP, DOWN, strict=True):
        if app.transport is not None:
            app.transport.write(up)
        if world.egress.targets:
            world.egress.targets[0].receive(down)
        world.settle()
    target = world.egress.targets[0]
    # A header that is not what it was may announce bytes that never come: then only the heartbeat finds out.
    wait(world, lambda: len(app.got) == sum(map(len, DOWN)) and len(target.bytes_written) == sum(map(len, UP)))
    assert hashlib.sha256(target.bytes_written).hexdigest() == SHA_UP, "what went up is not what was sent"
    assert hashlib.sha256(app.got).hexdigest() == SHA_DOWN, "what came down is not what was sent"
    assert len(world.egress.targets) == 1
    target.receive_fin()
    wait(world, lambda: app.ended)
    return world


def wait(world: World, condition: Callable[[], bool]) -> None:
    """Let time pass until something is true, for a minute at most."""
    for _ in range(60):
        if condition():
            return
        world.settle(1.0, step=0.5)
    raise AssertionError("it did not come true in a minute")


#: Pieces of a wire until the stream is open: two salts, obfuscation, challenge, response, session, OPEN, REPLY. What
#: breaks before has nothing to come back to.
OPENING = 8

#: Pieces of an undisturbed wire.
COUNT = play().wires[0].count


class UndisturbedTests(SynchronousTestCase):
    """What the other tests disturb."""

    def test_the_session(self) -> None:
        """Without disturbance there is one wire, with more than 200 packets, and refreshes and heartbeats among them."""
        world = play()
        kinds = [packet.type for way in world.wires[0].ways for packet in way.packets]
        self.assertEqual(len(world.wires), 1)
        self.assertGreater(len(kinds), 200)
        self.assertGreater(kinds.count(Type.REFRESH), 2)
        self.assertEqual(kinds.count(Type.HEARTBEAT), kinds.count(Type.REFRESH))
        self.assertEqual(kinds.count(Type.HEARTBEAT_REPLY), kinds.count(Type.REFRESH))
        self.assertEqual(COUNT, world.wires[0].count)


class CutTests(SynchronousTestCase):
    """TLS is cut."""

    def test_at_every_packet(self) -> None:
        """A cut just before any packet, those of refreshes among them, loses nothing and repeats nothing."""
        for index in range(OPENING, COUNT):
            world = play(lambda wire, way, at, piece, index=index: None if (wire, at) == (0, index) else [piece])
            # The very last acknowledgements may never be sent.
            self.assertEqual(len(world.wires), 2 if index < COUNT - 4 else len(world.wires), index)

    def test_packets_that_come_together(self) -> None:
        """So it is when packets that were sent together arrive in one read, the recovery with what follows it."""
        for index in range(OPENING, COUNT, 3):
            play(lambda wire, way, at, piece, index=index: None if (wire, at) == (0, index) else [piece], joined=True)

    def test_while_coming_back(self) -> None:
        """A second cut at any of the first packets of the second connection, the recovery among them, changes nothing."""
        for first in (40, 77, 150):
            for second in range(16):
                cuts = {(0, first), (1, second)}
                world = play(lambda wire, way, at, piece, cuts=cuts: None if (wire, at) in cuts else [piece])
                self.assertEqual(len(world.wires), 3, (first, second))

    def test_again_and_again(self) -> None:
        """Twenty connections that are cut at random places one after the other carry one session."""
        rng = random.Random(5)
        for _ in range(10):
            cuts = {(wire, rng.randint(OPENING, 30)) for wire in range(20)}
            world = play(lambda wire, way, at, piece, cuts=cuts: None if (wire, at) in cuts else [piece])
            self.assertGreater(len(world.wires), 5)


class _Meddler:
    """Does one thing to one packet of the first wire."""

    def __init__(self, index: int, rng: random.Random) -> None:
        self.index = index
        self.rng = rng
        self.kept: dict[int, list[bytes]] = {0: [], 1: []}
        self.waiting: tuple[int, bytes] | None = None
        self.done = False

    def __call__(self, wire: int, way: int, at: int, piece: bytes) -> list[bytes] | None:
        if wire:
            return [piece]
        if self.waiting is not None and self.waiting[0] == way:
            later, self.waiting = self.waiting[1], None
            return [piece, later]
        self.kept[way].append(piece)
        if at != self.index:
            return [piece]
        self.done = True
        return self.meddle(way, piece)

    def meddle(self, way: int, piece: bytes) -> list[bytes]:
        raise NotImplementedError


class _Flip(_Meddler):
    def meddle(self, way: int, piece: bytes) -> list[bytes]:
        flipped = bytearray(piece)
        flipped[self.rng.randrange(len(flipped))] ^= 1 << self.rng.randrange(8)
        return [bytes(flipped)]


class _Drop(_Meddler):
    def meddle(self, way: int, piece: bytes) -> list[bytes]:
        return []


class _Duplicate(_Meddler):
    def meddle(self, way: int, piece: bytes) -> list[bytes]:
        return [piece, piece]


class _Swap(_Meddler):
    def meddle(self, way: int, piece: bytes) -> list[bytes]:
        self.waiting = (way, piece)
        return []


class _Replay(_Meddler):
    def meddle(self, way: int, piece: bytes) -> list[bytes]:
        return [self.rng.choice(self.kept[way]), piece]


class MeddlingTests(SynchronousTestCase):
    """Somebody inside TLS meddles with one packet of a session of more than 200: that connection ends, the session goes
    on, and no byte of any stream is wrong, missing or there twice."""

    def meddle(self, kind: type[_Meddler]) -> None:
        rng = random.Random(kind.__name__)
        recovered = 0
        for index in range(OPENING, COUNT):
            meddler = kind(index, rng)
            world = play(meddler)
            self.assertTrue(meddler.done or index >= COUNT - 4)
            recovered += len(world.wires) - 1
        # A packet can only go unmissed when nothing more came in its direction.
        self.assertGreater(recovered, (COUNT - OPENING) * 0.97)

    def test_flip(self) -> None:
        """A bit of each packet, one after the other, is flipped."""
        self.meddle(_Flip)

    def test_drop(self) -> None:
        """Each packet is left out."""
        self.meddle(_Drop)

    def test_duplicate(self) -> None:
        """Each packet comes twice."""
        self.meddle(_Duplicate)

    def test_swap(self) -> None:
        """Each packet comes after its successor."""
        self.meddle(_Swap)

    def test_replay(self) -> None:
        """An older packet comes again before each packet."""
        self.meddle(_Replay)
