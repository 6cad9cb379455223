"""The packet link: decides what happens to each packet, by scenario and seed. No I/O, no clock of its own.

Packets go in with the time (:meth:`Link.send`), deliveries come out at theirs (:meth:`Link.due`); the carrier that
holds a link moves bytes and keeps the timer. Seven numbers are drawn for every packet, whatever the scenario, from a
generator of its direction: so what happens to packet *n* by chance depends on the seed, the direction and *n* alone,
neither on the timing nor on the other words. Every decision goes to the log as one record.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import random
from collections.abc import Callable, Iterable
from typing import Any, Protocol

from tests.lab.scenario import Conditions, Direction, Scenario

#: A record of the log: what came in or happened, and what was done. Plain JSON values.
Record = dict[str, Any]


@dataclasses.dataclass(frozen=True, slots=True)
class Delivery:
    """One packet to hand over now.

    :ivar direction: the way it travels: a mirrored packet comes back against the direction in which it was sent.
    :ivar at: when it was due, on the clock of the carrier.
    :ivar origin: ``sent``, ``duplicate``, ``mirror``, ``inject`` or ``replay``.
    :ivar binding: how often the client had been given a new address when the packet entered.
    :ivar envelope: what the carrier gave along with the packet (of another packet, if this one is forged).
    """

    direction: Direction
    packet: bytes
    at: float
    origin: str
    binding: int
    envelope: Any


class PacketRules(Protocol):
    """What a link must know to change packets of a format: where changes may fall, and how sums are made right."""

    def whole(self, packet: bytes) -> tuple[int, int]:
        """First and last-plus-one offset that line damage may touch."""

    def payload(self, packet: bytes) -> tuple[int, int]:
        """First and last-plus-one offset of what a forger changes; an empty span if there is nothing."""

    def mend(self, packet: bytearray) -> None:
        """Make the checksums right again, in place."""


class Opaque:
    """Rules for packets that are nothing but payload, as UDP datagrams are to a relay."""

    def whole(self, packet: bytes) -> tuple[int, int]:
        """All of it."""
        return 0, len(packet)

    payload = whole

    def mend(self, packet: bytearray) -> None:
        """There are no sums."""


class _Way:
    """The state of one direction."""

    def __init__(self, conditions: Conditions, seed: int | str, name: str) -> None:
        self.conditions = conditions
        self.number = 0
        self.random = random.Random(f"{seed}/{name}")
        self.blocked = False
        self.lost_in_a_row = 0
        self.free_at = 0.0
        self.departures: collections.deque[float] = collections.deque()
        self.last_arrival = 0.0
        self.last: tuple[bytes, Any] | None = None
        self.forger = random.Random(f"{seed}/{name}/inject")
        self.next_inject = 1 / conditions.inject if conditions.inject else None


class Link:
    """One link between two ends.

    Its time starts with the first packet: outages, rebinds and injections are counted from there.

    :ivar counts: how often each action was taken, by (direction, action).
    """

    def __init__(
        self,
        scenario: Scenario,
        seed: int | str,
        log: Callable[[Record], object] | None = None,
        rules: PacketRules | None = None,
    ) -> None:
        self.scenario = scenario
        self.seed = seed
        self.counts: collections.Counter[tuple[str, str]] = collections.Counter()
        self._log = log
        self._rules: PacketRules = rules or Opaque()
        self._ways = {way: _Way(scenario.towards(way), seed, way.value) for way in Direction}
        self._start: float | None = None
        self._heap: list[tuple[float, int, Delivery]] = []
        self._sequence = 0
        self._extra_bindings = 0
        if log is not None:
            log({"scenario": str(scenario), "seed": seed})

    # -- what a carrier calls

    def send(self, direction: Direction, packet: bytes, now: float, envelope: Any = None) -> None:
        """A packet enters the link."""
        time = self._time(now)
        self._inject_until(time)
        way = self._ways[direction]
        way.number += 1
        draws = [way.random.random() for _ in range(7)]
        record: Record = {"t": time, "d": direction.value, "n": way.number, "len": len(packet)}
        reason = self._dropped(way, packet, time, draws[0])
        if reason is not None:
            self._note(direction, reason, record)
            return
        way.last = packet, envelope
        packet = self._damage(way, direction, packet, draws, record)
        arrival = self._arrival(way, len(packet), time, draws)
        binding = self.binding(now)
        if draws[4] < way.conditions.reorder:
            arrival += way.conditions.reorder_by
            record["reorder"] = True
            self.counts[direction.value, "reorder"] += 1
        else:
            way.last_arrival = arrival
        record["at"] = [arrival]
        self._schedule(Delivery(direction, packet, arrival, "sent", binding, envelope))
        if draws[3] < way.conditions.duplicate:
            again = arrival + way.conditions.duplicate_after
            record["at"].append(again)
            self.counts[direction.value, "duplicate"] += 1
            self._schedule(Delivery(direction, packet, again, "duplicate", binding, envelope))
        if draws[5] < way.conditions.mirror:
            record["mirror"] = arrival
            self.counts[direction.value, "mirror"] += 1
            self._schedule(Delivery(direction.opposite, packet, arrival, "mirror", binding, envelope))
        self._note(direction, "deliver", record)

    def due(self, now: float) -> list[Delivery]:
        """What has arrived by now, in the order of arrival."""
        if self._start is None:
            return []
        time = now - self._start
        self._inject_until(time)
        out = []
        while self._heap and self._heap[0][0] <= time:
            _, _, delivery = heapq.heappop(self._heap)
            out.append(dataclasses.replace(delivery, at=delivery.at + self._start))
        return out

    def next_deadline(self) -> float | None:
        """When :meth:`due` has something next; None while nothing is under way."""
        if self._start is None:
            return None
        times = [way.next_inject for way in self._ways.values() if way.next_inject is not None]
        if self._heap:
            times.append(self._heap[0][0])
        return min(times) + self._start if times else None

    # -- by hand, from a test

    def block(self, direction: Direction, blocked: bool, now: float) -> None:
        """Let nothing pass in a direction from now on, or end that."""
        self._ways[direction].blocked = blocked
        self._note(direction, "block" if blocked else "unblock", {"t": self._time(now), "d": direction.value})

    def rebind(self, now: float) -> None:
        """Give the client a new address now."""
        self._extra_bindings += 1
        self._note(Direction.UP, "rebind", {"t": self._time(now), "d": "up"})

    def replay(self, direction: Direction, packets: Iterable[tuple[float, bytes]]) -> None:
        """Deliver recorded packets too, each at its time on the link plus the delay."""
        delay = self.scenario.towards(direction).delay
        for time, packet in packets:
            self.counts[direction.value, "replay"] += 1
            self._schedule(Delivery(direction, packet, time + delay, "replay", 0, None))

    def binding(self, now: float) -> int:
        """How often the client has been given a new address by now."""
        conditions, time = self.scenario.up, self._time(now)
        count = self._extra_bindings
        first = conditions.rebind_first or conditions.rebind_freq
        if first and time >= first:
            count += 1
            if conditions.rebind_freq:
                count += int((time - first) / conditions.rebind_freq)
        return count

    def stop(self) -> None:
        """Forget what is under way and inject no more."""
        self._heap.clear()
        for way in self._ways.values():
            way.next_inject = None

    # -- decisions

    def _dropped(self, way: _Way, packet: bytes, time: float, draw: float) -> str | None:
        """The name of the reason why a packet does not arrive, or None. Every reason keeps its own state up to date."""
        conditions = way.conditions
        lost = self._lost(way, draw)
        if way.blocked or in_outage(conditions, time):
            return "blackhole"
        if way.number in conditions.droplist:
            return "droplist"
        if lost:
            return "loss"
        if conditions.mtu and len(packet) > conditions.mtu:
            return "mtu"
        if conditions.bandwidth and conditions.queue:
            while way.departures and way.departures[0] <= time:
                way.departures.popleft()
            # One of those that have not left is being sent; the others wait in the queue.
            if len(way.departures) > conditions.queue:
                return "queue"
        return None

    def _lost(self, way: _Way, draw: float) -> bool:
        conditions, run = way.conditions, way.conditions.loss_run
        if run:
            # Two states: a run goes on with a chance that gives its mean length, and begins so that the rate is right.
            chance = 1 - 1 / run if way.lost_in_a_row else conditions.loss / (run * (1 - conditions.loss))
            lost = draw < chance
        else:
            lost = draw < conditions.loss
            if conditions.loss_burst and way.lost_in_a_row >= conditions.loss_burst:
                lost = False
        way.lost_in_a_row = way.lost_in_a_row + 1 if lost else 0
        return lost

    def _damage(self, way: _Way, direction: Direction, packet: bytes, draws: list[float], record: Record) -> bytes:
        for name, draw, span in (
            ("corrupt", draws[1], self._rules.whole),
            ("forge", draws[2], self._rules.payload),
        ):
            if draw >= getattr(way.conditions, name):
                continue
            first, end = span(packet)
            if first < end:
                choice = random.Random(f"{self.seed}/{direction.value}/{way.number}/{name}")
                offset, mask = choice.randrange(first, end), choice.randrange(1, 256)
                changed = bytearray(packet)
                changed[offset] ^= mask
                if name == "forge":
                    self._rules.mend(changed)
                packet = bytes(changed)
                record[name] = [offset, mask]
                self.counts[direction.value, name] += 1
        return packet

    def _arrival(self, way: _Way, size: int, time: float, draws: list[float]) -> float:
        conditions = way.conditions
        departure = time
        if conditions.bandwidth:
            departure = max(time, way.free_at) + size * 8 / conditions.bandwidth
            way.free_at = departure
            if conditions.queue:
                way.departures.append(departure)
        swing = conditions.jitter * (2 * draws[6] - 1)
        # Jitter alone keeps the order, as a queue does; packets overtake each other by the word reorder.
        return max(departure + max(0.0, conditions.delay + swing), way.last_arrival)

    def _inject_until(self, time: float) -> None:
        for direction, way in self._ways.items():
            while way.next_inject is not None and way.next_inject <= time:
                at = way.next_inject
                way.next_inject = at + 1 / way.conditions.inject
                if way.last is not None:
                    self._inject(direction, way, at)

    def _inject(self, direction: Direction, way: _Way, at: float) -> None:
        """Forge a packet after the last one that passed: all of its payload random, or some bytes of it."""
        assert way.last is not None
        packet, envelope = bytearray(way.last[0]), way.last[1]
        first, end = self._rules.payload(way.last[0])
        if first >= end:
            return
        if way.forger.random() < 0.5:
            packet[first:end] = way.forger.randbytes(end - first)
        else:
            for _ in range(way.forger.randint(1, 8)):
                packet[way.forger.randrange(first, end)] ^= way.forger.randrange(1, 256)
        self._rules.mend(packet)
        self._schedule(Delivery(direction, bytes(packet), at, "inject", self._binding_at(at), envelope))
        self._note(direction, "inject", {"t": at, "d": direction.value, "len": len(packet)})

    # -- small helpers

    def _time(self, now: float) -> float:
        if self._start is None:
            self._start = now
        return now - self._start

    def _binding_at(self, time: float) -> int:
        assert self._start is not None
        return self.binding(self._start + time)

    def _schedule(self, delivery: Delivery) -> None:
        self._sequence += 1
        heapq.heappush(self._heap, (delivery.at, self._sequence, delivery))

    def _note(self, direction: Direction, action: str, record: Record) -> None:
        self.counts[direction.value, action] += 1
        if self._log is not None:
            record["do"] = action
            self._log(record)


def in_outage(conditions: Conditions, time: float) -> bool:
    """Whether the link is dead at this time: it works for ``blackhole-on``, is dead for ``blackhole-off``, and so on."""
    if not conditions.blackhole_off:
        return False
    return time % (conditions.blackhole_on + conditions.blackhole_off) >= conditions.blackhole_on


def check_log(records: Iterable[Record]) -> int:
    """Run a log again from its scenario and seed; the number of decisions, all of which came out the same.

    :raises ValueError: at the first record that comes out differently.
    """
    source = iter(records)
    head = next(source)
    again: list[Record] = []
    link = Link(Scenario.parse(head["scenario"]), head["seed"], again.append)
    count = 0
    for record in source:
        if record["do"] in ("block", "unblock"):
            link.block(Direction(record["d"]), record["do"] == "block", record["t"])
        elif record["do"] == "rebind":
            link.rebind(record["t"])
        elif record["do"] == "inject":
            continue  # comes by itself, with the packet after it
        else:
            link.send(Direction(record["d"]), bytes(record["len"]), record["t"])
        if not _same(record, again[-1]):
            raise ValueError(f"decision {count + 1} differs: logged {record}, now {again[-1]}")
        count += 1
    return count


def _same(logged: Record, again: Record) -> bool:
    # Where damage falls may depend on the content of a frame, which the log does not hold.
    content = ("corrupt", "forge")
    return {k: v for k, v in logged.items() if k not in content} == {k: v for k, v in again.items() if k not in content}
