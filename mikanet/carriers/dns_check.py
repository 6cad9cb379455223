"""What ``mikanet doctor dns://resolver:53/t.example`` finds: from the delegation to what a tunnel would use.

Plain sockets, one question after the other; nothing else runs meanwhile.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

from mikanet.carriers.dns import CODES, zone_of
from mikanet.carriers.dns_client import WITHOUT_EDNS, DnsHandshake
from mikanet.carriers.polled_carrier import random_bits
from mikanet.carriers.urls import CarrierUrl
from mikanet.errors import ConfigError, RemoteProtocolError
from mikanet.wire import dns

#: Status (``ok``, ``note`` or ``PROBLEM``), what was looked at, what was seen, and what mends it.
Found = tuple[str, str, str, str]
_OK, _NOTE, _PROBLEM = "ok", "note", "PROBLEM"
_TRIES = 3


def delegation(zone: bytes, address: str = "192.0.2.53") -> str:
    """The two records to add where the zone above is kept, to paste."""
    labels = dns.labels_of(zone)
    parent = dns.text_of(dns.join_labels(labels[1:]))
    server = f"{labels[0].decode('ascii', 'replace')}ns.{parent}"
    kind = "AAAA" if ":" in address else "A"
    width = max(len(server), len(dns.text_of(zone)))
    return f"{dns.text_of(zone):<{width}}  IN  NS    {server}\n{server:<{width}}  IN  {kind:<4}  {address}"


def findings(text: str, seconds: float) -> Iterator[Found]:
    """All that there is to say of a URL, as it is found.

    :param seconds: for the whole handshake.
    """
    try:
        url = CarrierUrl.parse(text)
        zone = zone_of(url)
    except ConfigError as problem:
        yield _PROBLEM, "URL", str(problem), "dns://resolver:53/t.example"
        return
    asker = _Asker(url.host, url.port or 53)
    try:
        yield from _zone(asker, zone)
        yield from _tunnel(asker, zone, seconds)
    except OSError as problem:
        yield _PROBLEM, "network", f"{url.host} port {asker.port}: {problem}", ""
    finally:
        asker.close()


class _Asker:
    """Asks one resolver. :ivar edns: whether it knows OPT records, as far as is known."""

    edns = True

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.peer = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
        self.udp = socket.socket(self.peer[0], socket.SOCK_DGRAM)
        self.udp.connect(self.peer[4])

    def close(self) -> None:
        """No more."""
        self.udp.close()

    def ask(self, name: bytes, kind: int) -> dns.Message | None:
        """The answer, None if there is none; without an OPT record where one is an error."""
        section = name + kind.to_bytes(2, "big") + b"\0\1"
        answer = self.exchange(section, dns.OUR_SIZE if self.edns else None)
        if self.edns and answer is not None and answer.rcode in WITHOUT_EDNS:
            self.edns = False
            answer = self.exchange(section, None)
        return answer

    def exchange(self, section: bytes, size: int | None) -> dns.Message | None:
        """The answer to one question; three tries."""
        for _ in range(_TRIES):
            ident = random_bits(16)
            try:
                self.udp.send(dns.build_query(ident, section, size))
                self.udp.settimeout(1.5)
                message = dns.Message.decode(self.udp.recv(65535))
            except (TimeoutError, ConnectionRefusedError, RemoteProtocolError):
                continue
            if message.ident == ident:
                return message
        return None

    def over_tcp(self, name: bytes) -> bool:
        """Whether a question is answered over TCP."""
        query = dns.build_query(random_bits(16), name + dns.SOA.to_bytes(2, "big") + b"\0\1", None)
        try:
            with socket.create_connection((self.host, self.port), 3) as tcp:
                tcp.sendall(len(query).to_bytes(2, "big") + query)
                return len(tcp.recv(64)) > 2
        except OSError:
            return False


def _zone(asker: _Asker, zone: bytes) -> Iterator[Found]:
    shown = dns.text_of(zone)
    yield _NOTE, "delegation", f"what the zone above {shown} needs, with your server's address:", delegation(zone)
    answer = asker.ask(zone, dns.SOA)
    if answer is None:
        text = f"{asker.host} port {asker.port} does not answer over UDP"
        yield _PROBLEM, "resolver", text, f"dig @{asker.host} -p {asker.port} {shown} SOA"
        return
    straight = bool(answer.flags & dns.AA)
    who = "the zone's own name server" if straight else "a resolver"
    if answer.rcode != dns.NOERROR or not any(record.type == dns.SOA for record in answer.answers):
        said = CODES.get(answer.rcode, str(answer.rcode))
        text = f"{asker.host} answers {said} for {shown}: the zone is not delegated, or its server is not reached"
        yield _PROBLEM, "zone", text, delegation(zone)
        return
    yield _OK, "zone", f"{shown} is there; {asker.host} is {who}", ""
    if not asker.edns:
        text = f"{asker.host} takes EDNS for an error: answers have 512 bytes at most, and a tunnel is slow"
        yield _NOTE, "EDNS", text, "another resolver, if there is one"
    longest = max((record.ttl for record in answer.answers), default=0)
    if longest:
        yield _PROBLEM, "zone", f"its SOA record has a TTL of {longest}: another name server answers for it", ""
    servers = asker.ask(zone, dns.NS)
    names = [] if servers is None else [record.data for record in servers.answers if record.type == dns.NS]
    for name in names:
        if straight and not _is_below(name, zone):
            continue  # the zone above has its address; this server answers for its own names only
        found = asker.ask(name, dns.A)
        six = asker.ask(name, dns.AAAA)
        records = [*(found.answers if found else ()), *(six.answers if six else ())]
        if any(record.type in (dns.A, dns.AAAA) for record in records):
            yield _OK, "name server", f"{dns.text_of(name)} has an address", ""
        else:
            text = f"{dns.text_of(name)}, the name server of {shown}, has no address"
            yield _NOTE, "name server", text, "the server's URL: dns://0.0.0.0:53/ZONE?address=ITS-ADDRESS"
    if asker.over_tcp(zone):
        yield _OK, "TCP", "answers over TCP too", ""
    else:
        yield _NOTE, "TCP", "no answer over TCP: answers that a resolver cuts short are lost", ""


def _is_below(name: bytes, zone: bytes) -> bool:
    labels, ours = ([label.lower() for label in dns.labels_of(each)] for each in (name, zone))
    return labels[max(0, len(labels) - len(ours)) :] == ours


def _tunnel(asker: _Asker, zone: bytes, seconds: float) -> Iterator[Found]:
    """A handshake as a client makes it, up to the start of a link."""
    handshake = DnsHandshake(zone, random_bits, time.monotonic())
    ends_at = time.monotonic() + seconds
    while handshake.mode is None and (now := time.monotonic()) < ends_at:
        for question in handshake.questions(now):
            asker.udp.send(question)
        asker.udp.settimeout(max(0.005, min(handshake.deadline, ends_at) - time.monotonic()))
        try:
            handshake.received(asker.udp.recv(65535), time.monotonic())
        except (TimeoutError, ConnectionRefusedError):
            continue
    if handshake.mode is not None:
        text = f"works: {handshake.mode}; round trip {handshake.rtt * 1000:.0f} ms"
        yield _OK, "tunnel", text, ""
    elif handshake.connection is not None:
        text = f"the server answers, but too little got through in {seconds:g} s"
        yield _PROBLEM, "tunnel", text, "try another resolver, or the server itself"
    elif handshake.answered:
        text = "a name server answers for the zone, but no tunnel server"
        yield _PROBLEM, "tunnel", text, "twistd -n pickaxe-server --users FILE --carrier dns://0.0.0.0:53/ZONE"
    else:
        yield _PROBLEM, "tunnel", f"no answer to a tunnel's questions in {seconds:g} s", ""
