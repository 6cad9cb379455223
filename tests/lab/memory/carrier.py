"""What the carriers in memory share: time on a test clock, the timer, a packet link with its timer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import (
    IReactorTime,
)
from twisted.internet.task import Clock

from tests.lab.link import Delivery, Link, Record
from tests.lab.recording import pieces
from tests.lab.scenario import Carrier, Direction, Scenario
from tests.lab.timer import Timer


def advance(clock: Clock, seconds: float, step: float = 0.001) -> None:
    """Let time pass in steps, so that what happens in one step can cause something in the next."""
    steps = round(seconds / step)
    for _ in range(steps):
        clock.advance(step)


def read_scenario(scenario: Scenario | str, carrier: Carrier) -> Scenario:
    made = Scenario.parse(scenario) if isinstance(scenario, str) else scenario
    made.require(carrier)
    return made


class PacketCarrier:
    """A packet link with its timer on a clock."""

    def __init__(
        self,
        scenario: Scenario | str,
        seed: int | str,
        clock: IReactorTime,
        log: Callable[[Record], object] | None,
    ) -> None:
        self.scenario = read_scenario(scenario, Carrier.PACKETS)
        self.clock = clock
        self.link = Link(self.scenario, seed, log)
        self._timer = Timer(clock, self._fire)
        for way in Direction:
            if self.scenario.towards(way).replay:
                recorded = pieces(self.scenario.towards(way).replay)
                self.link.replay(way, [(piece.time, piece.data) for piece in recorded if piece.direction is way])

    def send(self, direction: Direction, packet: bytes, envelope: Any = None) -> None:
        self.link.send(direction, packet, self.clock.seconds(), envelope)
        # Never from inside the sender's write: even without a delay a packet takes one turn of the clock.
        self._timer.arm(self.link.next_deadline())

    def block(self, direction: Direction, blocked: bool = True) -> None:
        """Let nothing pass in a direction from now on, or end that."""
        self.link.block(direction, blocked, self.clock.seconds())

    def rebind(self) -> None:
        """Give the client a new address now."""
        self.link.rebind(self.clock.seconds())

    def stop(self) -> None:
        """Forget what is under way; leaves no timer."""
        self.link.stop()
        self._timer.arm(None)

    def _fire(self) -> None:
        for delivery in self.link.due(self.clock.seconds()):
            self._deliver(delivery)
        self._timer.arm(self.link.next_deadline())

    def _deliver(self, delivery: Delivery) -> None:
        raise NotImplementedError


def client_address(scenario: Scenario, host: str, port: int, binding: int) -> tuple[str, int]:
    """The address that a client has after ``binding`` rebinds."""
    if scenario.up.rebind == "address":
        network, _, last = host.rpartition(".")
        return f"{network}.{int(last) + 100 + binding % 100 if binding else int(last)}", port
    return host, port + binding
