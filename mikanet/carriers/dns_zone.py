"""What a tunnel's name server answers. No I/O.

Names that carry messages go to a :class:`~mikanet.carriers.polled_server.PolledServer`; the apex has what resolvers and
registrars ask for; any other name of the zone exists and is empty, because resolvers that ask label by label (RFC 9156)
must not hear that there is nothing below. Every TTL is 0.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from typing import Any

from mikanet.carriers.dns_records import CARRYING, from_labels, records_room, to_records
from mikanet.carriers.polled_numbers import Numbers
from mikanet.carriers.polled_server import PolledLink, PolledServer
from mikanet.errors import RemoteProtocolError
from mikanet.wire import dns

#: Largest answer over UDP, if its asker and its client want so much.
MAX_UDP = 4096
#: Largest answer over TCP; a link's segments need no more.
MAX_TCP = 16384
_SERIAL = 1


@dataclass(slots=True)
class DnsWay:
    """How to answer a question. :ivar to: whoever asked, as the adapter names it."""

    to: Any
    query: dns.Query
    tcp: bool


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
        self.tunnel = PolledServer(self._reply, numbers, started)
        self._soa = dns.soa(nameserver, dns.join_labels([b"hostmaster", *dns.labels_of(zone)]), _SERIAL)

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
        if len(labels) == ours:
            self._apex(query, to)
            return None
        if query.type in CARRYING:
            way = DnsWay(to, query, tcp)
            room = self._room(query, tcp)
            try:
                message = from_labels(labels[: len(labels) - ours]) + query.data
                return self.tunnel.question(message, way, room, now, query.type)
            except RemoteProtocolError:
                pass  # part of a name, a name of somebody's own, or a link that is not here any more
        if self._name_of(query) == self._nameserver.lower():
            self._answer_addresses(query, to)
        else:
            self._nothing(query, to)
        return None

    def _room(self, query: dns.Query, tcp: bool) -> int:
        limit = MAX_TCP if tcp else min(query.size, MAX_UDP)
        return records_room(query.type, dns.answer_room(query, limit), self.zone)

    @staticmethod
    def _name_of(query: dns.Query) -> bytes:
        return query.section[:-4].lower()

    def _reply(self, way: DnsWay, message: bytes | None) -> None:
        query = way.query
        if message is None:
            self._send(way.to, dns.build_answer(query, 0, b"", dns.AA | dns.TC))
            return
        zone_at = 12 + len(query.section) - 4 - len(self.zone)
        count, records = to_records(query.type, message, self.zone, zone_at)
        self._send(way.to, dns.build_answer(query, count, records))

    # -- what is no tunnel

    def _apex(self, query: dns.Query, to: Any) -> None:
        if query.type == dns.SOA:
            self._answer(query, to, [self._soa])
        elif query.type == dns.NS:
            self._answer(query, to, [self._nameserver])
        elif query.type in (dns.A, dns.AAAA):
            self._answer_addresses(query, to)
        else:
            self._nothing(query, to)

    def _answer_addresses(self, query: dns.Query, to: Any) -> None:
        version = 4 if query.type == dns.A else 6 if query.type == dns.AAAA else 0
        self._answer(query, to, [found.packed for found in self._addresses(to) if found.version == version])

    def _answer(self, query: dns.Query, to: Any, datas: list[bytes]) -> None:
        if not datas:
            self._nothing(query, to)
            return
        name = query.section[:-4]
        records = [dns.Record(name, query.type, data) for data in datas]
        additional = [dns.opt(dns.OUR_SIZE)] if query.edns else []
        flags = dns.QR | dns.AA | query.flags & dns.RD
        self._send(to, dns.Message(query.ident, flags, [self._question(query)], records, [], additional).encode())

    def _nothing(self, query: dns.Query, to: Any) -> None:
        """The name exists, and has no such record."""
        authority = [dns.Record(self.zone, dns.SOA, self._soa)]
        additional = [dns.opt(dns.OUR_SIZE)] if query.edns else []
        flags = dns.QR | dns.AA | query.flags & dns.RD
        self._send(to, dns.Message(query.ident, flags, [self._question(query)], [], authority, additional).encode())

    @staticmethod
    def _question(query: dns.Query) -> dns.Question:
        return dns.Question(query.section[:-4], query.type, query.cls)
