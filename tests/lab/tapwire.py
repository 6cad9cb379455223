"""The wire between two TAP devices: a process of its own that moves frames as a scenario says.

Started by :mod:`tests.lab.netns` with the two devices as open file descriptors and a socket for orders: one JSON line
``["block", "up", true]``, ``["rebind"]`` or ``["counts"]`` each, answered by one line. It ends when the socket does.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import signal
import socket
import sys
import time
from typing import IO, Any

from tests.lab.frames import FrameRules, Translator, is_group, mirrored
from tests.lab.link import Delivery, Link, Record
from tests.lab.recording import Piece, Recorders, pieces
from tests.lab.scenario import Carrier, Direction, Scenario

#: Frames that are read from one device before the other gets its turn (our choice).
_BATCH = 64


class TapWire:
    """Moves frames between two devices, ``first`` (the client's) and ``second``, until :meth:`order` says stop."""

    def __init__(
        self, scenario: Scenario, seed: int | str, first: int, second: int, log: IO[str] | None = None
    ) -> None:
        scenario.require(Carrier.PACKETS)
        self._log = log
        self.link = Link(scenario, seed, self._write_log if log is not None else None, FrameRules())
        self._devices = {Direction.UP: first, Direction.DOWN: second}
        self._translator = Translator(scenario.up.rebind == "address")
        self._translating = bool(scenario.up.rebind_first or scenario.up.rebind_freq)
        self._recorders = Recorders(scenario)
        self._started: float | None = None
        for way in Direction:
            conditions = scenario.towards(way)
            if conditions.replay:
                self.link.replay(way, [(p.time, p.data) for p in pieces(conditions.replay) if p.direction is way])

    def run(self, orders: socket.socket) -> None:
        """Work until the other side of ``orders`` is closed."""
        for device in self._devices.values():
            os.set_blocking(device, False)
        poll = select.epoll()
        poll.register(orders.fileno(), select.EPOLLIN)
        by_fd = {device: way for way, device in self._devices.items()}
        for device in by_fd:
            poll.register(device, select.EPOLLIN)
        reader = orders.makefile("r")
        while True:
            deadline = self.link.next_deadline()
            wait = -1.0 if deadline is None else max(0.0, deadline - time.monotonic())
            for fd, _ in poll.poll(wait):
                if fd == orders.fileno():
                    line = reader.readline()
                    if not line:
                        break
                    answer = self.order(json.loads(line))
                    orders.sendall(json.dumps(answer).encode() + b"\n")
                else:
                    self._read(by_fd[fd])
            else:
                for delivery in self.link.due(time.monotonic()):
                    self._deliver(delivery)
                continue
            break
        self._recorders.close()

    def order(self, order: list[Any]) -> Any:
        """Do what a line on the socket says; the answer."""
        now = time.monotonic()
        if order[0] == "block":
            self.link.block(Direction(order[1]), order[2], now)
        elif order[0] == "rebind":
            self._translating = True
            self.link.rebind(now)
        if self._log is not None:
            self._log.flush()
        return {f"{direction} {action}": count for (direction, action), count in sorted(self.link.counts.items())}

    def _read(self, direction: Direction) -> None:
        device = self._devices[direction]
        for _ in range(_BATCH):
            try:
                frame = os.read(device, 65536)
            except OSError:  # nothing more to read, or the device is down
                return
            if is_group(frame):
                self._write(direction.opposite, frame)
                continue
            now = time.monotonic()
            if self._started is None:
                self._started = now
            self._recorders.add(Piece(now - self._started, direction, frame))
            self.link.send(direction, frame, now)

    def _deliver(self, delivery: Delivery) -> None:
        frame: bytes | None = delivery.packet
        if delivery.origin == "mirror":
            frame = mirrored(delivery.packet)
        elif self._translating and delivery.direction is Direction.UP:
            frame = self._translator.up(delivery.packet, delivery.binding)
        elif self._translating:
            frame = self._translator.down(delivery.packet, self.link.binding(time.monotonic()))
        if frame is not None:
            self._write(delivery.direction.opposite, frame)

    def _write(self, end: Direction, frame: bytes) -> None:
        """Hand a frame to the device at whose end frames of direction ``end`` begin."""
        try:
            os.write(self._devices[end], frame)
        except OSError:
            self.link.counts[end.opposite.value, "device full"] += 1

    def _write_log(self, record: Record) -> None:
        assert self._log is not None
        self._log.write(json.dumps(record) + "\n")


def main(arguments: list[str]) -> None:
    """``tapwire FIRST-FD SECOND-FD ORDERS-FD SCENARIO SEED [LOG]``."""
    parser = argparse.ArgumentParser()
    for name in ("first", "second", "orders"):
        parser.add_argument(name, type=int)
    parser.add_argument("scenario")
    parser.add_argument("seed")
    parser.add_argument("log", nargs="?")
    options = parser.parse_args(arguments)
    # Ctrl-C is for the program that started us; it closes the socket when it is done with us.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    log = open(options.log, "w", encoding="ascii") if options.log else None  # noqa: SIM115
    wire = TapWire(Scenario.parse(options.scenario), options.seed, options.first, options.second, log)
    with socket.socket(fileno=options.orders) as orders:
        orders.sendall(b"ready\n")
        wire.run(orders)
    if log is not None:
        log.close()


if __name__ == "__main__":
    main(sys.argv[1:])
