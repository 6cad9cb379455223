"""The stream link: decides when, in which pieces and with which damage the bytes of one connection arrive. No I/O.

A TCP stream loses and reorders nothing, so its words are others than a packet's: delay, jitter and bandwidth, outages
in which bytes wait, pieces of chosen sizes, flipped bits, and cuts of the whole connection. What depends on chance or
on offsets depends on the seed, the connection's number and the offset in the stream, not on how the bytes came in.
"""

from __future__ import annotations

import collections
import random
from collections.abc import Callable
from typing import NamedTuple

from tests.lab.link import Record, in_outage
from tests.lab.scenario import Conditions, Direction, Scenario


class Arrival(NamedTuple):
    """What arrives at one end: bytes; the clean end of a direction (``end``); or the cut of the connection.

    :ivar event: ``data``, ``end``, ``reset`` or ``fin``; the last two are cuts, for both ends at once.
    """

    direction: Direction
    event: str
    data: bytes = b""


class Rate:
    """A bandwidth that several connections share."""

    def __init__(self) -> None:
        self.free_at = 0.0

    def take(self, size: int, bandwidth: float, time: float) -> float:
        """When ``size`` bytes that are ready at ``time`` have left."""
        if not bandwidth:
            return time
        self.free_at = max(self.free_at, time) + size * 8 / bandwidth
        return self.free_at


class _Way:
    def __init__(self, conditions: Conditions, seed: str) -> None:
        self.conditions = conditions
        self.random = random.Random(seed)
        self.edges = random.Random(f"{seed}/fragment")
        self.queue: collections.deque[tuple[float, str, bytes]] = collections.deque()
        self.waiting = 0
        self.offset = 0
        self.last_arrival = 0.0
        self.left_of_fragment = 0
        self.ended = False
        self.paused = False
        self.flips = sorted(conditions.flip)


class StreamLink:
    """One connection through a wire.

    :param number: the connection's number on its wire, from 0.
    :param start: the wire's time zero, from which outages count; the connection's own clock starts at ``now``.
    :param rates: the bandwidth of each direction, if shared with other connections.
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int | str,
        now: float,
        *,
        number: int = 0,
        start: float | None = None,
        rates: dict[Direction, Rate] | None = None,
        log: Callable[[Record], object] | None = None,
    ) -> None:
        self._scenario = scenario
        self._start = now if start is None else start
        self._opened = now - self._start
        self._number = number
        self._ways = {way: _Way(scenario.towards(way), f"{seed}/{number}/{way.value}") for way in Direction}
        self._rates = rates or {way: Rate() for way in Direction}
        self._log = log
        self._cut_at, self._cut_kind = self._first_cut()
        self.closed = False
        self._note({"t": self._opened, "do": "open"})

    # -- what a carrier calls

    def send(self, direction: Direction, data: bytes, now: float) -> None:
        """Bytes enter."""
        way, time = self._ways[direction], now - self._start
        if way.ended or self.closed or not data:
            return
        self._note({"t": time, "d": direction.value, "at": way.offset, "len": len(data), "do": "data"})
        data = _flipped(way, data)
        limit = way.conditions.cut_after
        cut = bool(limit) and way.offset + len(data) >= limit
        if cut:
            data = data[: limit - way.offset]
        for piece in _fragments(way, data):
            self._enqueue(way, direction, "data", piece, time)
        way.offset += len(data)
        if cut:
            self._enqueue(way, direction, way.conditions.cut, b"", time)
            way.ended = True

    def end(self, direction: Direction, now: float) -> None:
        """The sender of a direction says that it sends no more."""
        way = self._ways[direction]
        if not way.ended and not self.closed:
            self._enqueue(way, direction, "end", b"", now - self._start)
            way.ended = True

    def reset(self, direction: Direction, now: float) -> None:
        """The sender of a direction resets the connection; what it has sent before may be lost."""
        way = self._ways[direction]
        way.queue.clear()
        way.waiting = 0
        way.ended = True
        if not self.closed:
            self._enqueue(way, direction, "reset", b"", now - self._start)

    def pause(self, direction: Direction, paused: bool) -> None:
        """The receiver of a direction takes nothing for now, or takes again."""
        self._ways[direction].paused = paused

    def waiting(self, direction: Direction) -> int:
        """Bytes of a direction that have entered and not arrived."""
        return self._ways[direction].waiting

    def due(self, now: float) -> list[Arrival]:
        """What has arrived by now. After a cut or a reset the link is closed and brings nothing more."""
        time = now - self._start
        out: list[Arrival] = []
        for direction, way in self._ways.items():
            while not self.closed and way.queue and way.queue[0][0] <= time and not self._held(way, time):
                _, event, data = way.queue.popleft()
                way.waiting -= len(data)
                out.append(Arrival(direction, event, data))
                if event != "data":
                    self._note({"t": time, "d": direction.value, "do": event})
                if event in ("reset", "fin"):
                    self.closed = True
        if not self.closed and self._cut_at is not None and time >= self._cut_at:
            self._note({"t": time, "do": self._cut_kind, "why": "cut-at"})
            self.closed = True
            out.append(Arrival(Direction.UP, self._cut_kind))
        return out

    def next_deadline(self) -> float | None:
        """When :meth:`due` has something next, or may have."""
        if self.closed:
            return None
        times = [] if self._cut_at is None else [self._cut_at]
        for way in self._ways.values():
            if way.queue and not way.paused:
                times.append(_after_outage(way.conditions, way.queue[0][0]))
        return min(times) + self._start if times else None

    # -- inside

    def _first_cut(self) -> tuple[float | None, str]:
        cuts = [(self._opened + way.conditions.cut_at, way.conditions.cut) for way in self._ways.values()]
        cuts = [cut for cut, way in zip(cuts, self._ways.values(), strict=True) if way.conditions.cut_at]
        return min(cuts) if cuts else (None, "")

    def _held(self, way: _Way, time: float) -> bool:
        if way.queue[0][1] == "reset":
            return in_outage(way.conditions, time)
        return way.paused or in_outage(way.conditions, time)

    def _enqueue(self, way: _Way, direction: Direction, event: str, data: bytes, time: float) -> None:
        conditions = way.conditions
        left = self._rates[direction].take(len(data), conditions.bandwidth, time)
        arrival = left + max(0.0, conditions.delay + conditions.jitter * way.random.uniform(-1, 1))
        gap = conditions.fragment_gap if way.queue or way.last_arrival > time else 0.0
        way.last_arrival = max(arrival, way.last_arrival + gap)
        way.queue.append((way.last_arrival, event, data))
        way.waiting += len(data)

    def _note(self, record: Record) -> None:
        if self._log is not None:
            self._log({"c": self._number, **record})


def _flipped(way: _Way, data: bytes) -> bytes:
    """``data`` with those bits changed that the scenario names; bit 0 is the highest of the stream's first byte."""
    first, end = way.offset * 8, (way.offset + len(data)) * 8
    if not way.flips or way.flips[0] >= end:
        return data
    changed = bytearray(data)
    while way.flips and way.flips[0] < end:
        byte, bit = divmod(way.flips.pop(0) - first, 8)
        changed[byte] ^= 0x80 >> bit
    return bytes(changed)


def _fragments(way: _Way, data: bytes) -> list[bytes]:
    """``data`` cut at edges whose places in the stream depend on nothing but the seed."""
    smallest, largest = way.conditions.fragment
    if not smallest:
        return [data] if data else []
    pieces, at = [], 0
    while at < len(data):
        if not way.left_of_fragment:
            way.left_of_fragment = way.edges.randint(smallest, largest)
        piece = data[at : at + way.left_of_fragment]
        way.left_of_fragment -= len(piece)
        at += len(piece)
        pieces.append(piece)
    return pieces


def _after_outage(conditions: Conditions, time: float) -> float:
    if not in_outage(conditions, time):
        return time
    period = conditions.blackhole_on + conditions.blackhole_off
    # A little later, so that rounding cannot put the moment back into the outage.
    return (time // period + 1) * period + 1e-6
