"""Two sessions, and what can happen between them: paths that lose, repeat, reorder and die."""

from __future__ import annotations

import random
from collections.abc import Callable

from mikanet.pickaxe import wire
from mikanet.pickaxe.fragments import Reassembler
from mikanet.pickaxe.keys import SessionKeys
from mikanet.pickaxe.paths import Path
from mikanet.pickaxe.session import Role, Session

SID = bytes([1, 2, 3, 4])
KEYS = SessionKeys(bytes(range(32)), bytes(range(32, 64)))


class End:
    """A session, what was sent on it, and what came out."""

    def __init__(self, role: Role, random_bytes: Callable[[int], bytes], keys: SessionKeys = KEYS) -> None:
        self.session = Session(role, SID, keys, random_bytes)
        self.sent: list[bytes] = []
        self.received: list[bytes] = []
        self.fragments = Reassembler()

    def send(self, data: bytes, now: float) -> None:
        """Send a message of data."""
        self.sent.append(data)
        self.session.send(wire.DATA, bytes(4), data, now=now)

    def take(self, packet: bytes, path: Path, now: float) -> None:
        """A packet arrives."""
        if packet[0] == wire.FRAGMENT:
            whole = self.fragments.add(wire.decode_fragment(packet))
            if whole is None:
                return
            packet = whole
        for message in self.session.receive(packet, path, now):
            if message.kind == wire.DATA:
                self.received.append(message.body[4:])


class Wire:
    """One carrier between two sessions: a path at each end, and what is on the way in both directions.

    :param mtu: largest packet; larger ones go as fragments.
    """

    def __init__(self, reliable: bool, mtu: int = 65_535) -> None:
        self.reliable = reliable
        self.mtu = mtu
        self.paths = (Path(reliable), Path(reliable))  # the client's, the server's
        self.flights: tuple[list[bytes], list[bytes]] = ([], [])  # to the server, to the client

    @property
    def dead(self) -> bool:
        """Whether both ends know that it is gone."""
        return all(path.lost for path in self.paths)


class Net:
    """Two ends and their wires, on a clock that only the test moves."""

    def __init__(self, seed: int = 0) -> None:
        rng = random.Random(seed)
        self.now = 1000.0
        self.client = End(Role.CLIENT, rng.randbytes)
        self.server = End(Role.SERVER, rng.randbytes)
        self.ends = (self.client, self.server)
        self.wires: list[Wire] = []

    def open(self, reliable: bool, mtu: int = 65_535) -> Wire:
        """A new wire, which the client uses at once and shows the server."""
        made = Wire(reliable, mtu)
        self.wires.append(made)
        if not reliable:
            self.client.session.be_small()
            self.server.session.be_small()
        self.client.session.use(made.paths[0], self.now)
        self.client.session.ask(self.now)
        self.flush()
        return made

    def flush(self) -> None:
        """Put on the wires what both sessions have to send."""
        for side, end in enumerate(self.ends):
            for path, packets in end.session.flush(self.now):
                wire_ = next((each for each in self.wires if each.paths[side] is path), None)
                if wire_ is None or path.lost:
                    continue
                for packet in packets:
                    if len(packet) > wire_.mtu:
                        wire_.flights[side].extend(wire.fragment(packet, wire_.mtu))
                    else:
                        wire_.flights[side].append(packet)

    def deliver(self, wire_: Wire, side: int, index: int = 0) -> None:
        """What ``side`` sent arrives."""
        packet = wire_.flights[side].pop(index)
        if not wire_.paths[1 - side].lost:
            self.ends[1 - side].take(packet, wire_.paths[1 - side], self.now)
        self.flush()

    def lose(self, wire_: Wire, side: int) -> None:
        """``side`` learns that the wire is gone; nothing arrives at it any more."""
        if not wire_.paths[side].lost:
            self.ends[side].session.path_lost(wire_.paths[side])
            wire_.flights[1 - side].clear()
            self.flush()

    def advance(self, seconds: float) -> None:
        """Time goes on, and timers fire."""
        until = self.now + seconds
        while True:
            due = [end.session.deadline for end in self.ends if end.session.deadline is not None]
            soonest = min(due, default=until)
            if soonest > until:
                break
            self.now = max(self.now, soonest)
            for end in self.ends:
                deadline = end.session.deadline
                if deadline is not None and deadline <= self.now:
                    end.session.timer_fired(self.now)
            self.flush()
            if soonest == until:
                break
        self.now = until

    def settle(self, rounds: int = 200) -> None:
        """Let everything arrive and every timer fire, until nothing happens any more."""
        for _ in range(rounds):
            busy = False
            for wire_ in self.wires:
                for side in (0, 1):
                    while wire_.flights[side]:
                        busy = True
                        self.deliver(wire_, side)
            if not busy and not len(self.client.session.sending) and not len(self.server.session.sending):
                return
            if not busy:
                if all(end.received == other.sent for end, other in zip(self.ends, self.ends[::-1], strict=True)):
                    deadlines = [end.session.deadline for end in self.ends]
                    if deadlines == [None, None]:
                        return
                self.advance(0.5)
