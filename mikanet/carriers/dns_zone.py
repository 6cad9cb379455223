"""What a tunnel's name server answers. No I/O.

Names that carry messages go to a :class:`~mikanet.carriers.polled_server.PolledServer`; the apex has what resolvers and
registrars ask for; any other name of the zone exists and is empty, because resolvers that ask label by label (RFC 9156)
must not hear that there is nothing below. Every TTL is 0.

Over UDP nothing larger than :func:`~mikanet.guard.amplification.allowance` goes to an address that has not shown that
answers reach it: what does not fit is truncated, so that a resolver comes again by TCP, which shows it.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from mikanet.carriers.dns_records import CARRYING, from_labels, records_room, to_records
from mikanet.carriers.polled_numbers import Numbers
from mikanet.carriers.polled_server import PolledLink, PolledServer
from mikanet.errors import RemoteProtocolError
from mikanet.guard.admission import address_group
from mikanet.guard.amplification import allowance
from mikanet.wire import dns

#: Largest answer over UDP, if its asker and its client want so much.
MAX_UDP = 4096
#: Largest answer over TCP; a link's segments need no more.
MAX_TCP = 16384
_SERIAL = 1
#: A record with a name that is a pointer: pointer, type, class, TTL, length.
_POINTING = struct.Struct("!HHHIH")
_QUESTION_AT = 0xC000 | 12


@dataclass(slots=True)
class DnsWay:
    """How to answer a question.

    :ivar to: whoever asked, as the adapter names it: over UDP a tuple that begins with the address. :ivar limit: bytes
        that may answer what proves nothing by itself.
    """

    to: Any
    query: dns.Query
    tcp: bool
    limit: int

    @property
    def host(self) -> str | None:
        """The address group that answers go to; None over TCP, where they arrive."""
        if self.tcp:
            return None
        return address_group(self.to[0]) if isinstance(self.to, tuple) else str(self.to)


class DnsZone:
    """A name server for one zone.

    :param zone: its name on the wire. :param nameserver: what its NS record says, on the wire.
    :param addresses: of the name server, by the asker (IPv4 and IPv6 addresses that the outside knows it by).
    :param send: called with whom to answer, and the message.
    """

    def __init__(
        self,
        zone: bytes,
        nameserver: bytes,
        addresses: Callable[[Any], list[IPv4Address | IPv6Address]],
        numbers: Numbers,
        started: Callable[[PolledLink, Any], bool],
        send: Callable[[Any, bytes], None],
    ) -> None:
        self.zone = zone
        self._labels = [label.lower() for label in dns.labels_of(zone)]
        self._nameserver = nameserver
        self._addresses = addresses
        self._send = send
        self.tunnel = PolledServer(self._reply, numbers, started, host_of=lambda way: way.host)

    def received(self, data: bytes, to: Any, tcp: bool, now: float) -> tuple[PolledLink, list[bytes]] | None:
        """A message came; what :meth:`PolledServer.question` says of it.

        :raises RemoteProtocolError: if it is no query at all; it gets no answer.
        """
        query = dns.read_query(data)
        ours = len(self._labels)
        labels = query.labels
        if query.cls != dns.IN or [label.lower() for label in labels[len(labels) - ours :]] != self._labels:
            self._send(to, dns.build_answer(query, 0, b"", dns.REFUSED))
            return None
        way = DnsWay(to, query, tcp, allowance(len(data)))
        host = way.host
        if host is None or self.tunnel.reached.has(host, now):
            way.limit = MAX_TCP
        if len(labels) == ours:
            self._apex(way)
            return None
        if query.type in CARRYING:
            limit = MAX_TCP if tcp else min(query.size, MAX_UDP)
            room, cautious = self._room(query, limit), self._room(query, min(limit, way.limit))
            try:
                message = from_labels(labels[: len(labels) - ours]) + query.data
                return self.tunnel.question(message, way, room, now, query.type, cautious)
            except RemoteProtocolError:
                pass  # part of a name, a name of somebody's own, or a link that is not here any more
        if self._name_of(query) == self._nameserver.lower():
            self._answer_addresses(way)
        else:
            self._nothing(way)
        return None

    def _room(self, query: dns.Query, limit: int) -> int:
        return records_room(query.type, dns.answer_room(query, limit), self.zone)

    def _zone_at(self, query: dns.Query) -> int:
        """Where in an answer the zone's name stands: at the end of the question."""
        return 12 + len(query.section) - 4 - len(self.zone)

    @staticmethod
    def _name_of(query: dns.Query) -> bytes:
        return query.section[:-4].lower()

    def _reply(self, way: DnsWay, message: bytes | None) -> None:
        query = way.query
        if message is None:
            self._send(way.to, dns.build_answer(query, 0, b"", dns.AA | dns.TC))
            return
        count, records = to_records(query.type, message, self.zone, self._zone_at(query))
        self._send(way.to, dns.build_answer(query, count, records))

    # -- what is no tunnel

    def _apex(self, way: DnsWay) -> None:
        kind = way.query.type
        if kind == dns.SOA:
            self._answer(way, [self._soa(way.query)])
        elif kind == dns.NS:
            self._answer(way, [self._nameserver])
        elif kind in (dns.A, dns.AAAA):
            self._answer_addresses(way)
        else:
            self._nothing(way)

    def _soa(self, query: dns.Query) -> bytes:
        """The data of the SOA record, with pointers to the zone in the question: it is small, whatever was asked."""
        zone, pointer = self.zone, (0xC000 | self._zone_at(query)).to_bytes(2, "big")
        master = self._nameserver
        if master.endswith(zone):
            master = master[: -len(zone)] + pointer
        return dns.soa(master, b"\x0ahostmaster" + pointer, _SERIAL)

    def _answer_addresses(self, way: DnsWay) -> None:
        kind = way.query.type
        version = 4 if kind == dns.A else 6 if kind == dns.AAAA else 0
        self._answer(way, [found.packed for found in self._addresses(way.to) if found.version == version])

    def _answer(self, way: DnsWay, datas: list[bytes]) -> None:
        if not datas:
            self._nothing(way)
            return
        query = way.query
        records = b"".join(_POINTING.pack(_QUESTION_AT, query.type, dns.IN, 0, len(data)) + data for data in datas)
        self._deliver(way, dns.build_answer(query, len(datas), records))

    def _nothing(self, way: DnsWay) -> None:
        """The name exists, and has no such record."""
        query = way.query
        soa = self._soa(query)
        record = _POINTING.pack(0xC000 | self._zone_at(query), dns.SOA, dns.IN, 0, len(soa)) + soa
        self._deliver(way, dns.build_answer(query, 0, record, dns.AA, 1))

    def _deliver(self, way: DnsWay, message: bytes) -> None:
        """Send an answer, or that it is to be asked for by TCP."""
        if len(message) > way.limit:
            message = dns.build_answer(way.query, 0, b"", dns.AA | dns.TC)
        self._send(way.to, message)
