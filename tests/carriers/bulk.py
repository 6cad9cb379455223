"""A carrier's user of its own for tests and benchmarks: sends bytes both ways and says what came.

As a process: ``python -m tests.carriers.bulk server URL`` takes orders of 8 + 8 bytes (how much will come, how much to
send) and fulfils them; ``... client URL --up BYTES --down BYTES`` gives one, and prints what it measured as JSON;
``... handshakes URL --count N`` opens N carriers at once and says how many came to life.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import time
from collections.abc import Sequence
from typing import Any

from twisted.python.failure import Failure

from mikanet.carriers.urls import CarrierContext, client_carrier, server_carrier
from mikanet.counters import Counters
from mikanet.guard.admission import AdmissionLimits
from mikanet.interfaces import ICarrier

PACKET = 4000


class Bulk:
    """Sends ``size`` bytes, that are the same each time, and hashes what comes."""

    def __init__(self, carrier: ICarrier) -> None:
        self.carrier: Any = carrier
        carrier.user = self
        self.to_send = 0
        self.sent = 0
        self.received = 0
        self.digest = hashlib.sha256()

    def give(self, size: int) -> None:
        """Send so much more."""
        self.to_send += size
        self.carrier_writable(self.carrier)

    def carrier_writable(self, carrier: Any) -> None:
        """Send while there is room."""
        while self.sent < self.to_send and self.carrier.writable:
            size = min(PACKET, self.to_send - self.sent, self.carrier.max_packet_size)
            self.carrier.send([packet_at(self.sent, size)])
            self.sent += size

    def packets_received(self, carrier: Any, packets: Sequence[bytes]) -> None:
        """Hash."""
        for packet in packets:
            self.received += len(packet)
            self.digest.update(packet)
        self.progressed(packets)

    def progressed(self, packets: Sequence[bytes]) -> None:
        """For subclasses."""

    def carrier_lost(self, carrier: Any, reason: Failure) -> None:
        """For subclasses."""


def packet_at(offset: int, size: int) -> bytes:
    """The bytes at an offset of what :class:`Bulk` sends."""
    return (offset.to_bytes(8, "big") * (size // 8 + 1))[:size]


def digest_of(size: int, packet: int = PACKET) -> str:
    """The hash of the first ``size`` bytes."""
    digest = hashlib.sha256()
    for at in range(0, size, packet):
        digest.update(packet_at(at, min(packet, size - at)))
    return digest.hexdigest()


class BulkServer(Bulk):
    """Takes one order and fulfils it; a packet of one byte comes back as it is."""

    wanted = -1

    def progressed(self, packets: Sequence[bytes]) -> None:
        """An order, a ping, or what was ordered."""
        for packet in packets:
            if len(packet) == 1:
                self.carrier.send([packet])
            elif len(packet) == 16:
                self.carrier.proven()
                self.received = 0
                self.wanted = int.from_bytes(packet[:8], "big") or -1
                self.give(int.from_bytes(packet[8:], "big"))
        if self.received == self.wanted:
            self.wanted = -1
            self.carrier.send([b"all came"])


class BulkClient(Bulk):
    """Pings, then orders, then waits for all."""

    def __init__(self, carrier: ICarrier, up: int, down: int, pings: int, done: Any) -> None:
        super().__init__(carrier)
        self.up, self.down, self.pings, self.done = up, down, pings, done
        self.times: list[float] = []
        self.began = time.monotonic()
        self.opened = self.began
        self._ping()

    def _ping(self) -> None:
        self.began = time.monotonic()
        if len(self.times) < self.pings:
            self.carrier.send([b"p"])
            return
        self.received = 0
        self.digest = hashlib.sha256()
        self.carrier.send([self.up.to_bytes(8, "big") + self.down.to_bytes(8, "big")])
        self.give(self.up)

    def progressed(self, packets: Sequence[bytes]) -> None:
        """A ping's echo, or what was ordered."""
        if len(self.times) < self.pings:
            self.times.append(time.monotonic() - self.began)
            self._ping()
        elif self.received >= self.down + (8 if self.up else 0):
            self.done()

    def carrier_lost(self, carrier: Any, reason: Failure) -> None:
        """Too early."""
        self.done(str(reason.value))


def main() -> None:
    """Run an end."""
    from twisted.internet import reactor as _reactor

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("role", choices=("server", "client", "handshakes"))
    parser.add_argument("url")
    parser.add_argument("--up", type=int, default=0)
    parser.add_argument("--down", type=int, default=0)
    parser.add_argument("--pings", type=int, default=10)
    parser.add_argument("--count", type=int, default=50)
    chosen = parser.parse_args()
    reactor: Any = _reactor
    # Many carriers of one address come to life at once here, over slow paths: all are strangers for a while.
    limits = AdmissionLimits(unverified_per_address=1000)
    context = CarrierContext(reactor, Counters(), limits)
    if chosen.role == "server":
        server_carrier(chosen.url, context).listen(_serve).addErrback(lambda f: (print(f), reactor.stop()))
        reactor.run()
        return
    if chosen.role == "handshakes":
        _handshakes(reactor, chosen.url, context, chosen.count)
        return
    began = time.monotonic()
    result: dict[str, Any] = {}

    def opened(carrier: Any) -> None:
        result["open"] = time.monotonic() - began
        result["found"] = carrier.found

        def done(problem: str = "") -> None:
            took = time.monotonic() - bulk.began
            if "problem" in result:
                return
            link = carrier.link
            result.update(
                problem=problem,
                seconds=took,
                rate=(chosen.up + chosen.down) / took,
                cpu=time.process_time(),
                pings=sorted(bulk.times),
                asked=link.asked,
                lost=link.lost,
                window=link.pace.window,
                resent=link.resent,
                digest=bulk.digest.hexdigest() if not chosen.up else "",
            )
            carrier.abort()
            reactor.callLater(0.05, reactor.stop)

        bulk = BulkClient(carrier, chosen.up, chosen.down, chosen.pings, done)

    def failed(reason: Failure) -> None:
        result["problem"] = str(reason.value)
        reactor.stop()

    client_carrier(chosen.url, context).open().addCallbacks(opened, failed)
    reactor.run()
    print(json.dumps(result))


def _serve(carrier: ICarrier) -> None:
    BulkServer(carrier)


def _handshakes(reactor: Any, url: str, context: CarrierContext, count: int) -> None:
    began = time.monotonic()
    times: list[float] = []
    problems: list[str] = []

    def ended() -> None:
        if len(times) + len(problems) == count:
            reactor.callLater(0, reactor.stop)

    class Pinged(Bulk):
        def progressed(self, packets: Sequence[bytes]) -> None:
            times.append(time.monotonic() - began)
            self.carrier.abort()
            ended()

    def opened(carrier: Any) -> None:
        Pinged(carrier).carrier.send([b"p"])

    def failed(reason: Failure) -> None:
        problems.append(str(reason.value))
        ended()

    for _ in range(count):
        client_carrier(url, context).open().addCallbacks(opened, failed)
    reactor.run()
    print(json.dumps({"times": sorted(times), "problems": problems}))


if __name__ == "__main__":
    main()
