"""The client's side of DNS: how a link's questions look, and what a path lets through. No I/O, no clock.

A handshake asks in all ways at once and believes only what came back unchanged: a challenge first, which brings the
link's number, then probes of record types and sizes, then the start. What it found is a :class:`DnsMode`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from mikanet.carriers import polled_wire as wire
from mikanet.carriers.dns_records import CARRYING, from_answer, name_room, to_labels
from mikanet.carriers.polled_asks import FIRST_TIMEOUT, Ask, Asks
from mikanet.errors import RemoteProtocolError
from mikanet.wire import dns
from mikanet.wire.base32 import encoded_size

#: Bytes of a message that stay in the name where the rest travels beside it: one label at most.
_IN_NAME = wire.UP_OVERHEAD - 2
#: What we say we take over UDP while probing: no fragments on an Ethernet path.
PROBED_SIZE = 1452
#: Bytes of a question that travels beside the name.
WIDE_ROOM = 1200
#: Sizes of answers that probes ask for: what fits 1,452, 1,232 and 512 bytes of DNS.
_WANTED = {
    dns.NULL: (1384, 1164, 444),
    dns.TXT: (1378, 1158, 440),
    dns.CNAME: (140,),
    dns.MX: (480,),
    dns.AAAA: (410,),
    dns.A: (170,),
}
#: What answers lose when their question's name grows from that of a probe to a whole label.
_LONGER_NAME = {dns.NULL: 48, dns.TXT: 48, dns.CNAME: 0, dns.MX: 0, dns.AAAA: 28, dns.A: 12}
#: Codes of servers that do not know OPT records (RFC 6891, section 7).
WITHOUT_EDNS = frozenset({dns.FORMERR, dns.NOTIMP})
#: How often a probe is asked before it counts as lost; the other questions go on until the time is over.
_PROBE_TRIES = 4
#: Seconds after which types other than NULL and TXT are tried too.
_LAST_RESORT = 1.5
#: Questions whose sections are remembered.
_MAX_SECTIONS = 8192


@dataclass(frozen=True)
class DnsMode:
    """How a link's messages travel.

    :ivar type: of the records. :ivar size: bytes of an answer's message. :ivar name: bytes that fit into a name.
    :ivar wide: bytes of a question in all where data may travel beside the name, else 0. :ivar edns: what is said of
        the size over UDP, None to say nothing.
    """

    type: int
    size: int
    name: int
    wide: int
    edns: int | None

    @property
    def room(self) -> int:
        """Bytes of a question."""
        return self.wide or self.name

    def __str__(self) -> str:
        beside = f", {self.wide} beside the name" if self.wide else ""
        return f"{dns.TYPE_NAMES[self.type]}, {self.size} bytes down, {self.name} up{beside}"


class DnsAnswerError(RemoteProtocolError):
    """An answer that carries no message. :ivar rcode: the resolver's code. :ivar truncated: it asks for TCP."""

    def __init__(self, rcode: int, truncated: bool) -> None:
        super().__init__(f"a DNS answer with code {rcode}{', truncated' if truncated else ''} and no message")
        self.rcode = rcode
        self.truncated = truncated


def read_answer(data: bytes, section: bytes, kind: int, zone: bytes) -> bytes:
    """The message in an answer to the question ``section``.

    :raises DnsAnswerError: if it has none. :raises RemoteProtocolError: if it answers something else, or is broken.
    """
    size = len(section)
    if len(data) == 12 and data[2] & 0x80 and data[3] & 15 in WITHOUT_EDNS and data[4:6] == b"\0\0":
        raise DnsAnswerError(data[3] & 15, False)  # of a question that its server could not read, and does not repeat
    if len(data) < 12 + size or not data[2] & 0x80 or data[12 : 12 + size].lower() != section:
        raise RemoteProtocolError("a DNS answer to another question")
    if data[3] & 15 or data[2] & 2 or data[6:8] == b"\0\0":
        raise DnsAnswerError(data[3] & 15, bool(data[2] & 2))
    return from_answer(data, kind, size, zone)


class DnsPath:
    """Questions and answers of one link in one mode.

    :param key: 16 random bits: identifiers are a link's numbers under it, unknown to who does not see them.
    """

    def __init__(self, zone: bytes, mode: DnsMode, key: int) -> None:
        self._zone = zone.lower()
        self._tail = self._zone + mode.type.to_bytes(2, "big") + dns.IN.to_bytes(2, "big")
        self._mode = mode
        self._key = key
        self._sections: dict[int, bytes] = {}

    def question(self, number: int, message: bytes) -> bytes:
        """The datagram for a question."""
        mode = self._mode
        beside = b""
        if mode.wide and len(message) > _IN_NAME:
            message, beside = message[:_IN_NAME], message[_IN_NAME:]
        section = to_labels(message) + self._tail
        sections = self._sections
        sections[number] = section
        if len(sections) > _MAX_SECTIONS:
            del sections[next(iter(sections))]
        return dns.build_query(number ^ self._key, section, mode.edns, beside)

    def answer(self, data: bytes) -> tuple[int, bytes]:
        """The number and message of an answer.

        :raises DnsAnswerError: if it has no message; its ``number`` is :meth:`number_of`.
        :raises RemoteProtocolError: if it is none of ours.
        """
        number = self.number_of(data)
        section = self._sections.get(number)
        if section is None:
            raise RemoteProtocolError("a DNS answer to no question")
        message = read_answer(data, section, self._mode.type, self._zone)
        del self._sections[number]
        return number, message

    def number_of(self, data: bytes) -> int:
        """The number of the question that an answer names."""
        return int.from_bytes(data[:2], "big") ^ self._key


@dataclass
class _DnsAsk(Ask):
    """A question in DNS. :ivar beside: what of the message travels beside the name.

    :ivar sections: of each time it was asked, by identifier.
    """

    kind: int = dns.TXT
    edns: int | None = None
    beside: bytes = b""
    sections: dict[int, bytes] = field(default_factory=dict)


class DnsHandshake:
    """Everything before a link.

    :param random_bits: gives so many random bits. :param types: of records that may be used, the best first.
    :param size: largest answer to ask for. :param stock: and :param hold: as the start's, for straight paths and others.
    :ivar connection: the link's number, once known. :ivar mode: what was found, once the link has started.
    :ivar refusals: error codes that came instead of answers.
    """

    def __init__(
        self,
        zone: bytes,
        random_bits: Callable[[int], int],
        now: float,
        *,
        types: tuple[int, ...] = CARRYING,
        size: int = PROBED_SIZE,
        wide: bool = True,
        stock: tuple[int, int] = (8, 4),
        hold: tuple[float, float] = (3.0, 1.5),
        tcp: bool = False,
    ) -> None:
        self._zone = zone.lower()
        self._random_bits = random_bits
        self._types = types
        self._size = size
        self._wide = wide
        self._stock_choice, self._hold_choice = stock, hold
        self._tcp = tcp
        self._edns: tuple[int | None, ...] = (
            size,
        )  # what queries say of the size; None is nothing, without an OPT record
        self._challenge = random_bits(8 * wire.CHALLENGE_SIZE).to_bytes(wire.CHALLENGE_SIZE, "big")
        self._asks: Asks[_DnsAsk] = Asks()
        self._idents: dict[int, _DnsAsk] = {}
        self._probes_end = 0.0
        self._name_room = name_room(zone)
        self._stage = "hello"
        self._chosen: DnsMode | None = None
        self.connection: int | None = None
        self.mode: DnsMode | None = None
        self.refusals: list[int] = []
        self.answered = False
        for number, kind in enumerate(types):
            self._add("hello", wire.hello(self._challenge), kind, now + (_LAST_RESORT if number > 1 else 0))
        plain = types[-1] if len(types) == 1 else types[1]
        self._add("hello", wire.hello(self._challenge), plain, now + 1, edns=None)

    @property
    def rtt(self) -> float:
        """The least round-trip time seen, in seconds."""
        return min(self._asks.rtts, default=FIRST_TIMEOUT)

    @property
    def stock(self) -> int:
        """Questions that the server keeps: fewer where a resolver keeps them too."""
        return self._stock_choice[0 if self._straight else 1]

    @property
    def hold(self) -> float:
        """Seconds for which it keeps them: fewer where a resolver waits too."""
        return self._hold_choice[0 if self._straight else 1]

    @property
    def _straight(self) -> bool:
        return bool(self._chosen and self._chosen.wide)

    def _add(
        self,
        name: str,
        message: bytes,
        kind: int,
        due: float,
        *,
        edns: int | None = 0,
        beside: bytes = b"",
        tries: int = 1000,
    ) -> None:
        size = self._size if edns == 0 else edns
        self._asks.all.append(_DnsAsk(name, message, due, tries, kind=kind, edns=size, beside=beside))

    # -- what the adapter calls

    @property
    def deadline(self) -> float:
        """When something is to be asked."""
        times = [] if (due := self._asks.deadline) is None else [due]
        if self._stage == "probes":
            times.append(self._probes_end)
        return min(times, default=0.0)

    def questions(self, now: float) -> list[bytes]:
        """Datagrams to send now."""
        if self._stage == "probes":
            self._judge(now)
        return [self._datagram(ask) for ask in self._asks.take_due(now)]

    def _datagram(self, ask: _DnsAsk) -> bytes:
        ident = self._random_bits(16)
        section = to_labels(ask.message) + self._zone + ask.kind.to_bytes(2, "big") + b"\0\1"
        ask.sections[ident] = section
        self._idents[ident] = ask
        return dns.build_query(ident, section, ask.edns, ask.beside)

    def received(self, data: bytes, now: float) -> None:
        """A datagram came."""
        ident = int.from_bytes(data[:2], "big")
        ask = self._idents.get(ident)
        if ask is None or not ask.open:
            return
        try:
            message = read_answer(data, ask.sections[ident], ask.kind, self._zone)
        except DnsAnswerError as problem:
            self.answered = True
            self.refusals.append(problem.rcode)
            if self._stage == "hello" and ask.edns is not None and problem.rcode in WITHOUT_EDNS:
                self._without_edns(now)
            ask.refused = problem.rcode in (dns.NOERROR, dns.FORMERR, dns.NOTIMP) and not problem.truncated
            return
        except RemoteProtocolError:
            return
        self.answered = True
        if self._stage == "hello":
            self.connection = wire.read_welcome(message, self._challenge)
            if self.connection is None:
                return
            if ask.edns is None and None not in self._edns:
                self._edns = (self._size, None)  # the others are late, or OPT records are lost: probes will tell
        self._asks.answered(ask, message, now)
        if self._stage == "hello":
            self._begin_probes(now)
        elif self._stage == "probes":
            self._judge(now)
        elif message == wire.STARTED:
            self.mode = self._chosen

    def _without_edns(self, now: float) -> None:
        """Somebody on the way takes OPT records for errors: ask without any, at once."""
        if self._edns == (None,):
            return
        self._edns = (None,)
        self._asks.all = []
        for number, kind in enumerate(self._types):
            self._add("hello", wire.hello(self._challenge), kind, now + (_LAST_RESORT if number > 1 else 0), edns=None)

    # -- probes

    def _begin_probes(self, now: float) -> None:
        self._stage = "probes"
        self._asks.all = []
        assert self.connection is not None
        rtt = self._asks.timeout
        self._probes_end = now + rtt * 5
        number = 0
        for rank, kind in enumerate(self._types):
            later = now + 2 * rtt if rank > 1 else now
            for size, edns in self._sizes(kind):
                number += 1
                self._add(f"down/{kind}", self._probe(size, number, 0), kind, later, edns=edns, tries=_PROBE_TRIES)
        for length in (self._name_room, self._name_room // 2):
            number += 1
            for way in self._types[:2]:
                for edns in self._edns:
                    self._add("name", self._probe(8, number, length), way, now, edns=edns, tries=_PROBE_TRIES)
        if self._wide and self._size in self._edns:
            number += 1
            whole = self._probe(8, number, WIDE_ROOM)
            for way in self._types[:2]:
                self._add("wide", whole[:_IN_NAME], way, now, beside=whole[_IN_NAME:], tries=_PROBE_TRIES)

    def _sizes(self, kind: int) -> list[tuple[int, int | None]]:
        """The answers of a type to ask for: their sizes, and what the query says of the size."""
        wanted = _WANTED[kind]
        sizes: list[tuple[int, int | None]] = []
        if self._size in self._edns:
            largest = wanted[0] if self._size <= PROBED_SIZE else self._size - 100
            sizes += [(size, self._size) for size in (largest, *wanted[1:])]
        if None in self._edns:
            sizes.append((wanted[-1], None))
        return sizes

    def _probe(self, size: int, number: int, length: int) -> bytes:
        assert self.connection is not None
        return wire.probe(self.connection, size, self._random_bits(12) << 4 | number & 15, length)

    def _judge(self, now: float) -> None:
        """Start, once nothing better is to be expected, or the time is over."""
        # Types of the last resort are asked only if the first ones bring nothing.
        first = [ask for ask in self._asks.all if ask.name[:4] != "down" or ask.kind in self._types[:2]]
        found = self._found()
        if not any(ask.open for ask in first) and found is not None:
            self._begin_start(found, now)
        elif found is not None and found.wide and found.size >= _WANTED[dns.TXT][0] - 100:
            self._begin_start(found, now)  # nothing is better
        elif now >= self._probes_end:
            if found is not None:
                self._begin_start(found, now)
            else:
                self._probes_end = now + 1

    def _found(self) -> DnsMode | None:
        """The best that probes have shown so far."""
        best: tuple[int, int, int, int] | None = None
        for ask in self._asks.all:
            if ask.answer is not None and ask.name.startswith("down"):
                size = (wire.read_probed(ask.answer, ask.message) or 0) - _LONGER_NAME[ask.kind]
                choice = (size, -self._types.index(ask.kind), ask.kind, ask.edns or 0)
                best = max(best, choice) if best else choice
        if best is None or best[0] < 16:
            return None
        edns = best[3] or None
        named = [ask for ask in self._asks.all if ask.name == "name" and ask.edns == edns]
        name = max((len(ask.message) for ask in named if self._came(ask)), default=0)
        wide = edns is not None and any(ask.name == "wide" and self._came(ask) for ask in self._asks.all)
        if not name and all(ask.open for ask in named):
            return None
        return DnsMode(best[2], best[0], name or 40, WIDE_ROOM if wide else 0, edns)

    @staticmethod
    def _came(ask: _DnsAsk) -> bool:
        """Whether all that was asked came, as it was asked."""
        return ask.answer is not None and wire.read_probed(ask.answer, ask.message + ask.beside) is not None

    def _begin_start(self, mode: DnsMode, now: float) -> None:
        self._stage = "start"
        self._chosen = mode
        self._asks.all = []
        assert self.connection is not None
        message = wire.start(self.connection, mode.type, mode.size, self.stock, self.hold, self._random_bits(16))
        self._add("start", message, mode.type, now, edns=mode.edns)


def names_fit(zone: bytes) -> bool:
    """Whether questions in this zone have room for data at all."""
    return encoded_size(name_room(zone)) > 80
